# SPDX-License-Identifier: Apache-2.0
"""The calls that attention_gpu.py compares: ours, FLA's Parallax, and softmax attention.

A peer that cannot run a case is absent with a reason, and never stops the others.
"""

import contextlib
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from gpu_cases import Case, Inputs
from gpu_run import one_line
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

REPO_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO_ROOT / "python"))

import parallax  # noqa: E402

PEERS = ("cudnn", "flash", "fla")


class AbsentError(Exception):
    """Why a peer does not run a case."""


@dataclass
class Candidate:
    name: str
    run: Callable[[], object]
    # The results of one call under their names of gpu_reference.NAMES.
    results: Callable[[], dict[str, Tensor]]


def ours(case: Case, inputs: Inputs) -> Candidate:
    """The training form: with the tensors that are saved for the backward pass."""
    run = _ours(case, inputs, return_stats=True)
    return Candidate("parallax", run, lambda: run()._asdict())


def ours_for_inference(case: Case, inputs: Inputs) -> Candidate:
    """The same without the saved tensors, as the functions compute it where grad mode is off."""
    run = _ours(case, inputs, return_stats=False)
    return Candidate("parallax inference", run, lambda: {"out": run()})


def _ours(case: Case, inputs: Inputs, **options) -> Callable[[], object]:
    options |= {"causal": case.causal, "window": case.window}
    *tensors, cu_seqlens = inputs

    def run():
        if cu_seqlens is None:
            return parallax.attention(*tensors, **options)
        return parallax.varlen_attention(*tensors, cu_seqlens, cu_seqlens, **options)

    return run


def fla(case: Case, inputs: Inputs) -> Candidate:
    if not case.causal:
        raise AbsentError("it has no full attention")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from fla.ops.parallax import parallel_parallax
        except Exception as error:  # a package may fail to import in any way
            raise AbsentError(f"import fla.ops.parallax: {one_line(error)}") from error
    packed = inputs.cu_seqlens is not None
    tensors = [x[None] if packed else x for x in inputs[:4]]
    options = {"window_size": case.window, "cu_seqlens": inputs.cu_seqlens}

    def run():
        return parallel_parallax(*tensors, **options)

    return Candidate("fla", run, lambda: {"out": run()[0] if packed else run()})


def cudnn(case: Case, inputs: Inputs) -> Candidate:
    if inputs.q.device.type != "cuda":
        raise AbsentError("it needs a CUDA device")
    if case.lengths or case.window is not None:
        raise AbsentError("PyTorch's cuDNN attention has no window and no packed sequences")
    q, k, v = inputs.by_heads()
    options = {"is_causal": case.causal, "enable_gqa": case.heads != case.heads_kv}

    def run():
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)

    return Candidate("cudnn", run, lambda: {"out_softmax": run().transpose(1, 2)})


def flash(case: Case, inputs: Inputs) -> Candidate:
    """PyTorch's FlashAttention, below scaled_dot_product_attention: it also has windows."""
    if inputs.q.device.type != "cuda":
        raise AbsentError("it needs a CUDA device")
    op = torch.ops.aten._flash_attention_forward.default
    longest = max(case.lengths, default=case.tokens)
    cu_seqlens = inputs.cu_seqlens
    options = {}
    if case.window is not None:
        options = {"window_size_left": case.window - 1, "window_size_right": 0}

    def run():
        lengths = (cu_seqlens, cu_seqlens, longest, longest)
        return op(inputs.q, inputs.k, inputs.v, *lengths, 0.0, case.causal, False, **options)[0]

    return Candidate("flash", run, lambda: {"out_softmax": run()})


def sdpa(case: Case, inputs: Inputs) -> Candidate:
    """PyTorch's own choice; the stand-in for the peers where there is no GPU."""
    if case.lengths or case.window is not None:
        raise AbsentError("it has no window and no packed sequences")
    q, k, v = inputs.by_heads()
    options = {"is_causal": case.causal, "enable_gqa": case.heads != case.heads_kv}

    def run():
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)

    return Candidate("sdpa", run, lambda: {"out_softmax": run().transpose(1, 2)})


MAKERS = {"cudnn": cudnn, "flash": flash, "fla": fla, "sdpa": sdpa}


def make_peer(name: str, case: Case, inputs: Inputs) -> tuple[Candidate, dict[str, Tensor]]:
    """The peer and the results of its first call. Raises AbsentError."""
    candidate = MAKERS[name](case, inputs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            results = candidate.results()
            if inputs.q.device.type == "cuda":
                torch.cuda.synchronize()
        except Exception as error:  # anything that another library may raise
            said = [one_line(x.message) for x in caught if issubclass(x.category, UserWarning)]
            raise AbsentError("; ".join([one_line(error), *said])[:400]) from error
    return candidate, results


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """New memory of tensors is NaN: what a kernel forgets to write shows.

    warn_only, since PyTorch's own products would refuse to run otherwise.
    """
    was_on = torch.are_deterministic_algorithms_enabled()
    was_warning = torch.is_deterministic_algorithms_warn_only_enabled()
    was_filling = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=was_warning)
        torch.utils.deterministic.fill_uninitialized_memory = was_filling


def backend_of(run: Callable[[], object]) -> str:
    """The name of the backend that runs a call, from the library's own log."""
    was = os.environ.get("PLX_LOG")
    os.environ["PLX_LOG"] = "dispatch"
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with tempfile.TemporaryFile() as log:
            os.dup2(log.fileno(), 2)
            try:
                run()
            finally:
                os.dup2(stderr, 2)
            log.seek(0)
            text = log.read().decode(errors="replace")
    finally:
        os.close(stderr)
        if was is None:
            del os.environ["PLX_LOG"]
        else:
            os.environ["PLX_LOG"] = was
    found = re.findall(r"-> (\w+)", text)
    return found[-1] if found else "unknown"
