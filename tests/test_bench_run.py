"""Rows as they are run: both layers on the same work, one tiny run end to end, peers, contention."""

from __future__ import annotations

import contextlib
import math
import os
import time
from pathlib import Path

import pytest
import torch

from lstm_fused.bench import contended, machine, peers, run, variants, workload
from lstm_fused.bench.cases import Case, parse_case, parse_grid
from lstm_fused.bench.floor import Floor
from lstm_fused.bench.machine import Caches
from lstm_fused.bench.report import Failure, Row, load_json, save_json
from lstm_fused.bench.workload import Difference

CACHES = Caches(l1=32 << 10, l2=512 << 10, l3=32 << 20, l3_shared_by=2)
FLOOR = Floor("float32", 2, 200.0, "1024x1024x1024", l2_gbs=100.0, l3_gbs=50.0, memory_gbs=20.0, caches=CACHES)

TINY = [
    "5,3,4,6",
    "5,3,4,6 layers=2 bidirectional",
    "5,3,4,6 packed",
    "5,3,4,6 packed bidirectional",
    "1,2,4,6",
    "1,2,4,6 cell",
    "5,3,4,6 proj=2",
]


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("case", parse_grid("\n".join(TINY), ["lstm", "gru"]), ids=lambda case: case.name)
def test_both_layers_do_the_same_work(case: Case, mode: str) -> None:
    works = workload.pair(case, mode, torch.float64)
    ours, theirs = works["lstm_fused"], works["torch"]
    assert type(ours.module).__module__.startswith("lstm_fused")
    assert workload.difference(ours.results(), theirs.results()).absolute < 1e-12
    if mode == "training":
        for work in works.values():
            assert all(leaf.grad is not None for leaf in (work.data, *work.parameters))


def test_difference() -> None:
    a, b = torch.tensor([1.0, 200.0]), torch.tensor([1.5, 100.0])
    assert workload.difference([a], [b]) == Difference(100.0, 1.0)
    assert workload.difference([torch.tensor([math.nan])], [torch.tensor([0.0])]).absolute == math.inf
    assert workload.difference([torch.zeros(0)], [torch.zeros(0)]) == Difference(0.0, 0.0)
    with pytest.raises(RuntimeError, match="differ in shape"):
        workload.difference([a], [b, b])


def test_a_tiny_run_end_to_end(tmp_path: Path) -> None:
    cases = tuple(parse_grid("6,2,8,8\n6,2,8,8 packed\n1,1,8,8 cell", ["lstm", "gru"]))
    before = torch.get_num_threads()
    settings = run.Settings(cases, threads=1, budget=0.03, floor_seconds=0.1)
    with run.environment(settings):
        report = run.start(settings)
        for found in run.rows(settings, report.floor):
            assert isinstance(found, Row), found
            report.rows.append(found)
    assert torch.get_num_threads() == before
    assert len(report.rows) == settings.total == 12
    for row in report.rows:
        assert row.plan
        assert row.isa in report.machine.isas_available
        assert row.difference.relative < 1e-5
        assert row.ratio > 0
        assert row.fraction > 0
    save_json(report, tmp_path / "run.json")
    assert load_json(tmp_path / "run.json").rows == report.rows


def test_a_layer_that_raises_is_a_failure_and_no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __getattr__(self, name: str) -> object:
            raise NotImplementedError(f"no {name} today")

    monkeypatch.setattr(workload, "fused_library", Broken)
    settings = run.Settings(tuple(parse_grid("3,1,4,4", ["lstm"])), ("inference",), threads=1, budget=0.01)
    assert list(run.rows(settings, FLOOR)) == [
        Failure(settings.cases[0], "inference", "NotImplementedError: no LSTM today")
    ]


def test_isa_is_forced_for_every_row() -> None:
    settings = run.Settings(
        tuple(parse_grid("3,1,4,4", ["lstm"])), ("inference",), threads=1, budget=0.01, isa="scalar"
    )
    with run.environment(settings):
        rows = list(run.rows(settings, FLOOR))
    assert [row.isa for row in rows if isinstance(row, Row)] == ["scalar"]


def test_a_missing_peer_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.PEER_PACKAGES, "openvino", ("a_package_that_is_not_there",))
    with pytest.raises(peers.MissingPeerError, match=r"pip install lstm-fused\[peers\]"):
        peers.require("openvino")
    with pytest.raises(ValueError, match="expected one of onnxruntime, openvino"):
        peers.require("cudnn")
    peers.require("torch.compile")


def test_gate_order_of_onnx() -> None:
    rows = torch.arange(4.0)[:, None]
    assert peers.reordered(rows, "lstm").flatten().tolist() == [0, 3, 1, 2]  # i f g o -> i o f c
    assert peers.reordered(rows[:3], "gru").flatten().tolist() == [1, 0, 2]  # r z n -> z r h


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_onnx_peers_agree(name: str, cell: str) -> None:
    for package in peers.PEER_PACKAGES[name]:
        pytest.importorskip(package)
    for case in parse_grid("\n".join(TINY), [cell]):
        reference = workload.pair(case, "inference", torch.float32)["torch"]
        inputs = workload.make_inputs(case, torch.float32)
        arguments = (name, case, "inference", reference.module, inputs, 1, torch.float32)
        if case.proj:
            with pytest.raises(peers.UnsupportedPeerError, match="no projection"):
                peers.peer_workload(*arguments)
            continue
        gap = workload.difference(peers.peer_workload(*arguments).results(), reference.results())
        assert gap.absolute < 1e-5, case.name


def test_peers_say_what_they_cannot_do() -> None:
    case = parse_case("5,3,4,6", "lstm")
    module, inputs = torch.nn.LSTM(4, 6), workload.make_inputs(case, torch.float32)
    for mode, dtype, message in [
        ("training", torch.float32, "inference only"),
        ("inference", torch.float64, "float32 only"),
    ]:
        with pytest.raises(peers.UnsupportedPeerError, match=message):
            peers.peer_workload("onnxruntime", case, mode, module, inputs, 1, dtype)
    long = parse_case("500,3,4,6", "gru")
    with pytest.raises(peers.UnsupportedPeerError, match="unrolled over more than 128 steps"):
        peers.compiled(long, "inference", module)


needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no os.sched_setaffinity here")


@needs_affinity
def test_busy_core_leaves_no_process_behind() -> None:
    core = machine.usable_cores()[0]
    with contextlib.suppress(KeyError), contended.busy_core(core, seconds=20) as child:
        assert os.sched_getaffinity(child.pid) == {core}
        assert child.poll() is None
        raise KeyError("whatever happens inside")
    assert child.poll() is not None


@needs_affinity
def test_contended_row_reports_both_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contended, "LAYER_SECONDS", 0.05)
    monkeypatch.setattr(contended, "SAMPLE_SECONDS", 1e-4)
    case = parse_case("3,1,4,4", "lstm")
    calls = {"torch": lambda: None, "lstm_fused": lambda: None}
    row = contended.measure(case, "inference", calls, machine.usable_cores()[:1], time.perf_counter)
    assert set(row.busy) == set(machine.usable_cores()[:1])
    assert row.slowdown("torch") > 0


def test_contended_cases_follow_cells_and_modes() -> None:
    found = contended.contended_cases(("gru",), ("inference", "training"))
    assert {case.cell for case, _ in found} == {"gru"}
    assert [mode for _, mode in found].count("training") == 1


def test_variants_beside_a_plain_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "VARIANTS", "6,2,8,8\n6,2,8,8 bidirectional")
    monkeypatch.setattr(variants, "SAMPLES", (2, 8))
    settings = run.Settings((parse_case("1,1,4,4", "gru"),), ("inference", "training"), threads=1, budget=0.1)
    found = [row for rows in variants.variant_rows(settings) if isinstance(rows, list) for row in rows]
    names = ("lengths", "PackedSequence", "resets", "torch.compile")
    assert [(row.case.directions, row.mode, row.variant) for row in found] == [
        (D, mode, name)
        for D in (1, 2)
        for mode in settings.modes
        for name in (*names, *(["vmap(grad) / loop", "penalty / torch"] if mode == "training" else []))
    ]
    assert all(row.case.cell == "gru" and row.ratio > 0 for row in found)
    tokens = sum(parse_case("6,2,8,8 packed", "gru").lengths)
    assert [row.allowed for row in found[:4]] == [pytest.approx(1.15 * tokens / 12 + 0.1)] * 2 + [1.05, 0.0]


def test_variants_that_fail_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "VARIANTS", "6,2,8,8")
    monkeypatch.setattr(variants, "measure", lambda *_: 1 / 0)
    settings = run.Settings((parse_case("1,1,4,4", "gru"),), ("training",))
    (failure,) = variants.variant_rows(settings)
    assert isinstance(failure, Failure) and failure.error.startswith("ZeroDivisionError")
