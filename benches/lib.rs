//! Only benchmarks and experiments: see `codec/` and `examples/`, and `results/` for what was recorded.
