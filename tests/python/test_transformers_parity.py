# SPDX-License-Identifier: Apache-2.0
"""Checkpoints written by transformers give transformers' own logits in the C++ decoder."""

import copy
import json
import subprocess

import pytest
import torch
from decoder_logits import TINY_SIZES, assert_as_near_as_float32, our_logits
from support import build_path
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FAMILIES = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}


def make_model(family, seed, **changes):
    """A random model whose logits have a size of about one."""
    config_class, model_class = FAMILIES[family]
    rope = {"rope_type": "default", "rope_theta": 5e5}
    settings = TINY_SIZES | {"rope_parameters": rope}
    if family == "qwen3":
        settings["head_dim"] = 20  # not hidden_size / num_attention_heads
    torch.manual_seed(seed)
    model = model_class(config_class(**(settings | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # gains and biases away from one and zero
                parameter += 0.2 * torch.randn_like(parameter)
    return model


def assert_same_logits(model, folder, num_tokens=70):
    """Short texts: 1e-5 from transformers in float32.

    Any length: as near to transformers in float64 as its float32 is (at 511 tokens that is up to
    1.1e-5).
    """
    tokens = torch.randint(model.config.vocab_size, (3, num_tokens))
    with torch.no_grad():
        theirs = model(tokens).logits
        truth = copy.deepcopy(model).double()(tokens).logits
    assert truth.std() > 0.3
    assert (theirs - truth).abs().max() <= 2e-5
    full, cached = our_logits(folder, tokens, prefill=num_tokens - 12)
    assert_as_near_as_float32(full, theirs, truth)
    assert_as_near_as_float32(cached, theirs, truth)
    if num_tokens <= 100:
        assert (full - theirs).abs().max() <= 1e-5
        assert (cached - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family, tied, seed, tmp_path):
    model = make_model(family, seed, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    assert_same_logits(model, tmp_path)


@pytest.mark.parametrize("num_kv_heads", [1, 3, 6])
def test_every_grouping_of_key_heads_equals_transformers(num_kv_heads, seed, tmp_path):
    model = make_model("qwen3", seed, num_key_value_heads=num_kv_heads)
    model.save_pretrained(tmp_path)
    assert_same_logits(model, tmp_path)


@pytest.mark.parametrize("family", ["qwen3", "qwen2"])
def test_sliding_window_on_all_layers_equals_transformers(family, seed, tmp_path):
    model = make_model(family, seed, use_sliding_window=True, sliding_window=9, max_window_layers=0)
    model.save_pretrained(tmp_path)
    assert_same_logits(model, tmp_path)


def test_sharded_checkpoints_equal_transformers(seed, tmp_path):
    model = make_model("qwen3", seed)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same_logits(model, tmp_path)


def test_rope_theta_at_the_top_as_older_files_have_it(seed, tmp_path):
    model = make_model("llama", seed)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["rope_scaling"] = None
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same_logits(model, tmp_path)


def test_bfloat16_checkpoints_load_as_their_rounded_values(seed, tmp_path):
    make_model("qwen3", seed).to(torch.bfloat16).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert_same_logits(model, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_long_context_with_single_token_steps(family, seed, tmp_path):
    model = make_model(family, seed)
    model.save_pretrained(tmp_path)
    assert_same_logits(model, tmp_path, num_tokens=511)


def test_folders_that_we_write_load_in_transformers(seed, tmp_path):
    model = make_model("qwen2", seed, tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "theirs")
    subprocess.run(
        [build_path("tests/tools/plx_logits_tool"), "--copy", tmp_path / "theirs", tmp_path],
        check=True,
    )
    copied = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.randint(173, (2, 30))
    with torch.no_grad():
        assert torch.equal(copied(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "linear"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"attention_bias": True}, "o_proj"),
        (
            {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
            "2 of 3 layers",
        ),
    ],
    ids=["rope", "activation", "output_bias", "mixed_window"],
)
def test_what_is_not_built_is_refused_by_name(changes, message, seed, tmp_path):
    make_model("qwen3", seed, **changes).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=message):
        our_logits(tmp_path, torch.zeros(1, 4, dtype=torch.int64), prefill=1)
