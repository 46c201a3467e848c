"""Rows on a CUDA device: timed by events or as graphs, on inputs that take turns.

Both layers get the same weights, inputs and Python around the call. A call takes the next of several copies of its
input, which together are twice the second-level cache: an input that the call before has left in the cache would
flatter both, and the one that reads it more often the more.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lstm_fused.bench import card, workload
from lstm_fused.bench.card import Card, CardFloor
from lstm_fused.bench.cases import Case
from lstm_fused.bench.floor import flops
from lstm_fused.bench.measure import Timing, interleave
from lstm_fused.bench.report import Row
from lstm_fused.bench.workload import Inputs, Workload, difference

if TYPE_CHECKING:
    from lstm_fused.bench.run import Settings

#: Copies of an input, at most: inputs too small to fill the cache with these stay in it, for both layers alike.
MOST_COPIES = 256
#: Calls in a graph, at most, each on a copy of its own.
CALLS_IN_A_GRAPH = 8


class Device:
    """What a run asks of the device. Tests put another in its place (`instrument`)."""

    kind, clock = "cuda", "events"
    gemm_sizes: Sequence[int] = (4096, 8192)
    copy_bytes = 1 << 30

    def describe(self) -> Card:
        """Facts."""
        return card.describe()

    def sample(self, call: Callable[[], object], calls: int, _clock: Callable[[], float]) -> float:
        """Seconds per call between two events on the stream, with gaps in which it waits for launches."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        seconds: float = start.elapsed_time(end) / 1e3
        return seconds / calls

    def captured(self, call: Callable[[], object], calls: int) -> Callable[[], object]:
        """`calls` calls as one graph."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                call()
        return graph.replay


def instrument() -> Device:
    """The device of a run. Raises RuntimeError where there is none, or no kernels for it."""
    why = card.why_none()
    if why:
        raise RuntimeError(f"--device cuda: {why}")
    return Device()


def measure_floor(dtype: str, device: Device, seconds: float) -> CardFloor:
    """Measures peak and bandwidth in about `seconds`; call inside `card.precision`."""

    def shortest(call: Callable[[], object], share: float) -> float:
        end, best, done = time.perf_counter() + share, math.inf, 0
        while done < 3 or time.perf_counter() < end:
            best = min(best, device.sample(call, 3, time.perf_counter))
            done += 1
        return best

    best, shape = 0.0, ""
    for n in device.gemm_sizes:
        a, b = (torch.randn(n, n, dtype=card.torch_dtype(dtype), device=device.kind) for _ in range(2))
        took = shortest(partial(torch.mm, a, b, out=torch.empty_like(a)), seconds / 3)
        if 2 * n**3 / took / 1e9 > best:
            best, shape = 2 * n**3 / took / 1e9, f"{n}x{n}x{n} {dtype}"
    source = torch.zeros(device.copy_bytes, dtype=torch.uint8, device=device.kind)
    took = shortest(partial(torch.empty_like(source).copy_, source), seconds / 3)
    return CardFloor(device.describe(), dtype, best, shape, 2 * device.copy_bytes / took / 1e9)


class Rotating(Workload):
    """A workload that takes the next copy of its input at each call."""

    def __init__(self, case: Case, mode: str, module: nn.Module, inputs: Inputs, copies: int) -> None:
        super().__init__(case, mode, module, inputs)
        stacked = self.data.detach().expand(copies, *self.data.shape).contiguous()
        leaves = [copy.detach().requires_grad_(mode == "training") for copy in stacked.unbind(0)]
        self.turns = itertools.cycle([(leaf, inputs.arguments(case, leaf)) for leaf in leaves])
        self.call = self.turn

    def turn(self) -> Any:
        """One call, on the next copy."""
        self.data, self.arguments = next(self.turns)
        return self.train() if self.mode == "training" else self.module(*self.arguments)


def copies_of(inputs: Inputs, l2: int) -> int:
    """How many copies of the input are twice the cache: at least two, at most MOST_COPIES."""
    size = inputs.data.numel() * inputs.data.element_size()
    return max(2, min(MOST_COPIES, math.ceil(2 * l2 / max(size, 1))))


def pair(case: Case, mode: str, dtype: torch.dtype, device: str, l2: int) -> dict[str, Rotating]:
    """Workloads "torch" and "lstm_fused" of one case, with the same weights and input."""
    torch.manual_seed(0)
    reference = workload.build(nn, case, dtype).to(device)
    ours = workload.build(workload.fused_library(), case, dtype).to(device)
    ours.load_state_dict(reference.state_dict())
    inputs = workload.make_inputs(case, dtype, device=device)
    copies = copies_of(inputs, l2)
    modules = {"torch": reference, "lstm_fused": ours}
    return {name: Rotating(case, mode, module, inputs, copies) for name, module in modules.items()}


def timings(
    works: Mapping[str, Rotating], device: Device, budget: float, as_graphs: bool
) -> tuple[dict[str, Timing], str]:
    """Both layers in turn, and by what they were timed.

    As graphs of some calls each, launches by the host are left out of both times; where one of the two cannot be
    captured neither is. A packed row is not asked to: a graph would hold the batch sizes of its capture.
    """
    calls, in_one, timed = {name: work.call for name, work in works.items()}, 1, device.clock
    if as_graphs:
        try:
            calls = {name: device.captured(call, CALLS_IN_A_GRAPH) for name, call in calls.items()}
            in_one, timed = CALLS_IN_A_GRAPH, "graph"
        except RuntimeError:
            timed += ", no graph"
    found = interleave(calls, budget, sampler=device.sample)
    return {name: scaled(timing, 1 / in_one) for name, timing in found.items()}, timed


def scaled(timing: Timing, factor: float) -> Timing:
    """Another unit of work: the same spread."""
    times = {name: getattr(timing, name) * factor for name in ("median", "q1", "q3")}
    return dataclasses.replace(timing, **times)


def measure_row(settings: Settings, case: Case, mode: str, floor: CardFloor) -> Row:
    """One row: compares results once, then times both layers. Call inside `card.precision`."""
    device, facts = instrument(), floor.card
    works = pair(case, mode, card.torch_dtype(settings.dtype), device.kind, facts.l2)
    gap = difference(works["lstm_fused"].results(), works["torch"].results())
    with works["torch"].context():
        found, timed = timings(works, device, settings.budget, as_graphs=settings.graphs and not case.packed)
    return Row(
        case=case,
        mode=mode,
        dtype=settings.dtype,
        threads=settings.threads,
        isa=facts.architecture,
        plan=card.plan(case, mode, settings.dtype, facts),
        torch=found["torch"],
        ours=found["lstm_fused"],
        flops=flops(case, mode),
        bound=card.bound(case, mode, floor),
        difference=gap,
        cudnn=card.cudnn_path(case, mode, settings.dtype, facts),
        timed=timed,
    )
