"""What a benchmark run leaves behind: JSON, CSV, merged runs, targets, tables and the picture."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lstm_fused.bench import machine, run, table, targets
from lstm_fused.bench.cases import Case, parse_case
from lstm_fused.bench.floor import Bound, Floor
from lstm_fused.bench.machine import Caches, Machine
from lstm_fused.bench.measure import Timing
from lstm_fused.bench.plot import plot
from lstm_fused.bench.report import (
    CSV_COLUMNS,
    ContendedRow,
    Failure,
    PeerResult,
    Report,
    Row,
    VariantRow,
    load_json,
    merge,
    save_csv,
    save_json,
)
from lstm_fused.bench.workload import Difference

CACHES = Caches(l1=32 << 10, l2=512 << 10, l3=32 << 20, l3_shared_by=2)
FLOOR = Floor("float32", 2, 200.0, "1024x1024x1024", l2_gbs=100.0, l3_gbs=50.0, memory_gbs=20.0, caches=CACHES)
MACHINE = Machine("some CPU", "Linux x86_64", 2, CACHES, 2, "avx2", ("scalar", "avx2"), "2.13.0", "3.11.7", "0.1.0")


def make_row(case: Case, mode: str = "inference", ratio: float = 2.0, **changes: Any) -> Row:
    """A row in which torch takes `ratio` ms and ours 1 ms."""
    ours = Timing(1e-3, 0.9e-3, 1.2e-3, 9, 2, True)
    theirs = dataclasses.replace(ours, median=ratio * 1e-3)
    row = Row(
        case,
        mode,
        "float32",
        2,
        "avx2",
        "units 1x2",
        theirs,
        ours,
        1e6,
        Bound(2e-4, "L2"),
        Difference(1e-6, 1e-7),
    )
    return dataclasses.replace(row, **changes)


def make_report(rows: list[Row], **changes: Any) -> Report:
    return dataclasses.replace(Report(MACHINE, FLOOR, rows), **changes)


def example_report() -> Report:
    timing = Timing(2e-3, 1e-3, 3e-3, 7, 1, False)
    peers_found = {
        "onnxruntime": PeerResult(timing, Difference(1e-6, 1e-7)),
        "openvino": PeerResult(reason="no"),
    }
    rows = [
        make_row(parse_case("100,32,256,256 packed", "lstm"), ratio=8.0),
        make_row(parse_case("100,1,256,256", "lstm"), ratio=3.0, peers=peers_found),
        make_row(parse_case("100,1,256,256", "gru"), "training", ratio=0.9),
        make_row(parse_case("1,1,256,256 cell", "lstm"), ratio=4.0),
        make_row(parse_case("1,1,256,256", "lstm"), ratio=6.0),
    ]
    beside = ContendedRow(
        rows[1].case, "inference", {"torch": 2e-3, "lstm_fused": 1e-3},
        {0: {"torch": 0.1, "lstm_fused": 2e-3}, 1: {"torch": 0.2, "lstm_fused": 3e-3}},
    )  # fmt: skip
    return make_report(
        rows,
        failures=[Failure(rows[0].case, "training", "boom")],
        contended=[beside],
        variants=[
            VariantRow(rows[1].case, "training", "resets", timing, dataclasses.replace(timing, median=3e-3), 1.05)
        ],
        settings={"budget": 1.0},
    )


def test_json_round_trip(tmp_path: Path) -> None:
    report = example_report()
    save_json(report, tmp_path / "run.json")
    assert load_json(tmp_path / "run.json") == report
    plain = json.loads((tmp_path / "run.json").read_text())
    assert plain["rows"][0]["ratio"] == pytest.approx(8.0)
    del plain["variants"]  # as before there were any
    (tmp_path / "older.json").write_text(json.dumps(plain))
    assert load_json(tmp_path / "older.json") == dataclasses.replace(report, variants=[])
    plain["schema"] = 99
    (tmp_path / "other.json").write_text(json.dumps(plain))
    with pytest.raises(ValueError, match="expected schema 1, got 99"):
        load_json(tmp_path / "other.json")


def test_json_names_no_host_and_no_path(tmp_path: Path) -> None:
    save_json(make_report([], machine=machine.describe(2)), tmp_path / "run.json")
    text = (tmp_path / "run.json").read_text()
    assert os.uname().nodename not in text
    assert str(Path.home()) not in text
    assert str(Path(run.__file__).parents[2]) not in text


def test_csv_has_a_line_for_each_row(tmp_path: Path) -> None:
    report = example_report()
    save_csv(report, tmp_path / "run.csv")
    with (tmp_path / "run.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0])[: len(CSV_COLUMNS)] == list(CSV_COLUMNS)
    assert [float(line["ratio"]) for line in lines] == [pytest.approx(row.ratio) for row in report.rows]
    assert [line["onnxruntime_s"] for line in lines] == ["", "0.002", "", "", ""]


def test_merge_takes_the_run_with_the_median_ratio() -> None:
    case, other = parse_case("100,1,256,256", "lstm"), parse_case("100,8,64,64", "lstm")
    runs = [make_report([make_row(case, ratio=ratio)]) for ratio in (1.0, 3.0, 2.0)]
    runs[0].rows.append(make_row(other))  # not in every run
    merged = merge(runs)
    assert [row.ratio for row in merged.rows] == [pytest.approx(2.0)]
    assert merged.runs == 3
    with pytest.raises(ValueError, match="at least one"):
        merge([])


def test_targets() -> None:
    found = {target.name: target for target in targets.evaluate(example_report())}
    never = found["never slower, every row"]
    assert never.measured == pytest.approx(0.9)
    assert never.met is False
    assert "GRU 100x1 256>256, training; 1 of 5 rows below" in never.remark
    latency = found["latency-bound, inference, geometric mean"]
    assert latency.measured == pytest.approx(math.sqrt(3 * 6))  # the packed row and the cell are not in it
    assert found["packed, geometric mean"].measured == pytest.approx(8.0)
    assert "shapes: 1; --grid packed has 8" in found["packed, geometric mean"].remark
    assert found["streaming step, nn.LSTMCell / lstm_fused.LSTMCell"].met is True
    assert found["streaming step, nn.LSTM / lstm_fused.LSTM"].met is True
    assert found["GRU B > 8, geometric mean"].met is None
    contention = found["slow-down with one core busy, worst row"]
    assert contention.measured == pytest.approx(3.0)
    assert contention.met is True
    assert "torch 100.0x" in contention.remark


def test_tables_and_plot(tmp_path: Path) -> None:
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    report = example_report()
    for made in (table.floor_table, table.rows_table, table.contended_table, table.variants_table, table.targets_table):
        console.print(made(report))
    text = console.export_text()
    for expected in (
        "GEMM peak",
        "200 GFLOP/s",
        "units 1x2, avx2",
        "LSTM 100x32 256>256 packed",
        "missed",
        "20%",
        "resets",
        "1.50",
    ):
        assert expected in text
    plot(report, tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no rows"):
        plot(make_report([]), tmp_path / "none.png")


@pytest.mark.parametrize(
    ("value", "text"), [(2.5, "2.5 s"), (0.01234, "12.3 ms"), (5e-6, "5 us"), (0.9996, "1e+03 ms")]
)
def test_seconds(value: float, text: str) -> None:
    assert table.seconds(value) in (text, "1000 ms")
