"""What the kernels are compared with, measured on the same GPU by PyTorch: copies, and products of bf16 matrices with few vectors.

Prints one JSON object. Times are medians, by the GPU's clock. Products run in a CUDA graph over so many matrices that none is in a
cache when it is needed."""

import json
import statistics
import sys

import torch

RUNS = 21
ROTATED_BYTES = 2e9
SHAPES = [(4096, 4096), (14336, 4096)]
BATCHES = [1, 8, 16]


def median_ms(work):
    """Median milliseconds of some runs, after three that do not count."""
    times = []
    for run in range(RUNS + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        if run >= 3:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def copy_bytes_per_second():
    """Read and written bytes of a copy from device to device."""
    source = torch.zeros(2 * 10**9, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (median_ms(lambda: target.copy_(source)) * 1e-3)


def product_us(matrices, batch, product):
    """Microseconds of one product, of a graph with one for each matrix."""
    x = torch.randn(batch, matrices[0].shape[1], dtype=torch.bfloat16, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for matrix in matrices[:3]:  # what libraries set up the first time must not be captured
            product(matrix, x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [product(matrix, x) for matrix in matrices]
    time = median_ms(graph.replay) * 1e3 / len(results)
    del graph, results
    return time


def main():
    report = {
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name(),
        "runs": RUNS,
        "copy_bytes_per_second": copy_bytes_per_second(),
    }
    with torch.no_grad():
        for out, width in SHAPES:
            count = max(2, round(ROTATED_BYTES / (2 * out * width)))
            matrices = [torch.randn(out, width, dtype=torch.bfloat16, device="cuda") for _ in range(count)]
            shape = report[f"{out}x{width}"] = {"matrices": count}
            for batch in BATCHES:
                times = [product_us(matrices, batch, lambda w, x: torch.nn.functional.linear(x, w))]
                if batch == 1:
                    times.append(product_us(matrices, 1, lambda w, x: torch.mv(w, x[0])))
                # The faster of the library's ways.
                shape[f"bf16_product_{batch}_us"] = min(times)
            del matrices
            torch.cuda.empty_cache()
    json.dump(report, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
