"""Side-by-side timing: peers take turns in one process until their medians stand still."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lstm_fused.bench.statistics import median, quantile, settled

#: One sample is at least this long, so that the clock and a Python loop do not show in it.
SAMPLE_SECONDS = 2e-3
#: Stop when every peer's median is known to this fraction of itself.
TOLERANCE = 0.01
#: A row is watched at least this long (or a third of its budget): slow drift must have a chance to show.
LEAST_SECONDS = 0.4
#: Samples that every peer gets even when the budget is already spent.
LEAST_SAMPLES = 3
#: Warm-up calls (at least): memory is mapped, threads are started, libraries have chosen their kernels.
WARM_UP_CALLS = 3


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one peer: median and quartiles over `samples` samples of `calls` calls each."""

    median: float
    q1: float
    q3: float
    samples: int
    calls: int
    settled: bool

    @property
    def spread(self) -> float:
        """Interquartile range as a fraction of the median."""
        return (self.q3 - self.q1) / self.median


def sample(call: Callable[[], object], calls: int, clock: Callable[[], float]) -> float:
    """Seconds per call over one run of `calls` calls."""
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls


#: Seconds per call of a call, over so many calls, by a clock or otherwise.
Sampler = Callable[[Callable[[], object], int, Callable[[], float]], float]


def warm_up(call: Callable[[], object], seconds: float, clock: Callable[[], float], sampler: Sampler = sample) -> float:
    """Calls until `seconds` are over and WARM_UP_CALLS are done; returns the shortest call's seconds."""
    end = clock() + seconds
    shortest, done = math.inf, 0
    while done < 2 or (done < WARM_UP_CALLS and shortest < seconds) or (clock() < end and done < 1000):
        shortest = min(shortest, sampler(call, 1, clock))
        done += 1
    return shortest


def interleave(
    peers: Mapping[str, Callable[[], object]],
    budget: float,
    *,
    tolerance: float = TOLERANCE,
    sample_seconds: float = SAMPLE_SECONDS,
    pause: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
    sampler: Sampler = sample,
) -> dict[str, Timing]:
    """Times `peers` in turn (A B A B ...) until all medians are settled or `budget` seconds are over.

    Turns matter: clock frequency and other processes' load drift over seconds, and hit neighbours in time
    alike. `pause` seconds pass before each sample where a peer brings a thread pool of its own, whose
    threads would otherwise still spin while the next peer is timed. Garbage collection waits outside. `sampler`
    takes one sample, `clock` the budget.
    The budget includes warm-up; every peer gets LEAST_SAMPLES samples whatever it says.
    """
    start = clock()
    calls = {}
    for name, call in peers.items():
        shortest = warm_up(call, 0.1 * budget / len(peers), clock, sampler)
        calls[name] = max(1, math.ceil(sample_seconds / max(shortest, 1e-9)))
    samples: dict[str, list[float]] = {name: [] for name in peers}
    earliest = clock() + min(LEAST_SECONDS, budget / 3)
    collecting = gc.isenabled()
    gc.disable()
    try:
        while True:
            for name, call in peers.items():
                if pause:
                    time.sleep(pause)
                samples[name].append(sampler(call, calls[name], clock))
            done = min(len(taken) for taken in samples.values())
            now = clock()
            if now >= earliest and all(settled(taken, tolerance) for taken in samples.values()):
                break
            if now - start >= budget and done >= LEAST_SAMPLES:
                break
    finally:
        if collecting:
            gc.enable()
    return {
        name: Timing(
            median=median(taken),
            q1=quantile(taken, 0.25),
            q3=quantile(taken, 0.75),
            samples=len(taken),
            calls=calls[name],
            settled=settled(taken, tolerance),
        )
        for name, taken in samples.items()
    }
