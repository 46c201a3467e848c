"""The benchmark's own arithmetic: grids, statistics, interleaving, the floor formula, the machine."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import pytest
import torch

from lstm_fused.bench import machine, measure, statistics
from lstm_fused.bench.cases import FULL, QUICK, Case, grid, parse_case, parse_grid
from lstm_fused.bench.floor import Floor, bound, flops, layer_inputs, measure_floor, recurrent_bytes
from lstm_fused.bench.machine import Caches

CACHES = Caches(l1=32 << 10, l2=512 << 10, l3=32 << 20, l3_shared_by=2)
FLOOR = Floor("float32", 2, 200.0, "1024x1024x1024", l2_gbs=100.0, l3_gbs=50.0, memory_gbs=20.0, caches=CACHES)


def test_parse_case_reads_sizes_and_options() -> None:
    case = parse_case("87,32,1,512 layers=3 bidirectional", "lstm")
    assert case == Case("lstm", 87, 32, 1, 512, layers=3, bidirectional=True)
    assert parse_case("50,16,512,512 proj=128", "lstm").visible == 128
    assert parse_case("1,1,256,256 cell", "gru").name == "GRUCell 1x1 256>256"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("100,8,64", "four integers"),
        ("100,8,64,x", "four integers"),
        ("100,8,64,64 twisted", "unknown option 'twisted'"),
        ("100,8,64,64 layers=x", "unknown option"),
        ("100,0,64,64", "B: expected at least 1"),
        ("100,8,64,64 proj=64", "proj: expected 0 <= proj < H"),
        ("2,8,64,64 cell", "module: a cell runs one step"),
    ],
)
def test_parse_case_names_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_case(text, "lstm")


def test_gru_has_no_projection() -> None:
    with pytest.raises(ValueError, match="only an LSTM"):
        parse_case("50,16,512,512 proj=128", "gru")
    assert len(parse_grid("1,1,8,8\n1,1,8,8 proj=4", ["lstm", "gru"])) == 3


def test_grids() -> None:
    full, quick, packed = grid("full"), grid("quick"), grid("packed")
    assert len(full) == 29 + 28 + 2
    assert len(set(full)) == len(full)
    assert set(quick) < set(full)
    assert 1 / 7 < len(QUICK.split("\n")[1:-1]) / len(FULL.split("\n")[1:-1]) < 1 / 5
    assert all(case.packed for case in packed)
    assert len({case.shape for case in packed}) == 8
    with pytest.raises(ValueError, match="grid: expected one of quick, full, packed"):
        grid("huge")


def test_lengths_are_uniform_seeded_and_unsorted() -> None:
    case = parse_case("1000,4000,8,8 packed", "lstm")
    assert case.lengths == parse_case("1000,4000,8,8 packed", "gru").lengths
    assert min(case.lengths) >= 1
    assert max(case.lengths) <= 1000
    assert abs(case.tokens / 4000 - 500.5) < 5 * 1000 / math.sqrt(12 * 4000)
    assert list(case.lengths) != sorted(case.lengths, reverse=True)
    assert parse_case("10,3,8,8", "lstm").lengths == (10, 10, 10)


def test_quantiles_match_linear_interpolation() -> None:
    assert statistics.median([3, 1, 2]) == 2
    assert statistics.quantile([0, 10], 0.25) == 2.5
    assert statistics.quantile([5], 0.9) == 5
    with pytest.raises(ValueError, match="at least one"):
        statistics.median([])


def test_median_interval_covers_the_median() -> None:
    draw = random.Random(1)
    for n in (7, 20, 51):
        hits = 0
        for _ in range(400):
            low, high = statistics.median_interval([draw.expovariate(1.0) for _ in range(n)])
            hits += low <= math.log(2) <= high
        assert hits >= 0.92 * 400
    assert statistics.median_interval([1, 2, 3]) == (1, 3)
    low, high = statistics.median_interval(range(3001))  # normal approximation: 1500 -+ 0.98 sqrt(3001)
    assert 1500 - low == high - 1500 == pytest.approx(0.98 * math.sqrt(3001), abs=1)
    # Known value: 20 samples, 95 %: the 6th and the 15th.
    assert statistics.median_interval(range(1, 21)) == (6, 15)


def test_settled_wants_enough_samples_that_agree() -> None:
    assert not statistics.settled([1.0] * 6, 0.01)
    assert statistics.settled([1.0] * 7, 0.01)
    assert not statistics.settled([1.0, 1.1] * 10, 0.01)


def test_geometric_mean() -> None:
    assert statistics.geometric_mean([1, 4]) == pytest.approx(2)
    for wrong in ([], [1, 0]):
        with pytest.raises(ValueError, match="positive"):
            statistics.geometric_mean(wrong)


class Clock:
    """A clock that only the calls under test move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def test_interleave_takes_turns_and_settles() -> None:
    clock, order = Clock(), []

    def peer(name: str, seconds: float) -> None:
        order.append(name)
        clock.advance(seconds)

    calls = {"a": lambda: peer("a", 0.010), "b": lambda: peer("b", 0.020)}
    found = measure.interleave(calls, 5.0, clock=clock)
    assert found["a"].median == pytest.approx(0.010)
    assert found["b"].median == pytest.approx(0.020)
    assert found["a"].settled
    assert clock.now < 2.0  # settled long before the budget
    turns = order[-2 * found["b"].samples :]
    assert turns == ["a", "b"] * found["b"].samples


def test_interleave_ends_with_the_budget_and_says_so() -> None:
    clock, wobble = Clock(), itertools.cycle([0.05, 0.15])
    found = measure.interleave({"noisy": lambda: clock.advance(next(wobble))}, 3.0, clock=clock)["noisy"]
    assert not found.settled
    assert 3.0 <= clock.now < 3.3
    slow = measure.interleave({"slow": lambda: clock.advance(100.0)}, 1.0, clock=clock)["slow"]
    assert slow.samples == measure.LEAST_SAMPLES


def test_short_calls_are_repeated_within_a_sample() -> None:
    clock = Clock()
    found = measure.interleave({"short": lambda: clock.advance(1e-5)}, 1.0, clock=clock)["short"]
    assert found.calls >= 200
    assert found.median == pytest.approx(1e-5)


def test_flops_by_hand() -> None:
    assert flops(Case("lstm", 10, 3, 5, 7), "inference") == 30 * 2 * 4 * 7 * (5 + 7)
    assert flops(Case("gru", 10, 3, 5, 7), "training") == 3 * 30 * 2 * 3 * 7 * (5 + 7)
    stack = Case("lstm", 10, 3, 5, 7, layers=2, bidirectional=True)
    assert layer_inputs(stack) == [5, 14]
    assert flops(stack, "inference") == 2 * 30 * 2 * 28 * ((5 + 7) + (14 + 7))
    projected = Case("lstm", 10, 3, 5, 7, proj=2)
    assert flops(projected, "inference") == 30 * (2 * 28 * (5 + 2) + 2 * 7 * 2)
    packed = parse_case("10,3,5,7 packed", "lstm")
    assert flops(packed, "inference") == sum(packed.lengths) * 2 * 28 * 12


def test_bound_is_the_larger_of_arithmetic_and_weights() -> None:
    narrow = Case("lstm", 100, 1, 256, 256)  # U: 1 MiB, half in each core's L2
    assert recurrent_bytes(narrow, 4) == 1 << 20
    assert FLOOR.level(1 << 20) == "L2"
    by_weights = 100 * (1 << 20) / 100e9
    by_arithmetic = flops(narrow, "inference") / 200e9
    assert by_weights > by_arithmetic
    found = bound(narrow, "inference", FLOOR)
    assert found.limit == "L2"
    assert found.seconds == pytest.approx(by_weights)
    assert bound(narrow, "training", FLOOR).seconds == pytest.approx(max(2 * by_weights, 3 * by_arithmetic))
    found = bound(Case("lstm", 100, 64, 256, 256), "inference", FLOOR)
    assert found.limit == "compute"
    assert found.seconds == pytest.approx(64 * by_arithmetic)


def test_levels() -> None:
    sizes = {"L1": 64 << 10, "L2": 1 << 20, "L3": 32 << 20}
    for level, capacity in sizes.items():
        assert FLOOR.level(capacity) == level
        assert FLOOR.level(capacity + 1) != level
    assert FLOOR.level(1 << 30) == "memory"
    assert bound(Case("lstm", 9, 1, 8, 8), "inference", FLOOR).limit == "compute"


def test_measured_floor_is_plausible() -> None:
    found = measure_floor("float32", torch.get_num_threads(), CACHES, seconds=0.2)
    assert found.peak_gflops > 1
    assert found.l2_gbs >= found.l3_gbs >= found.memory_gbs > 0.1


def test_caches_are_read_or_said_to_be_assumed(tmp_path: Path) -> None:
    entries = [(1, "Data", "48K", "0"), (1, "Instruction", "32K", "0"), (2, "Unified", "2048K", "0"),
               (3, "Unified", "30M", "0-3,8-11")]  # fmt: skip
    for index, (level, kind, size, shared) in enumerate(entries):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in zip(("level", "type", "size", "shared_cpu_list"), (level, kind, size, shared), strict=True):
            (folder / name).write_text(f"{text}\n")
    assert machine.read_caches(tmp_path) == Caches(48 << 10, 2 << 20, 30 << 20, 8)
    assert machine.read_caches(tmp_path / "nowhere").assumed


def test_cpu_model(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast CPU @ 9 GHz\n")
    assert machine.cpu_model(tmp_path / "cpuinfo") == "Fast CPU @ 9 GHz"
    assert machine.cpu_model(tmp_path / "nowhere")
