"""Runs the benchmark: sets threads and instruction set, then yields one row after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lstm_fused.bench import card, cuda
from lstm_fused.bench.card import CardFloor
from lstm_fused.bench.cases import MODES, Case
from lstm_fused.bench.contended import contended_cases, contended_row
from lstm_fused.bench.floor import Floor, bound, flops, measure_floor
from lstm_fused.bench.machine import describe, read_caches
from lstm_fused.bench.measure import interleave
from lstm_fused.bench.peers import UnsupportedPeerError, peer_workload, require
from lstm_fused.bench.report import ContendedRow, Failure, PeerResult, Report, Row
from lstm_fused.bench.workload import Workload, difference, make_inputs, pair

#: A peer's own threads spin for a while after a call, and must be asleep when others are timed.
PEER_PAUSE = 5e-3
#: How long the ceiling of the machine or the CUDA device is measured before the rows.
FLOOR_SECONDS = 4.0
CARD_FLOOR_SECONDS = 1.0


@dataclass(frozen=True)
class Settings:
    """What to run and how; `cases` already hold the cells asked for."""

    cases: tuple[Case, ...]
    modes: tuple[str, ...] = MODES
    threads: int = 2
    dtype: str = "float32"
    isa: str = ""  # "": what the library chooses by itself
    peers: tuple[str, ...] = ()
    budget: float = 4.0  # seconds a row
    contended: bool = False
    variants: bool = False
    floor_seconds: float = 0.0  # 0: FLOOR_SECONDS or CARD_FLOOR_SECONDS
    device: str = "cpu"
    graphs: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for settings that the device does not have."""
        if self.device == "cpu" and (self.dtype == "tf32" or self.graphs):
            raise ValueError("tf32 and --graphs: expected --device cuda, got cpu")
        if self.device == "cuda" and (self.isa or self.peers or self.contended or self.variants):
            raise ValueError("--isa, --peer, --variants and --contended: expected --device cpu, got cuda")

    @property
    def total(self) -> int:
        """Rows that a whole run has, contended ones and variants apart."""
        return len(self.cases) * len(self.modes)


@contextmanager
def environment(settings: Settings) -> Iterator[None]:
    """torch's thread count, instruction set and precision as asked, for the block; put back afterwards."""
    from lstm_fused import runtime

    threads = torch.get_num_threads()
    forced: AbstractContextManager[Any] = runtime.use_isa(settings.isa) if settings.isa else nullcontext()
    products: AbstractContextManager[Any] = nullcontext()
    if settings.device == "cuda":
        products = card.precision(settings.dtype)
    torch.set_num_threads(settings.threads)
    try:
        with forced, products:
            yield
    finally:
        torch.set_num_threads(threads)


def start(settings: Settings) -> Report:
    """Checks peers and device, then measures the floor: a report without rows. Call inside `environment`."""
    for name in settings.peers:
        require(name)
    kept = asdict(settings)
    kept["cases"] = [case.name for case in settings.cases]
    if settings.device == "cuda":
        device = cuda.instrument()
        limits = cuda.measure_floor(settings.dtype, device, settings.floor_seconds or CARD_FLOOR_SECONDS)
        return Report(describe(settings.threads), limits, settings=kept)
    seconds = settings.floor_seconds or FLOOR_SECONDS
    return Report(
        machine=describe(settings.threads),
        floor=measure_floor(settings.dtype, settings.threads, read_caches(), seconds),
        settings=kept,
    )


def chosen_plan(case: Case, threads: int) -> str:
    """The plan that the library chooses for the case's first layer; a single step has none to choose."""
    from lstm_fused import runtime

    if case.module == "cell":
        return "step"
    c = case
    return runtime.plan(c.cell, T=c.T, B=c.B, I=c.I, H=c.H, P=c.visible, D=c.directions, threads=threads)


def first_line(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def peer_workloads(
    settings: Settings, case: Case, mode: str, reference: Workload
) -> tuple[dict[str, Workload], dict[str, PeerResult]]:
    """The peers that can run this row, warmed up once, and the reasons of those that cannot."""
    dtype = getattr(torch, settings.dtype)
    ready: dict[str, Workload] = {}
    results: dict[str, PeerResult] = {}
    for name in settings.peers:
        try:
            module = reference.module
            work = peer_workload(name, case, mode, module, make_inputs(case, dtype), settings.threads, dtype)
            results[name] = PeerResult(difference=difference(work.results(), reference.results()))
            ready[name] = work
        except UnsupportedPeerError as reason:
            results[name] = PeerResult(reason=str(reason))
        except Exception as error:  # a peer's own fault is a remark in the row, not the end of the run
            results[name] = PeerResult(reason=first_line(error))
    return ready, results


def measure_row(settings: Settings, case: Case, mode: str, floor: Floor | CardFloor) -> Row:
    """One row: compares results once, then times all layers in turn."""
    from lstm_fused import runtime

    if isinstance(floor, CardFloor):
        return cuda.measure_row(settings, case, mode, floor)
    workloads = pair(case, mode, getattr(torch, settings.dtype))
    gap = difference(workloads["lstm_fused"].results(), workloads["torch"].results())
    extra, peers = peer_workloads(settings, case, mode, workloads["torch"])
    calls = {name: work.call for name, work in {**workloads, **extra}.items()}
    with workloads["torch"].context():
        timings = interleave(calls, settings.budget, pause=PEER_PAUSE if extra else 0.0)
    for name in extra:
        peers[name] = PeerResult(timings[name], peers[name].difference)
    return Row(
        case=case,
        mode=mode,
        dtype=settings.dtype,
        threads=settings.threads,
        isa=runtime.isa(),
        plan=chosen_plan(case, settings.threads),
        torch=timings["torch"],
        ours=timings["lstm_fused"],
        flops=flops(case, mode),
        bound=bound(case, mode, floor),
        difference=gap,
        peers=peers,
    )


def rows(settings: Settings, floor: Floor | CardFloor) -> Iterator[Row | Failure]:
    """Every case in every mode. A layer that raises gives a Failure, and the run goes on."""
    for case in settings.cases:
        for mode in settings.modes:
            try:
                yield measure_row(settings, case, mode, floor)
            except Exception as error:
                yield Failure(case, mode, f"{type(error).__name__}: {error}")


def contended_rows(settings: Settings, clock: Callable[[], float] = time.perf_counter) -> Iterator[ContendedRow]:
    """The contended rows for the cells and modes of `settings`."""
    cells = tuple(dict.fromkeys(case.cell for case in settings.cases))
    for case, mode in contended_cases(cells, settings.modes):
        yield contended_row(case, mode, settings.dtype, clock)
