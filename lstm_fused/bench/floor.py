"""The ceiling of this machine, measured before the rows, and the least time that a shape can take under it.

Two things bound a recurrent layer from below:

    arithmetic   FLOPs / peak              peak: the best of several large torch.mm, same dtype and threads
    weights      steps * bytes of U / BW   every step needs all of the recurrent matrix U once, because h_t is
                                           not known before h_{t-1}; BW: measured read bandwidth of the cache
                                           level that holds U, all threads together

    floor = max(FLOPs / peak, steps * bytes(U) / BW)

FLOPs of the forward pass, for each layer and direction and for each of the sum(lengths) row-steps (T*B
when nothing is packed), counting a multiply-add as two:

    2 G H (I + P)     four (LSTM) or three (GRU) gate products with x_t and h_{t-1}; P = H without projection
    + 2 H P           projection, if there is one

A training step is three times that (d input and d weights cost one forward each), and reads U twice a
step, once forward and once backward. Element-wise work, activations' traffic and thread barriers are not
counted: they are what keeps a real kernel off the floor.

The level that holds U is the smallest whose capacity over all threads is at least U: a unit split gives
each core only its share. U inside the first-level caches costs nothing extra, because cores load from there
as fast as they multiply.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lstm_fused.bench.cases import Case
from lstm_fused.bench.machine import Caches

if TYPE_CHECKING:
    import torch

ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "tf32": 4}
#: Working set of one thread when the last-level cache is measured: well past L2, and only a part of L3,
#: which other cores or, on a shared host, other guests use too.
L3_WORKING_SET = 4 * 1024 * 1024


@dataclass(frozen=True)
class Floor:
    """Measured limits: GFLOP/s of GEMM and GB/s of reading, for one dtype and thread count."""

    dtype: str
    threads: int
    peak_gflops: float
    peak_shape: str  # the GEMM that reached it
    l2_gbs: float
    l3_gbs: float
    memory_gbs: float
    caches: Caches

    def level(self, nbytes: int) -> str:
        """The smallest level (L1, L2, L3, memory) whose capacity over all threads is `nbytes` or more."""
        sharing = max(1, -(-self.threads // self.caches.l3_shared_by))  # last-level caches in use
        for name, capacity in (
            ("L1", self.caches.l1 * self.threads),
            ("L2", self.caches.l2 * self.threads),
            ("L3", self.caches.l3 * sharing),
        ):
            if nbytes <= capacity:
                return name
        return "memory"

    def bandwidth(self, level: str) -> float:
        """Bytes per second of a level, all threads together; infinite for L1."""
        gbs = {"L1": float("inf"), "L2": self.l2_gbs, "L3": self.l3_gbs, "memory": self.memory_gbs}
        return gbs[level] * 1e9


@dataclass(frozen=True)
class Bound:
    """The floor of one row: seconds, and which of the two terms it is ("compute" or the cache level)."""

    seconds: float
    limit: str


def layer_inputs(case: Case) -> list[int]:
    """Input size of each layer of a stack: I, then D*P."""
    return [case.I] + [case.directions * case.visible] * (case.layers - 1)


def flops(case: Case, mode: str) -> float:
    """FLOPs of one call, by the formula at the head of this file; `mode` is inference or training."""
    G, H, P = case.gates, case.H, case.visible
    per_token = sum(2 * G * H * (inputs + P) + (2 * H * P if case.proj else 0) for inputs in layer_inputs(case))
    passes = 3 if mode == "training" else 1
    return float(passes * case.directions * case.tokens * per_token)


def recurrent_bytes(case: Case, itemsize: int) -> int:
    """Bytes of the recurrent weights of one layer and direction: G*H x P, and P x H with a projection."""
    return itemsize * (case.gates * case.H * case.visible + (case.H * case.proj))


def bound(case: Case, mode: str, floor: Floor) -> Bound:
    """The least time of one call under `floor`, by the formula at the head of this file."""
    weights = recurrent_bytes(case, ITEMSIZE[floor.dtype])
    level = floor.level(weights)
    passes = 2 if mode == "training" else 1
    reads = passes * case.layers * case.directions * case.steps * weights
    compute = flops(case, mode) / (floor.peak_gflops * 1e9)
    memory = reads / floor.bandwidth(level)
    return Bound(memory, level) if memory > compute else Bound(compute, "compute")


def shortest(call: Callable[[], object], seconds: float) -> float:
    """The shortest of as many calls as fit into `seconds`, at least three: a ceiling wants the best case."""
    end = time.perf_counter() + seconds
    best = float("inf")
    done = 0
    while done < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        done += 1
    return best


def gemm_peak(dtype: torch.dtype, seconds: float = 1.5) -> tuple[float, str]:
    """GFLOP/s of the best of several large torch.mm at torch's present thread count, and its shape.

    For 16-bit types float32 is tried too and the better one taken: kernels accumulate in float32, and on a
    CPU without 16-bit arithmetic torch.mm on such types is no ceiling at all.
    """
    import torch

    best, shape = 0.0, ""
    dtypes = [dtype] if dtype in (torch.float32, torch.float64) else [dtype, torch.float32]
    sizes = [(512, 512, 512), (1024, 1024, 1024), (4096, 1024, 1024), (2048, 2048, 2048)]
    for tried in dtypes:
        for m, k, n in sizes:
            a, b = torch.randn(m, k).to(tried), torch.randn(k, n).to(tried)
            took = shortest(partial(torch.mm, a, b, out=a.new_empty(m, n)), seconds / len(sizes))
            rate = 2 * m * k * n / took / 1e9
            if rate > best:
                best, shape = rate, f"{m}x{k}x{n} {str(tried).removeprefix('torch.')}"
            if took > seconds / 10:  # larger ones take several times as long and gain little
                break
    return best, shape


def repeated_read(nbytes: int, threads: int, seconds: float) -> float:
    """GB/s, all threads together, of each thread reading its fill of one `nbytes` float32 working set.

    One row is expanded (stride 0) to many and summed row by row: threads split the rows, so that each
    reads the same few bytes again and again within a single call, whose overhead does not show.
    """
    import torch

    elements = nbytes // 4
    rows = threads * max(4, (32 << 20) // nbytes)
    many = torch.rand(elements).expand(rows, elements)
    out = torch.empty(rows)
    took = shortest(lambda: torch.sum(many, 1, out=out), seconds)
    return rows * elements * 4 / took / 1e9


def memory_read(nbytes: int, seconds: float) -> float:
    """GB/s of reading `nbytes` once with all threads: past every cache if nbytes is large enough."""
    import torch

    values = torch.ones(nbytes // 4)
    took = shortest(lambda: torch.sum(values), seconds)
    return nbytes / took / 1e9


def measure_floor(dtype: str, threads: int, caches: Caches, seconds: float = 3.0) -> Floor:
    """Measures peak and bandwidths in about `seconds`; torch's thread count must be `threads` already."""
    import torch

    peak, shape = gemm_peak(getattr(torch, dtype), seconds / 2)
    part = seconds / 6
    l3_set = max(4 * caches.l2, min(L3_WORKING_SET, caches.l3 // 4))
    memory_set = min(max(4 * caches.l3, 64 << 20), 1 << 30)
    l2, l3 = repeated_read(caches.l2 // 2, threads, part), repeated_read(l3_set, threads, part)
    memory = memory_read(memory_set, part)
    # A farther level is never the faster one; where timing says so, it is the nearer that was disturbed.
    l3 = max(l3, memory)
    return Floor(dtype, threads, peak, shape, max(l2, l3), l3, memory, caches)
