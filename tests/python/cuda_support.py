# SPDX-License-Identifier: Apache-2.0
"""What the tests on CUDA tensors share: when they run, on which backend, how they compare."""

import os

import parallax
import pytest
import torch

DEVICE = torch.device("cuda")


def why_not_cuda() -> str | None:
    """Why the tests on CUDA tensors cannot run here; None if they can."""
    if not torch.cuda.is_available():
        return f"no CUDA device that torch {torch.__version__} can use"
    was = os.environ.get("PLX_BACKEND")
    os.environ["PLX_BACKEND"] = "cuda"
    try:
        parallax.attention(*torch.zeros(4, 1, 1, 1, 1))
    except RuntimeError as error:
        if "which this build does not have" in str(error):
            return "the op library was built without the CUDA backends (PLX_CUDA=ON)"
    finally:
        del os.environ["PLX_BACKEND"]
        if was is not None:
            os.environ["PLX_BACKEND"] = was
    return None


NOT_CUDA = why_not_cuda()
IS_HOPPER = NOT_CUDA is None and torch.cuda.get_device_capability() == (9, 0)
needs_hopper = pytest.mark.skipif(not IS_HOPPER, reason="needs a GPU of compute capability 9.0")


def skip_module_without_cuda() -> None:
    """Called at the top of a test file: one line says why all of it was left out."""
    if NOT_CUDA is not None:
        pytest.skip(f"CUDA tests: {NOT_CUDA}", allow_module_level=True)


def needs_memory(gigabytes: int):
    """Skips the test if the device has less memory in all."""
    total = 0 if NOT_CUDA else torch.cuda.get_device_properties(DEVICE).total_memory
    reason = f"needs {gigabytes} GB of device memory, there are {total / 1e9:.0f}"
    return pytest.mark.skipif(total < gigabytes * 1e9, reason=reason)


def on_device(tensors):
    return [x.to(DEVICE) for x in tensors]


def int32(*values):
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def equal_bits(actual, expected):
    """All tensors have the same bits, NaN with NaN."""

    def same(a, b):
        as_bytes = (x.contiguous().view(torch.uint8) for x in (a, b))
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*as_bytes)

    return all(same(a, b) for a, b in zip(actual, expected, strict=True))


def assert_rows_close(name, actual, expected, tolerance, *, smallest=(0.1, 0.0)):
    """(rms, max) of the error, each row in units of its largest element.

    Rows differ in size by orders of magnitude; without that the first ones would hide the others. A
    row that is nearly zero is no unit: `smallest` bounds it, in units of the rms of all and at all.
    """
    assert actual.shape == expected.shape, f"{name}: {actual.shape} against {expected.shape}"
    if expected.numel() == 0:
        return
    actual, expected = (x.detach().double().cpu() for x in (actual, expected))
    relative, absolute = smallest
    least = (relative * expected.square().mean().sqrt()).clamp_min(max(absolute, 1e-30))
    unit = expected.abs().amax(-1, keepdim=True).maximum(least)
    error = ((actual - expected) / unit).nan_to_num(torch.inf, torch.inf, torch.inf).abs()
    rms, peak = error.square().mean().sqrt().item(), error.max().item()
    at = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    assert rms <= tolerance[0] and peak <= tolerance[1], (
        f"{name}: rms {rms:.2e} of {tolerance[0]:.2e}, max {peak:.2e} of {tolerance[1]:.2e} at "
        f"{at}: {actual[at].item()} against {expected[at].item()}"
    )


def assert_statistics_close(state, expected):
    """lse and t_mean, which are float32 whatever the inputs are."""
    lse, truth = state.lse.double().cpu(), expected.lse.double().cpu()
    assert state.lse.dtype == state.t_mean.dtype == torch.float32
    assert torch.equal(torch.isneginf(lse), torch.isneginf(truth))
    torch.testing.assert_close(lse, truth, rtol=2e-6, atol=2e-5)
    # t = r.k has a spread of about the root of the head size.
    spread = 1 + state.out.shape[-1] ** 0.5
    t_mean = state.t_mean.double().cpu()
    torch.testing.assert_close(
        t_mean, expected.t_mean.double().cpu(), rtol=1e-5, atol=1e-4 * spread
    )
