# SPDX-License-Identifier: Apache-2.0
"""The optimizers against PyTorch's own, gradient by gradient."""

import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import build_path

SHAPES = {"wide.weight": (24, 56), "tall.weight": (56, 24), "square.weight": (32, 32)}
NUM_STEPS = 6
DEFAULTS = {
    "algorithm": "muon",
    "lr": 0.02,
    "weight_decay": 0.1,
    "momentum": 0.95,
    "nesterov": "true",
    "scaling": "original",
    "dtype": "bfloat16",
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-8,
}


def make_problem(seed):
    generator = torch.Generator().manual_seed(seed)
    parameters = {k: torch.randn(s, generator=generator) for k, s in SHAPES.items()}
    gradients = [
        {k: torch.randn(s, generator=generator) * 0.1**step for k, s in SHAPES.items()}
        for step in range(NUM_STEPS)
    ]
    return parameters, gradients


def run_ours(tmp_path, parameters, gradients, **options):
    tensors = {f"parameter/{name}": tensor for name, tensor in parameters.items()}
    for step, gradient in enumerate(gradients):
        tensors |= {f"gradient/{step}/{name}": tensor for name, tensor in gradient.items()}
    metadata = {key: str(value) for key, value in (DEFAULTS | options).items()}
    save_file(tensors, tmp_path / "input.safetensors", metadata)
    program = build_path("tests/tools/plx_optimizer_tool")
    output = tmp_path / "output.safetensors"
    subprocess.run([program, tmp_path / "input.safetensors", output], check=True)
    return load_file(output)


def run_torch(optimizer_class, parameters, gradients, **options):
    trained = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in parameters.items()}
    optimizer = optimizer_class(trained.values(), **options)
    results = {}
    for step, gradient in enumerate(gradients):
        for name, parameter in trained.items():
            parameter.grad = gradient[name].clone()
        optimizer.step()
        results |= {f"{step}/{name}": p.detach().clone() for name, p in trained.items()}
    return results


def assert_equal_to_rounding(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        # Each step rounds the parameter a few times: 4 ulp of the largest value per step.
        bound = 4 * NUM_STEPS * torch.finfo(torch.float32).eps * expected.abs().max()
        assert (ours[name] - expected).abs().max() <= bound, name


@pytest.mark.parametrize("scaling", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("momentum", [0.95, 0.6])
def test_muon_follows_torch(tmp_path, scaling, nesterov, momentum):
    parameters, gradients = make_problem(seed=3)
    theirs = run_torch(
        torch.optim.Muon,
        parameters,
        gradients,
        lr=0.02,
        weight_decay=0.1,
        momentum=momentum,
        nesterov=nesterov,
        adjust_lr_fn=scaling,
    )
    ours = run_ours(
        tmp_path,
        parameters,
        gradients,
        scaling=scaling,
        momentum=momentum,
        nesterov=str(nesterov).lower(),
    )
    assert_equal_to_rounding(ours, theirs)


def test_muon_in_float32_stays_near_torch(tmp_path):
    parameters, gradients = make_problem(seed=4)
    theirs = run_torch(torch.optim.Muon, parameters, gradients, lr=0.02, weight_decay=0.1)
    ours = run_ours(tmp_path, parameters, gradients, dtype="float32")
    last = NUM_STEPS - 1
    for name, start in parameters.items():
        change = theirs[f"{last}/{name}"] - start
        # The bfloat16 iteration is within 2 % of the float32 one at every step.
        assert (ours[f"{last}/{name}"] - start - change).norm() <= 2e-2 * change.norm()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_follows_torch(tmp_path, weight_decay):
    parameters, gradients = make_problem(seed=5)
    theirs = run_torch(
        torch.optim.AdamW,
        parameters,
        gradients,
        lr=3e-3,
        betas=(0.8, 0.95),
        eps=1e-7,
        weight_decay=weight_decay,
    )
    ours = run_ours(
        tmp_path,
        parameters,
        gradients,
        algorithm="adamw",
        lr=3e-3,
        beta1=0.8,
        beta2=0.95,
        eps=1e-7,
        weight_decay=weight_decay,
    )
    assert_equal_to_rounding(ours, theirs)
