# SPDX-License-Identifier: Apache-2.0
"""Makes the package importable from the source tree, and gives the fixtures of the op tests."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))


@pytest.fixture
def poisoned_memory():
    """torch.empty gives NaN, in C++ too: what a kernel forgets to write shows."""
    was_on = torch.are_deterministic_algorithms_enabled()
    was_filling = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(was_on)
    torch.utils.deterministic.fill_uninitialized_memory = was_filling


@pytest.fixture
def seed(request):
    """Another seed for each test, the same in every run; printed when the test fails."""
    value = sum(ord(c) * (i + 1) for i, c in enumerate(request.node.nodeid)) % 2**31
    print(f"seed {value}")
    torch.manual_seed(value)
    return value


@pytest.fixture(params=["default", "cuda_portable"])
def cuda_backend(request, monkeypatch):
    """The library's own choice, and the plain kernels. PLX_BACKEND is read at each call."""
    if request.param == "default":
        monkeypatch.delenv("PLX_BACKEND", raising=False)
    else:
        monkeypatch.setenv("PLX_BACKEND", request.param)
    return request.param


@pytest.fixture
def poisoned_device_memory():
    """As poisoned_memory, for CUDA, where PyTorch's own products would refuse: they warn."""
    was_on = torch.are_deterministic_algorithms_enabled()
    was_filling = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.isnan(torch.empty(64, device="cuda")).all()
    yield
    torch.use_deterministic_algorithms(was_on)
    torch.utils.deterministic.fill_uninitialized_memory = was_filling
