"""Rows on a CUDA device, with no device: cuDNN's paths, the floor, inputs that take turns, graphs, tables, files."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from emulated_bench import NAME, Emulated
from rich.console import Console
from typer.testing import CliRunner

from lstm_fused import cli
from lstm_fused.bench import card, cuda, run, table
from lstm_fused.bench.card import Card, CardFloor
from lstm_fused.bench.cases import GRIDS, Case, grid, parse_case, parse_grid
from lstm_fused.bench.plot import plot
from lstm_fused.bench.report import Report, Row, load_json, save_csv, save_json

H100 = Card("H100", (9, 0), 132, 227 << 10, 50 << 20, 80 << 30, "13.0", "91000")
A30 = replace(H100, name="A30", capability=(8, 0), multiprocessors=56)
A40 = replace(H100, name="A40", capability=(8, 6), multiprocessors=84)
T4 = replace(H100, name="T4", capability=(7, 5), multiprocessors=40, shared_per_block=64 << 10)
FLOOR = CardFloor(H100, "float16", 500_000.0, "8192x8192x8192 float16", 3000.0)


@pytest.mark.parametrize(
    ("text", "dtype", "device", "wanted"),
    [
        ("1024,16,768,768", "float16", H100, ("PERSIST", "PERSIST")),
        ("1024,16,768,768", "bfloat16", H100, ("STANDARD", "STANDARD")),
        ("1024,16,768,768", "tf32", H100, ("STANDARD", "STANDARD")),
        ("100,16,768,768", "float16", A30, ("STANDARD", "STANDARD")),
        ("100,16,768,768", "float16", A40, ("STANDARD", "STANDARD")),
        ("100,16,768,768", "float16", T4, ("STANDARD", "STANDARD")),
        ("100,1,768,768", "float16", H100, ("STANDARD", "STANDARD")),  # rows in eights
        ("100,136,768,768", "float16", H100, ("STANDARD", "STANDARD")),
        ("100,16,100,768", "float16", H100, ("STANDARD", "STANDARD")),
        ("100,16,768,2048", "float16", H100, ("STANDARD", "STANDARD")),
        ("100,16,768,768 layers=2", "float16", H100, ("STANDARD", "STANDARD")),
        ("100,16,768,768 bidirectional", "float16", H100, ("STANDARD", "STANDARD")),
        ("100,16,768,768 packed", "float16", H100, ("STANDARD", "STANDARD")),
        ("100,3,7,128", "float32", H100, ("PERSIST_SMALL_H", "PERSIST_SMALL_H")),
        ("100,3,7,192 bidirectional layers=2", "bfloat16", T4, ("PERSIST_SMALL_H", "STANDARD")),
        ("100,3,7,193", "float32", H100, ("STANDARD", "STANDARD")),
        ("100,3,7,64", "float64", H100, ("STANDARD", "STANDARD")),
        ("100,3,7,64 packed", "float32", H100, ("STANDARD", "STANDARD")),
        ("100,3,7,64 proj=8", "float32", H100, ("STANDARD", "STANDARD")),
        ("1,3,7,64 cell", "float32", H100, ("none", "none")),
    ],
)
def test_cudnn_paths_of_the_lstm(text: str, dtype: str, device: Card, wanted: tuple[str, str]) -> None:
    case = parse_case(text, "lstm")
    assert tuple(card.cudnn_algorithm(case, dtype, device, backward) for backward in (False, True)) == wanted


def test_cudnn_paths_of_rows() -> None:
    case = parse_case("100,3,7,192", "lstm")
    assert card.cudnn_path(case, "inference", "float16", H100) == "PERSIST_SMALL_H"
    assert card.cudnn_path(case, "training", "float16", H100) == "PERSIST_SMALL_H, backward STANDARD"
    gru = parse_case("100,16,768,768", "gru")
    assert card.cudnn_path(gru, "training", "float16", H100) == "STANDARD"
    assert card.cudnn_path(replace(gru, H=64), "training", "float16", H100) == "PERSIST_SMALL_H"


def test_plans_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert card.plan(parse_case("100,16,8,8", "lstm"), "inference", "float32", H100) == "block"
    assert card.plan(parse_case("9,16,8,9000", "lstm"), "training", "float16", T4) == "grid"
    assert card.both_ways("grid", "step", "training") == "grid, backward step"
    monkeypatch.setenv("LSTM_FUSED_CUDA_PLAN", "step")
    assert card.plan(parse_case("100,16,64,64", "lstm"), "inference", "tf32", H100) == "step"


def test_bound_by_hand() -> None:
    case = Case("lstm", 10, 3, 5, 7, layers=2, bidirectional=True)
    values = 30 * (5 + 14) + 2 * 28 * (5 + 7) + 30 * (14 + 14) + 2 * 28 * (14 + 7)
    assert card.least_bytes(case, "inference", 2) == 2 * values
    assert card.bound(case, "training", FLOOR).limit == "memory"
    assert card.bound(case, "training", FLOOR).seconds == pytest.approx(6 * values / 3000e9)
    large = Case("gru", 100, 128, 1024, 1024)
    assert card.bound(large, "inference", FLOOR).limit == "compute"
    assert card.bound(large, "inference", FLOOR).seconds == pytest.approx(12800 * 2 * 3 * 1024 * 2048 / 500e12)


def test_the_grid_has_what_matters_on_a_gpu() -> None:
    cases = grid("cuda", ["lstm"])
    assert (cases[0].T, cases[0].B, cases[0].H) == (1024, 16, 768)
    assert {64, 128, 256, 512, 1024} <= {case.H for case in cases}
    assert {1, 16, 64, 128} <= {case.B for case in cases}
    assert any(case.bidirectional for case in cases) and any(case.layers > 1 for case in cases)
    assert any(case.packed for case in cases) and not any(case.module == "cell" for case in cases)
    paths = {card.cudnn_path(case, mode, "float16", H100) for case in cases for mode in ("inference", "training")}
    assert {"PERSIST", "PERSIST_SMALL_H", "STANDARD"} <= paths
    assert set(cli.BUDGETS) == set(GRIDS) == {choice.value for choice in cli.Grid}


def test_precision_is_put_back() -> None:
    settings = (torch.backends.cudnn.rnn, torch.backends.cuda.matmul)
    before = [setting.fp32_precision for setting in settings]
    for dtype, wanted in (("tf32", "tf32"), ("float32", "ieee"), ("float16", "ieee")):
        with card.precision(dtype):
            assert [setting.fp32_precision for setting in settings] == [wanted, wanted]
    assert [setting.fp32_precision for setting in settings] == before


# ---- rows, with tensors in the host's memory and the CPU's kernels in the place of CUDA's ------------------------


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Emulated:
    found = Emulated()
    monkeypatch.setattr(cuda, "instrument", lambda: found)
    return found


def settings_of(text: str, **changes: object) -> run.Settings:
    cases = tuple(parse_grid(text, ["lstm", "gru"]))
    base = run.Settings(cases, threads=1, budget=0.02, floor_seconds=0.05, device="cuda", dtype="float64")
    return replace(base, **changes)  # type: ignore[arg-type]


def run_all(settings: run.Settings) -> Report:
    with run.environment(settings):
        report = run.start(settings)
        for found in run.rows(settings, report.floor):
            assert isinstance(found, Row), found
            report.rows.append(found)
    return report


def test_a_tiny_run_end_to_end(device: Emulated, tmp_path: Path) -> None:
    report = run_all(settings_of("5,2,4,6\n5,2,4,6 packed bidirectional\n1,2,4,6\n1,2,4,6 cell"))
    assert len(report.rows) == 16
    for row in report.rows:
        assert row.difference.absolute < 1e-12, row.case.name
        assert row.ratio > 0 and row.fraction > 0 and row.plan and row.cudnn
        assert (row.isa, row.timed) == ("sm_90", "wall clock")
    save_json(report, tmp_path / "run.json")
    again = load_json(tmp_path / "run.json")
    assert (again.rows, again.floor, again.card) == (report.rows, report.floor, device.describe())
    save_csv(report, tmp_path / "run.csv")
    with (tmp_path / "run.csv").open() as file:
        assert {line["cudnn"] for line in csv.DictReader(file)} == {"STANDARD", "none"}
    plot(report, tmp_path / "run.png")
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    console.print(table.floor_table(report))
    console.print(table.rows_table(report))
    text = console.export_text()
    for expected in (NAME, "GEMM peak", "memory bandwidth", "a step", "STANDARD", "wall clock", "float64"):
        assert expected in text


def test_calls_take_another_copy_of_the_input_each(device: Emulated) -> None:
    """Together they are twice the cache, and results are the same from each."""
    l2 = device.describe().l2
    for mode in ("inference", "training"):
        works = cuda.pair(parse_case("5,2,4,6", "lstm"), mode, torch.float64, "cpu", l2)
        work = works["lstm_fused"]
        size = work.data.numel() * work.data.element_size()
        first, seen = work.results(), {work.data.data_ptr()}
        while True:
            again = work.results()
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
            if work.data.data_ptr() in seen:
                break
            seen.add(work.data.data_ptr())
        assert 2 * l2 <= len(seen) * size < 2 * l2 + size
        assert max(seen) - min(seen) == (len(seen) - 1) * size


def test_copies_are_some_and_not_too_many() -> None:
    inputs = cuda.workload.make_inputs(parse_case("5,2,4,6", "lstm"), torch.float32)
    assert cuda.copies_of(inputs, 1) == 2
    assert cuda.copies_of(inputs, 1 << 30) == cuda.MOST_COPIES


def test_graphs_where_both_layers_can_be_captured(device: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    def several(call: Callable[[], object], calls: int) -> Callable[[], object]:
        return lambda: [call() for _ in range(calls)]

    refused = run_all(settings_of("3,2,4,6", graphs=True, modes=("inference",)))
    assert [row.timed for row in refused.rows] == ["wall clock, no graph"] * 2
    monkeypatch.setattr(device, "captured", several)
    report = run_all(settings_of("3,2,4,6\n3,2,4,6 packed", graphs=True))
    assert {(row.case.packed, row.timed) for row in report.rows} == {(False, "graph"), (True, "wall clock")}


def test_times_of_graphs_are_those_of_a_call() -> None:
    """A device whose every replay takes 8 ms, of 8 calls."""

    class Slow(Emulated):
        def sample(self, call: Callable[[], object], calls: int, _clock: Callable[[], float]) -> float:
            return 8e-3

        def captured(self, call: Callable[[], object], calls: int) -> Callable[[], object]:
            assert calls == cuda.CALLS_IN_A_GRAPH == 8
            return call

    works = cuda.pair(parse_case("2,2,4,6", "gru"), "inference", torch.float32, "cpu", 1)
    found, timed = cuda.timings(works, Slow(), 0.01, as_graphs=True)
    assert timed == "graph"
    assert [timing.median for timing in found.values()] == [pytest.approx(1e-3)] * 2


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "tf32"], "expected --device cuda, got cpu"),
        (["--graphs"], "expected --device cuda, got cpu"),
        (["--device", "cuda", "--isa", "scalar"], "expected --device cpu, got cuda"),
        (["--device", "cuda", "--contended"], "expected --device cpu, got cuda"),
        (["--device", "cuda", "--peer", "onnxruntime"], "expected --device cpu, got cuda"),
    ],
)
def test_settings_that_a_device_lacks(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(cli.app, ["bench", *arguments])
    assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output


@pytest.mark.skipif(not card.why_none(), reason="there is a CUDA device")
def test_without_a_device_or_kernels() -> None:
    result = CliRunner().invoke(cli.app, ["bench", "--device", "cuda"])
    said = " ".join(result.output.split())
    assert result.exit_code == 2 and "--device cuda: " in said, said
    assert "was built without CUDA kernels: it was built for" in said or "finds no CUDA device" in said, said
