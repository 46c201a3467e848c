"""Rows beside a busy process: how much slower both layers get when something else wants a core.

One child process spins, pinned to one core after the other, while both layers are timed on all their threads.
A layer whose threads wait for each other by spinning loses whole scheduler slices here.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from lstm_fused.bench.cases import CONTENDED, Case, parse_grid
from lstm_fused.bench.machine import usable_cores
from lstm_fused.bench.measure import interleave, sample, warm_up
from lstm_fused.bench.report import ContendedRow
from lstm_fused.bench.statistics import median
from lstm_fused.bench.workload import pair

SAMPLES = 10
#: A sample spans several scheduler slices (a few milliseconds each), so that it feels the other process.
SAMPLE_SECONDS = 10e-3
#: Upper limit for the ten samples of one layer on one core: torch may be hundreds of times slower here.
LAYER_SECONDS = 8.0
#: On larger machines, this many cores in turn: more would say the same again.
MOST_CORES = 8

# Ends by itself when its parent is gone or its time is over, whatever happens to the parent.
BUSY = """
import os, sys, time
core, parent, end = int(sys.argv[1]), int(sys.argv[2]), time.monotonic() + float(sys.argv[3])
os.sched_setaffinity(0, {core})
print("busy", flush=True)
while time.monotonic() < end and os.getppid() == parent:
    for _ in range(100_000):
        pass
"""


@contextmanager
def busy_core(core: int, seconds: float = 300.0) -> Iterator[subprocess.Popen[str]]:
    """A child process that keeps `core` busy inside the block and is killed at its end.

    Raises RuntimeError where the system cannot pin a process (no os.sched_setaffinity) or the child fails.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise RuntimeError("--contended needs os.sched_setaffinity to pin a process to a core (Linux has it)")
    command = [sys.executable, "-c", BUSY, str(core), str(os.getpid()), str(seconds)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        if child.stdout is None or child.stdout.readline().strip() != "busy":
            raise RuntimeError(f"the busy process did not start on core {core}")
        yield child
    finally:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def median_of_ten(call: Callable[[], object], calls: int, clock: Callable[[], float]) -> float:
    """Median of SAMPLES samples of `calls` calls each; fewer samples once LAYER_SECONDS are over."""
    taken: list[float] = []
    end = clock() + LAYER_SECONDS
    while len(taken) < SAMPLES and (len(taken) < 3 or clock() < end):
        taken.append(sample(call, calls, clock))
    return median(taken)


def measure(
    case: Case,
    mode: str,
    calls: Mapping[str, Callable[[], object]],
    cores: list[int],
    clock: Callable[[], float],
) -> ContendedRow:
    """Times each of `calls` quiet (interleaved) and then with each of `cores` busy in turn."""
    timings = interleave(calls, 1.0, clock=clock)
    quiet = {name: timing.median for name, timing in timings.items()}
    busy: dict[int, dict[str, float]] = {}
    for core in cores:
        with busy_core(core):
            busy[core] = {}
            for name, call in calls.items():
                repeats = max(1, math.ceil(SAMPLE_SECONDS / quiet[name]))
                warm_up(call, 0.0, clock)
                busy[core][name] = median_of_ten(call, repeats, clock)
    return ContendedRow(case, mode, quiet, busy)


def contended_cases(cells: tuple[str, ...], modes: tuple[str, ...]) -> list[tuple[Case, str]]:
    """The few rows that are repeated: inference on every shape, training on the first (if asked for)."""
    found: list[tuple[Case, str]] = []
    for case in parse_grid(CONTENDED, cells):
        first = case.shape == parse_grid(CONTENDED, [case.cell])[0].shape
        found += [(case, mode) for mode in modes if mode == "inference" or first]
    return found


def contended_row(case: Case, mode: str, dtype: str, clock: Callable[[], float]) -> ContendedRow:
    """One case of both layers beside a busy process on each core in turn (MOST_CORES at most)."""
    workloads = pair(case, mode, getattr(torch, dtype))
    cores = usable_cores()[:MOST_CORES]
    with workloads["torch"].context():
        return measure(case, mode, {name: work.call for name, work in workloads.items()}, cores, clock)
