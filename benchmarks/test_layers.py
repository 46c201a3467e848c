"""pytest-benchmark suite over the same cases as `lstm-fused bench`, one group for each case and mode.

    pytest benchmarks --benchmark-columns=median,iqr,rounds          the quick grid
    LSTM_FUSED_BENCH_GRID=full pytest benchmarks -k "gru and training"

Each group holds torch's layer and ours on the same input and weights; two threads, or
LSTM_FUSED_BENCH_THREADS. For interleaved timing, ceilings and targets use the command: here each layer is
timed by itself, which suits comparing one commit with another (--benchmark-autosave, --benchmark-compare).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from lstm_fused.bench.cases import MODES, Case, grid
from lstm_fused.bench.floor import flops
from lstm_fused.bench.workload import pair

CASES = grid(os.environ.get("LSTM_FUSED_BENCH_GRID", "quick"))
THREADS = int(os.environ.get("LSTM_FUSED_BENCH_THREADS", "2"))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """THREADS threads for the benchmark, and what there was before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("layer", ["torch", "lstm_fused"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_layer(benchmark: BenchmarkFixture, case: Case, mode: str, layer: str) -> None:
    """Times one layer on one case; inference alone, or forward and backward."""
    work = pair(case, mode, torch.float32)[layer]
    benchmark.group = f"{case.name}, {mode}"
    benchmark.extra_info |= {"threads": THREADS, "gflop": flops(case, mode) / 1e9}
    with work.context():
        benchmark(work.call)
