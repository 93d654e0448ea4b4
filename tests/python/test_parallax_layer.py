# SPDX-License-Identifier: Apache-2.0
"""The decoder with Parallax layers, as docs/math.md defines it, gives the C++ decoder's logits."""

import json

import pytest
import torch
from decoder_logits import TINY_SIZES, assert_as_near_as_float32, logits_tool, our_logits
from naive import naive
from safetensors.torch import load_file, save_file
from torch.nn.functional import embedding, linear, silu

CONFIG = TINY_SIZES | {
    "model_type": "parallax_qwen3",
    "head_dim": 20,
    "rms_norm_eps": 0.01,  # large enough to be seen
    "rope_theta": 5e5,
    "mixers": ["parallax"],
    "qk_norm": True,
    "attention_bias": False,
    "r_proj_bias": False,
    "r_norm": True,
    "r_rope": True,
}


def rms_norm(x, gain):
    return gain * x / (x.square().mean(-1, keepdim=True) + CONFIG["rms_norm_eps"]).sqrt()


def rotate(x):
    """Turns dimensions i and i + D/2 of x [B, T, H, D] by position times theta^(-2i/D)."""
    pairs = torch.arange(x.shape[-1] // 2, dtype=x.dtype)
    frequencies = CONFIG["rope_theta"] ** (-2 * pairs / x.shape[-1])
    angles = torch.arange(x.shape[1], dtype=x.dtype)[:, None, None] * frequencies
    low, high = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def attention_layer(config, mixer, weights, x):
    """`weights` are the layer's own, by their names in it."""

    def heads(name, bias, norm=False, rope=False):
        bias = weights[f"{name}_proj.bias"] if bias else None
        y = linear(x, weights[f"{name}_proj.weight"], bias).unflatten(-1, (-1, config["head_dim"]))
        y = rms_norm(y, weights[f"{name}_norm.weight"]) if norm else y
        return rotate(y) if rope else y

    bias, norm = config["attention_bias"], config["qk_norm"]
    q, k, v = heads("q", bias, norm, rope=True), heads("k", bias, norm, rope=True), heads("v", bias)
    r = torch.zeros_like(q)
    if mixer == "parallax":
        r = heads("r", config["r_proj_bias"], config["r_norm"], config["r_rope"])
    out = naive(q, r, k, v, window=config.get("sliding_window")).out
    return linear(out.flatten(-2), weights["o_proj.weight"])


def decoder(config, weights, tokens):
    """Logits [B, T, V] in the dtype of the weights."""

    def part(prefix):
        of_part = {name: w for name, w in weights.items() if name.startswith(prefix)}
        return {name.removeprefix(prefix): w for name, w in of_part.items()}

    x = embedding(tokens, weights["model.embed_tokens.weight"])
    mixers = config["mixers"]
    for idx in range(config["num_hidden_layers"]):
        layer = part(f"model.layers.{idx}.")
        mixer = mixers[idx % len(mixers)]
        normed = rms_norm(x, layer["input_layernorm.weight"])
        x = x + attention_layer(config, mixer, part(f"model.layers.{idx}.self_attn."), normed)
        normed = rms_norm(x, layer["post_attention_layernorm.weight"])
        gate, up = (linear(normed, layer[f"mlp.{name}_proj.weight"]) for name in ("gate", "up"))
        x = x + linear(silu(gate) * up, layer["mlp.down_proj.weight"])
    return linear(rms_norm(x, weights["model.norm.weight"]), weights["model.embed_tokens.weight"])


def new_checkpoint(folder, seed, **changes):
    """A config and the weights that the C++ decoder starts with."""
    config = CONFIG | changes
    (folder / "config.json").write_text(json.dumps(config))
    logits_tool("--new", folder, seed)
    return config, load_file(folder / "model.safetensors")


def assert_same_logits(folder, config, weights):
    tokens = torch.randint(config["vocab_size"], (3, 70))
    float32 = decoder(config, weights, tokens)
    truth = decoder(config, {name: w.double() for name, w in weights.items()}, tokens)
    assert truth.std() > 0.3
    for logits in our_logits(folder, tokens, prefill=58):
        assert_as_near_as_float32(logits, float32, truth)


def assert_logits_follow_the_definition(folder, seed, **changes):
    config, weights = new_checkpoint(folder, seed, **changes)
    for weight in weights.values():
        if weight.ndim == 1:  # gains and biases away from one and zero
            weight += 0.2 * torch.randn_like(weight)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert_same_logits(folder, config, weights)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no_norm"])
@pytest.mark.parametrize("rope", [True, False], ids=["rope", "no_rope"])
def test_every_setting_of_the_probe_follows_the_definition(bias, norm, rope, seed, tmp_path):
    changes = {"r_proj_bias": bias, "r_norm": norm, "r_rope": rope}
    assert_logits_follow_the_definition(tmp_path, seed, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"qk_norm": False},
        {"attention_bias": True},
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 6},
        {"sliding_window": 9},
        {"mixers": ["softmax", "parallax", "parallax"]},
    ],
    ids=str,
)
def test_parallax_in_other_models_follows_the_definition(changes, seed, tmp_path):
    assert_logits_follow_the_definition(tmp_path, seed, **changes)


@pytest.mark.parametrize("gain", [0.0, 0.5, 1.0])
def test_r_norm_init_is_the_gain_that_the_probe_starts_with(gain, seed, tmp_path):
    config, weights = new_checkpoint(tmp_path, seed, r_norm_init=gain)
    gains = {name: torch.full((20,), gain) for name in weights if name.endswith("r_norm.weight")}
    assert len(gains) == 3
    assert_same_logits(tmp_path, config, weights | gains)
