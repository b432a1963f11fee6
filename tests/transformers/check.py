"""Loads decompressed CLIP and SigLIP folders in transformers and compares their outputs with the original model's.

    python3 tests/transformers/check.py ORIGINAL DECOMPRESSED [DECOMPRESSED...]

ORIGINAL is a model folder with `reference.safetensors`: fixed inputs, hidden states after each block, and final outputs,
computed from the original weights. For each folder this prints, one JSON object a line, the relative error of every
output, and the same for a control: the original model with independent Gaussian noise in every tensor that changed,
of the same energy. A sound codec's error is about the control's: its ratio says how the codec's noise compares with
noise of no structure at all. Needs torch, transformers and safetensors.
"""

import json
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModel


def outputs(model, reference):
    with torch.no_grad():
        out = model(
            pixel_values=reference["pixel_values"],
            input_ids=reference["input_ids"].long(),
            output_hidden_states=True,
        )
    got = {
        "image_embeds": out.image_embeds,
        "text_embeds": out.text_embeds,
        "logits_per_image": out.logits_per_image,
    }
    for tower, states in (("vision", out.vision_model_output), ("text", out.text_model_output)):
        for block, hidden in enumerate(states.hidden_states):
            got[f"{tower}.hidden.{block}"] = hidden
    return got


def errors(got, reference):
    found = {}
    for name, value in got.items():
        if name in reference:
            want = reference[name].float()
            found[name] = (torch.linalg.norm(value.float() - want) / torch.linalg.norm(want)).item()
    return found


def main():
    original_folder, *folders = sys.argv[1:]
    reference = load_file(f"{original_folder}/reference.safetensors")
    original = AutoModel.from_pretrained(original_folder, dtype=torch.float32).eval()
    base = errors(outputs(original, reference), reference)
    assert base and max(base.values()) < 1e-4, base
    print(json.dumps({"folder": original_folder, "outputs": len(base), "largest_error": max(base.values())}))
    weights = {name: value.clone() for name, value in original.state_dict().items()}
    for folder in folders:
        model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        restored = model.state_dict()
        assert restored.keys() == weights.keys()
        energy = sum((weights[n] ** 2).sum().item() for n in weights if not torch.equal(weights[n], restored[n]))
        change = sum(((weights[n] - restored[n]) ** 2).sum().item() for n in weights)
        found = errors(outputs(model, reference), reference)
        assert found.keys() == base.keys()
        controls = []
        for seed in range(5):
            torch.manual_seed(seed)
            noisy = {}
            for name, value in weights.items():
                deviation = (value - restored[name]).pow(2).mean().sqrt() if value.is_floating_point() else 0
                noisy[name] = value + deviation * torch.randn_like(value) if deviation > 0 else value
            original.load_state_dict(noisy)
            controls.append(errors(outputs(original, reference), reference))
        original.load_state_dict(weights)
        control = {name: sum(c[name] for c in controls) / len(controls) for name in found}
        keys = ["image_embeds", "text_embeds", "logits_per_image"]
        ratios = [found[name] / control[name] for name in found if control[name] > 0]
        print(
            json.dumps(
                {
                    "folder": folder,
                    "nmse": change / energy,
                    "relative_error": {name: found[name] for name in keys},
                    "control": {name: control[name] for name in keys},
                    "ratio_to_control": {"mean": sum(ratios) / len(ratios), "largest": max(ratios)},
                }
            )
        )


if __name__ == "__main__":
    main()
