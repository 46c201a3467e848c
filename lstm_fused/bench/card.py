"""A CUDA device as the benchmark describes it: facts, which plan and which cuDNN path a row takes, its floor.

Floor of a row:

    floor = max(FLOPs / peak, bytes / BW)

    peak    the best of several large torch.mm in the row's dtype and precision
    BW      reading and writing of a large copy
    bytes   input, weights and output of each layer once, three times that in training: read or written forward, read
            again backward, and their gradients

FLOPs as `floor.py` has them. A recurrence of few rows is bound by neither but by its steps, each of which waits for the
one before: the table has the time a step for that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lstm_fused.bench.cases import Case
from lstm_fused.bench.floor import ITEMSIZE, Bound, flops, layer_inputs


@dataclass(frozen=True)
class Card:
    """What is said about the device: enough to read a number."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_per_block: int  # bytes, for a block that asks for them
    l2: int  # bytes
    memory: int  # bytes
    cuda: str  # of torch
    cudnn: str

    @property
    def architecture(self) -> str:
        """As in sm_90."""
        return "sm_" + "".join(map(str, self.capability))


@dataclass(frozen=True)
class CardFloor:
    """Measured limits of the device: GFLOP/s of GEMM in one dtype, GB/s of a copy."""

    card: Card
    dtype: str
    peak_gflops: float
    peak_shape: str  # the GEMM that reached it
    memory_gbs: float


def why_none() -> str:
    """Why no row can run on CUDA; empty if one can."""
    import lstm_fused  # noqa: F401, loads the operators

    why = str(torch.ops.lstm_fused.why_no_cuda())
    if why:
        return f"lstm_fused was built without CUDA kernels: {why}"
    return "" if torch.cuda.is_available() else f"torch {torch.__version__} finds no CUDA device"


def describe() -> Card:
    """The device that is current."""
    found: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Card(
        name=found.name,
        capability=(found.major, found.minor),
        multiprocessors=found.multi_processor_count,
        shared_per_block=found.shared_memory_per_block_optin,
        l2=found.L2_cache_size,
        memory=found.total_memory,
        cuda=str(torch.version.cuda),
        cudnn=str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
    )


def torch_dtype(name: str) -> torch.dtype:
    """The type of weights and input: tf32 is a way to multiply float32."""
    dtype: torch.dtype = getattr(torch, "float32" if name == "tf32" else name)
    return dtype


@contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Products of float32 in tf32 for that dtype, else as IEEE has them: in torch's layers and in its GEMMs alike."""
    settings: tuple[Any, ...] = (torch.backends.cudnn.rnn, torch.backends.cuda.matmul)
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


def cudnn_algorithm(case: Case, dtype: str, card: Card, backward: bool) -> str:
    """The algorithm that torch asks cuDNN for, by the conditions in torch's own source (`get_algo` of its cuDNN RNN).

    PERSIST_SMALL_H is CUDNN_RNN_ALGO_PERSIST_STATIC_SMALL_H, PERSIST is ..._PERSIST_STATIC. In both the recurrent
    weights stay on the chip; STANDARD reads them again at each step.
    """
    if case.module == "cell":
        return "none"  # torch's cells are made of its own operations
    if case.proj or case.packed:
        return "STANDARD"
    widest = 128 if backward else 192
    if dtype != "float64" and widest >= case.H:
        return "PERSIST_SMALL_H"
    aligned = case.H <= 1024 and case.H % 128 == 0 and case.I % 128 == 0
    plain = case.cell == "lstm" and case.layers == 1 and not case.bidirectional
    major, minor = card.capability
    able = major >= 8 and minor != 6 and card.multiprocessors >= 98
    if dtype == "float16" and aligned and plain and able and case.B % 8 == 0 and case.B <= 128:
        return "PERSIST"
    return "STANDARD"


def both_ways(forward: str, backward: str, mode: str) -> str:
    """What a row takes forward and, if it trains and is different, backward."""
    return forward if mode == "inference" or forward == backward else f"{forward}, backward {backward}"


def cudnn_path(case: Case, mode: str, dtype: str, card: Card) -> str:
    """Whether cuDNN's persistent kernels run in torch's row, and which."""
    forward, backward = (cudnn_algorithm(case, dtype, card, backward) for backward in (False, True))
    return both_ways(forward, backward, mode)


def plan(case: Case, mode: str, dtype: str, card: Card) -> str:
    """The plan of ours for the case's layers, in a word."""
    storage = ITEMSIZE[dtype]
    forced = os.environ.get("LSTM_FUSED_CUDA_PLAN", "")

    def word(backward: bool) -> str:
        said: str = torch.ops.lstm_fused.cuda_plan(
            *(case.T, case.B, case.H, case.gates, storage, max(storage, 4)),
            *(card.multiprocessors, card.shared_per_block, card.capability >= (8, 0)),
            *(dtype == "tf32", backward, forced, not case.packed),
        )
        return said.partition(",")[0]

    return both_ways(word(False), word(True), mode)


def least_bytes(case: Case, mode: str, itemsize: int) -> int:
    """Bytes that have to move, by the rule at the head of this file."""
    D, G, H, P = case.directions, case.gates, case.H, case.visible
    values = 0
    for inputs in layer_inputs(case):
        values += case.tokens * (inputs + D * P) + D * (G * H * (inputs + P) + H * case.proj)
    return (3 if mode == "training" else 1) * itemsize * values


def bound(case: Case, mode: str, floor: CardFloor) -> Bound:
    """The least time of one call, by the formula at the head of this file."""
    compute = flops(case, mode) / (floor.peak_gflops * 1e9)
    memory = least_bytes(case, mode, ITEMSIZE[floor.dtype]) / (floor.memory_gbs * 1e9)
    return Bound(memory, "memory") if memory > compute else Bound(compute, "compute")
