"""What runs: instruction sets, plans and devices; asked for, and forced.

Forcing is for tests and measurements. It holds for the whole process, all threads included. The environment
variables ``LSTM_FUSED_ISA`` and ``LSTM_FUSED_PLAN`` force from outside.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from . import _ops  # noqa: F401, loads the operators

__all__ = ["available_isas", "info", "isa", "keep_memory", "plan", "use_isa", "use_plan"]

_forced = {"isa": "", "plan": ""}


def isa() -> str:
    """The active instruction set: "scalar", "avx2" or "avx512"."""
    return str(torch.ops.lstm_fused.isa())


def available_isas() -> list[str]:
    """Instruction sets that are both compiled in and supported by this machine."""
    return list(torch.ops.lstm_fused.isas_available())


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Runs a block with the kernels of one instruction set; "" means the best (or ``LSTM_FUSED_ISA``).

    Raises:
        RuntimeError: not available here; the message names what is.
    """
    with _force("isa", name):
        yield


@contextmanager
def use_plan(name: str) -> Iterator[None]:
    """Runs a block with one plan: "rows", "units", "serial"; "" is the cost model (or ``LSTM_FUSED_PLAN``).

    Raises:
        RuntimeError: no such plan; the message names the plans.
    """
    with _force("plan", name):
        yield


@contextmanager
def _force(what: str, name: str) -> Iterator[None]:
    force = getattr(torch.ops.lstm_fused, f"set_{what}")
    before = _forced[what]
    force(name)
    _forced[what] = name
    try:
        yield
    finally:
        _forced[what] = before
        force(before)


def keep_memory(limit: int) -> int:
    """Sets how much freed memory of layers on the CPU is kept for the next call.

    Tensors of 16 KiB or more that a layer makes (outputs, gradients, what backward needs) lie in huge pages where the
    system has them. What is freed is kept up to the limit, 512 MiB at first, since to get it from the system again can
    take longer than the call; the rest is given back. 0 gives back all, now and from now on. Where torch was given
    another CPU allocator, that one is used, and nothing is kept.

    Args:
        limit: bytes.

    Returns:
        The limit before.

    Raises:
        ValueError: a negative limit.
    """
    return int(torch.ops.lstm_fused.keep_memory(limit))


def plan(
    cell: str,
    *,
    T: int,
    B: int,
    I: int,
    H: int,
    P: int | None = None,
    D: int = 1,
    threads: int | None = None,
) -> str:
    """The plan that a layer of this shape takes, in a word or two, as "serial", "rows 2" or "directions 2 x units 2".

    Args:
        cell: "lstm" or "gru".
        T, B, I, H: time steps, rows, input size, hidden size.
        P: output size; None without a projection.
        D: directions, 1 or 2.
        threads: None for ``torch.get_num_threads()``.
    """
    threads = torch.get_num_threads() if threads is None else threads
    return str(torch.ops.lstm_fused.plan(cell, T, B, I, H, H if P is None else P, D, threads))


def info() -> dict[str, Any]:
    """Versions, threads, instruction sets, CUDA and devices; what ``lstm-fused info`` prints."""
    from . import __version__  # here, since the package imports this module first

    why_no_cuda = str(torch.ops.lstm_fused.why_no_cuda())
    return {
        "version": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "isas_compiled": list(torch.ops.lstm_fused.isas_compiled()),
        "isas_available": available_isas(),
        "isa": isa(),
        "cuda_compiled": not why_no_cuda,
        "why_no_cuda": why_no_cuda,
        "devices": _devices(),
    }


def _devices() -> list[str]:
    cuda = [f"cuda:{k} {torch.cuda.get_device_name(k)}" for k in range(torch.cuda.device_count())]
    return [f"cpu {_cpu_name()}", *cuda]


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
