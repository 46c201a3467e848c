"""The command line: what it prints, what it refuses, and that asking for help loads no torch."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from lstm_fused import cli, runtime

TINY = ["--case", "4,2,8,8", "--cell", "lstm", "--budget", "0.02", "--threads", "1"]


def invoke(*arguments: str, status: int = 0) -> str:
    """Runs the command line in this process; returns its output without colours."""
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == status, result.output
    return re.sub(r"\x1b\[[0-9;]*m", "", result.output)


@pytest.fixture(autouse=True)
def short_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of floor measurement are for real runs."""
    from lstm_fused.bench import run

    monkeypatch.setattr(run, "FLOOR_SECONDS", 0.1)


def test_info() -> None:
    text = invoke("info")
    for expected in (
        "version",
        "torch",
        "threads",
        "isas compiled",
        runtime.isa(),
        "cuda compiled",
        "devices",
    ):
        assert expected in text


def test_info_text() -> None:
    values: tuple[object, ...] = (True, False, ["a", "b"], [], "", 3)
    assert [cli.info_text(value) for value in values] == ["yes", "no", "a, b", "-", "-", "3"]


def test_bench_prints_floor_rows_and_targets() -> None:
    text = invoke("bench", *TINY)
    for expected in (
        "GEMM peak",
        "read bandwidth",
        "ratio",
        "of floor",
        "LSTM 4x2 8>8",
        "training",
        "speed targets",
    ):
        assert expected in text
    assert runtime.isa() in text


def test_bench_writes_files_and_report_reads_them(tmp_path: Path) -> None:
    paths = {kind: tmp_path / f"run.{kind}" for kind in ("json", "csv", "png")}
    files = ["--json", str(paths["json"]), "--csv", str(paths["csv"]), "--plot", str(paths["png"])]
    invoke("bench", *TINY, "--mode", "inference", *files)
    plain = json.loads(paths["json"].read_text())
    assert [row["name"] for row in plain["rows"]] == ["LSTM 4x2 8>8"]
    assert plain["machine"]["threads"] == 1
    assert paths["csv"].read_text().count("\n") == 2
    assert paths["png"].stat().st_size > 1000
    text = invoke("report", str(paths["json"]), str(paths["json"]), str(paths["json"]))
    assert "median of 3 runs" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case", "4,2,8"], "expected T,B,I,H as four integers"),
        (["--cell", "gru", "--proj-size", "4"], "only an LSTM has a projection"),
        (["--hidden-size", "8", "--proj-size", "9"], "proj: expected 0 <= proj < H"),
        ([*TINY, "--isa", "quantum"], "quantum"),
        ([*TINY, "--json", "/nowhere/at/all/run.json"], "no such folder"),
    ],
)
def test_bench_refuses_with_a_reason(arguments: list[str], message: str) -> None:
    assert message in invoke("bench", *arguments, status=2)


def test_wrong_choices_name_the_right_ones() -> None:
    assert "onnxruntime" in invoke("bench", "--peer", "cudnn", status=2)
    assert "quick" in invoke("bench", "--grid", "huge", status=2)


def test_a_missing_peer_ends_the_run_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from lstm_fused.bench import peers

    monkeypatch.setitem(peers.PEER_PACKAGES, "onnxruntime", ("a_package_that_is_not_there",))
    text = invoke("bench", *TINY, "--peer", "onnxruntime", status=2)
    assert "pip install lstm-fused[peers]" in text


def test_a_row_that_fails_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from lstm_fused.bench import workload

    monkeypatch.setattr(workload, "fused_library", lambda: object())
    assert "failed: LSTM 4x2 8>8" in invoke("bench", *TINY, status=1)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--hidden-size", "16"], ["LSTM 100x1 256>16", "GRU 100x1 256>16"]),
        (["--seq-len", "3", "--batch", "2", "--cell", "gru"], ["GRU 3x2 256>256"]),
        (["--layers", "2", "--bidirectional", "--packed", "--cell", "lstm"],
         ["LSTM 100x1 256>256 2 layers bidirectional packed"]),
        (["--proj-size", "8"], ["LSTM 100x1 256>256 proj 8"]),
    ],
)  # fmt: skip
def test_sizes_replace_the_grid(arguments: list[str], names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def stop(settings: object, _: object) -> None:
        seen.extend(case.name for case in settings.cases)  # type: ignore[attr-defined]
        raise ValueError("seen enough")

    monkeypatch.setattr(cli, "run_with_progress", stop)
    invoke("bench", *arguments, status=2)
    assert seen == names


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_training_experiment(cell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both layers train on the plays to the same held-out loss (a difference ends it with status 1)."""
    path = Path(__file__).parents[1] / "benchmarks" / "experiments" / "train_shakespeare.py"
    spec = importlib.util.spec_from_file_location("train_shakespeare", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their annotations
    spec.loader.exec_module(module)
    picture = tmp_path / "curve.png"
    threads = torch.get_num_threads()
    module.main(
        steps=4, cell=cell, batch=2, seq_len=8, embedding=8, hidden=16, layers=2, learning_rate=1e-2,
        threads=threads, seed=0, sample=5, tolerance=1e-3, plot=picture,
    )  # fmt: skip
    assert "held-out loss" in capsys.readouterr().out
    assert picture.stat().st_size > 1000


def test_help_of_the_command_line_loads_no_torch() -> None:
    """The file itself; whether importing the package loads torch is the package's own matter."""
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('cli', {str(cli.__file__)!r})\n"
        "module = importlib.util.module_from_spec(spec); sys.modules['cli'] = module\n"
        "spec.loader.exec_module(module)\n"
        "from typer.testing import CliRunner\n"
        "result = CliRunner().invoke(module.app, ['bench', '--help'])\n"
        "assert result.exit_code == 0 and '--contended' in result.output, result.output\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
