# SPDX-License-Identifier: Apache-2.0
"""The logits of the C++ decoder, and how near to the truth they must be."""

import os
import subprocess

import numpy as np
import torch
from support import build_path

# Of models whose logits have a size of about one.
TINY_SIZES = {
    "vocab_size": 173,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
}


def logits_tool(*arguments):
    # One thread: these models are too small for more, which then wait for each other.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [build_path("tests/tools/plx_logits_tool"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)


def our_logits(folder, tokens, prefill):
    """Logits [B, T, V] of a checkpoint folder by the C++ decoder, without and with its cache.

    With the cache, the first `prefill` tokens enter at once and the rest one by one.
    """
    tokens.numpy().tofile(folder / "tokens.bin")
    logits_tool(folder, folder / "tokens.bin", tokens.shape[0], prefill, folder / "logits.bin")
    logits = np.fromfile(folder / "logits.bin", dtype=np.float32)
    return torch.from_numpy(logits).view(2, *tokens.shape, -1)


def assert_as_near_as_float32(actual, float32, truth):
    """As near to the float64 truth as its formula in float32, by the rule of docs/testing.md.

    That is twice the formula's error and two units in the last place of the largest logit.
    """
    allowed = 2 * (float32 - truth).abs().max() + 2 * np.spacing(np.float32(truth.abs().max()))
    assert (actual - truth).abs().max() <= allowed
