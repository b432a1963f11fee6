"""Makes the tiny models, and the outputs that transformers gives for them, that the forward passes are tested with.

    python3 tests/transformers/make_models.py tests/models

Weights are random, and wide enough that every part matters: attention is not flat, clamps clamp, scaled rotary embeddings are used beyond
the context that they extend. Each folder gets `config.json`, `model.safetensors` and `reference.safetensors`: inputs, `hidden.i`
(0: embeddings, i: the output of block i) and final outputs in float32, from the weights as saved. `resize.safetensors` has an image and what
Pillow makes of it. Needs torch, transformers, safetensors and Pillow; made with torch 2.15.0, transformers 5.24.0 and Pillow 13.0.0.
"""

import json
import pathlib
import sys

import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

DECODER = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=256, bos_token_id=0, eos_token_id=0, pad_token_id=1,
)
TOWER = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
GPT_OSS = dict(
    DECODER, intermediate_size=32, num_local_experts=4, num_experts_per_tok=2, sliding_window=6, swiglu_limit=1.5,
    layer_types=["sliding_attention", "full_attention"], initial_context_length=16,
    rope_parameters=dict(
        rope_type="yarn", rope_theta=10000.0, factor=8.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
        original_max_position_embeddings=16,
    ),
)


def randomise(model):
    """Weights of a size that keeps the variance, norms near one, everything else well away from zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.randn(parameter.shape)
            if parameter.dim() >= 2 and "embed" not in name and "probe" not in name and not name.endswith("_bias"):
                stacked = parameter.dim() == 3
                fan_in = parameter.shape[1] if stacked else parameter[0].numel()
                parameter.copy_(draw * 1.5 / fan_in**0.5)
            elif "norm" in name.lower() and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * draw)
            elif parameter.dim() >= 2:
                parameter.copy_(draw)
            elif "logit" not in name:
                parameter.copy_(0.5 * draw)


def outputs_of(layers, states):
    """Keeps the input of the first layer and what each layer puts out."""
    layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: states.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    for layer in layers:
        layer.register_forward_hook(lambda *call: states.append(call[2][0] if isinstance(call[2], tuple) else call[2]))


def save(folder, model, reference, weights=None):
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    if weights is None:
        model.save_pretrained(folder)
    else:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    reference = {name: value.detach().contiguous().clone() for name, value in reference.items()}
    save_file(reference, folder / "reference.safetensors")
    for name in folder.iterdir():
        if name.name not in ("config.json", "model.safetensors", "reference.safetensors"):
            name.unlink()


def rounded(model, dtype):
    """The model with the values that it has after saving it as `dtype`, in float32. Frequencies of rotary embeddings are not saved, nor rounded."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    return model.float().eval()


def run_decoder(model, length):
    ids = torch.randint(0, model.config.vocab_size, (2, length))
    states = []
    outputs_of(model.model.layers, states)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    reference = {f"hidden.{i}": state for i, state in enumerate(states)}
    return reference | {"input_ids": ids.int(), "logits": logits[:, -4:]}


def decoder(root, name, config, length=24):
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config)
    randomise(model)
    model = rounded(model, torch.bfloat16)
    reference = run_decoder(model, length)
    save(root / name, model.to(torch.bfloat16), reference)
    return model


def mxfp4(root, config):
    """GPT-OSS as it is published: experts as blocks of 32 4-bit floats with a common exponent."""
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config)
    randomise(model)
    model = rounded(model, torch.bfloat16)
    packed = {}
    for index, layer in enumerate(model.model.layers):
        experts = layer.mlp.experts
        for name in ("gate_up_proj", "down_proj"):
            parameter = getattr(experts, name)
            count, inputs, outputs = parameter.shape
            blocks = torch.randint(0, 256, (count, outputs, inputs // 32, 16), dtype=torch.uint8)
            scales = torch.randint(123, 126, (count, outputs, inputs // 32), dtype=torch.uint8)
            values = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
            assert values.shape == parameter.shape, values.shape
            parameter.data = values.contiguous()
            prefix = f"model.layers.{index}.mlp.experts.{name}"
            packed |= {f"{prefix}_blocks": blocks, f"{prefix}_scales": scales}
            if index == 0:
                first = {f"values.{name}": values} if name == "gate_up_proj" else first
    reference = run_decoder(model, 12) | first
    weights = {
        name: value.to(torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj"))
    }
    save(root / "gpt-oss-mxfp4", model, reference, weights | packed)


def image_text(root, name, config):
    model = transformers.AutoModel.from_config(config)
    randomise(model)
    model = rounded(model, torch.float16)
    text, vision = config.text_config, config.vision_config
    ids = torch.randint(3, text.vocab_size - 1, (3, 8))
    for row, end in enumerate((4, 7, 5)):
        ids[row, end] = text.eos_token_id
        ids[row, end + 1 :] = text.pad_token_id
    # Two columns and rows more than whole patches.
    pixels = torch.randn(2, 3, vision.image_size, vision.image_size)
    states = {"vision": [], "text": []}
    outputs_of(model.vision_model.encoder.layers, states["vision"])
    outputs_of(model.text_model.encoder.layers, states["text"])
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=pixels)
    reference = {f"{tower}.hidden.{i}": state for tower, all in states.items() for i, state in enumerate(all)}
    reference |= dict(
        input_ids=ids.int(), pixel_values=pixels, image_embeds=out.image_embeds, text_embeds=out.text_embeds,
        logits_per_image=out.logits_per_image,
    )
    save(root / name, model.to(torch.float16), reference)


def encoder(root, name, config):
    model = transformers.AutoModel.from_config(config)
    randomise(model)
    model = rounded(model, torch.float16)
    ids = torch.randint(3, config.vocab_size, (3, 12))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    mask[2, 10:] = 0
    states = []
    outputs_of(model.encoder.layer, states)
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask)
    reference = {f"hidden.{i}": state for i, state in enumerate(states)}
    reference |= dict(input_ids=ids.int(), attention_mask=mask.int(), pooler_output=out.pooler_output)
    save(root / name, model.to(torch.float16), reference)


def resize(root):
    """An image, and what Pillow makes of it: shorter edge 12, the middle 10 x 10; and 9 x 14."""
    ramp = torch.linspace(0, 255, 37 * 26).reshape(26, 37, 1)
    image = ((ramp + 60 * torch.randn(26, 37, 3)).clamp(0, 255)).to(torch.uint8)
    picture = Image.fromarray(image.numpy())
    made = {"image": image}
    for name, kind in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        for size in ((17, 12), (14, 9), (50, 40)):
            small = torch.tensor(list(picture.resize(size, kind).tobytes()), dtype=torch.uint8)
            made[f"{name}.{size[0]}x{size[1]}"] = small.reshape(size[1], size[0], 3)
    save_file(made, root / "resize.safetensors")


def main(root):
    torch.manual_seed(20250914)
    t = transformers
    plain = dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0))
    scaled = dict(
        rope_parameters=dict(
            rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=32,
        )
    )
    decoder(root, "llama-scaled", t.LlamaConfig(**DECODER, **scaled, attention_bias=True, mlp_bias=True), 48)
    decoder(
        root, "qwen3",
        t.Qwen3Config(**DECODER, **plain, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    )
    decoder(
        root, "mixtral",
        t.MixtralConfig(**DECODER, **plain, num_local_experts=4, num_experts_per_tok=2, sliding_window=7),
    )
    moe = dict(DECODER, **plain, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=16)
    decoder(
        root, "qwen3-moe",
        t.Qwen3MoeConfig(**dict(moe, num_hidden_layers=4), norm_topk_prob=True, decoder_sparse_step=2, mlp_only_layers=[3]),
    )
    decoder(root, "qwen3-moe-unnormalised", t.Qwen3MoeConfig(**moe, norm_topk_prob=False, tie_word_embeddings=True))

    exceeded = []
    config = t.GptOssConfig(**GPT_OSS)
    model = decoder(root, "gpt-oss", config, 40)
    experts = model.model.layers[0].mlp.experts
    gate = experts._apply_gate
    experts._apply_gate = lambda x: (exceeded.append((x.abs() > config.swiglu_limit).float().mean()), gate(x))[1]
    run_decoder(model, 8)
    assert exceeded and max(exceeded) > 0.1, exceeded
    mxfp4(root, t.GptOssConfig(**GPT_OSS))

    text = dict(TOWER, vocab_size=40, max_position_embeddings=8, bos_token_id=2, eos_token_id=39, pad_token_id=0)
    vision = dict(TOWER, image_size=14, patch_size=4)
    image_text(root, "siglip", t.SiglipConfig(text_config=dict(text, projection_size=32), vision_config=vision))
    encoder(
        root, "bert", t.BertConfig(**TOWER, vocab_size=64, max_position_embeddings=16, type_vocab_size=2, pad_token_id=0)
    )
    resize(root)
    for config in root.glob("*/config.json"):
        values = json.loads(config.read_text())
        values.pop("_name_or_path", None)
        config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    for name in root.glob("*/model.safetensors"):
        print(name.parent.name, sum(value.numel() for value in load_file(name).values()))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
