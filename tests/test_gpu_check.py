"""`make gpu-check` with no card: the whole of it on the emulated device, and its parts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import emulated
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu_check  # noqa: E402
import gpu_environment  # noqa: E402
import gpu_report  # noqa: E402

REPORTS = """\
========= COMPUTE-SANITIZER
24 layers on some device: 0 wrong
========= Invalid __global__ read of size 4 bytes
=========     at void lstm_fused::cuda::layer<float>(lstm_fused::cuda::ForwardArgs<float>)+0x10
=========     by thread (0,0,0) in block (0,0,0)
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: [0x1]
=========
========= Uninitialized __global__ memory read of size 4 bytes
=========     at gemm_32x32+0x2b0
=========     by thread (0,0,0) in block (1,0,0)
=========
========= Error: Race reported between Write access at void lstm_fused::cuda::layer<float>()+0x1
=========     and Read access at void lstm_fused::cuda::layer<float>()+0x2 [4 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
========= ERROR SUMMARY: 3 errors
"""


@pytest.mark.skipif(bool(emulated.why_not()), reason=f"no emulation: {emulated.why_not()}")
@pytest.mark.skipif(emulated.running(), reason="it starts the emulation itself")
@pytest.mark.timeout(3600)  # it may build the emulation
def test_the_whole_check_on_the_emulated_device(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py"), "--emulated", "--out", str(tmp_path)]
    command += [
        "--select",
        "autocast or failed_launch or saved_tensors or clamped",
        "--scale",
        "10",
    ]  # the machine may be busy
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu-check.json").read_text())
    steps = found["steps"]
    assert found["passed"] and {name: step["status"] for name, step in steps.items()} == {
        "facts": "passed",
        "build": "passed",
        "tests": "passed",
        "sanitizer": "passed",
        "benchmark": "passed",
        "profile": "skipped",
    }
    assert steps["tests"]["passed"] >= 16 and not steps["tests"]["failed"]
    rows = [row for run in steps["benchmark"]["runs"].values() for row in run["report"]["rows"]]
    assert [row["timed"] for row in rows] == ["wall clock"] * 2 + ["wall clock, no graph"]
    assert [row["plan"] for row in rows] == ["block", "block", "grid"]
    differences = [row["difference"]["relative"] for row in rows]
    assert max(differences[:2]) < 1e-6 < differences[2] < 2e-3, "the last is of tf32"
    page = (tmp_path / "gpu-check.md").read_text()
    for expected in ("emulated device: not a speed", "LSTM 3x2 4>8", "PERSIST_SMALL_H", "PTX_CHECK=all: passed"):
        assert expected in page
    assert str(BENCHMARKS.parent) not in page


def test_without_torch_it_says_so_and_fails(tmp_path: Path) -> None:
    """An interpreter with nothing installed: both files are written, and what cannot run is skipped."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    script.chmod(0o755)
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py"), "--python", str(script), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "failed: facts" in done.stdout
    found = json.loads((tmp_path / "gpu-check.json").read_text())
    assert "no torch" in found["steps"]["facts"]["why"]
    assert found["steps"]["tests"] == {"status": "skipped", "why": "facts failed", "seconds": 0.0}
    assert "no torch" in (tmp_path / "gpu-check.md").read_text()


def test_which_python_works() -> None:
    facts = {"torch": "2.13.0+cu130", "device": "a card", "missing": []}
    assert gpu_environment.why_not(facts, emulated=False) == ""
    assert "not one that" in gpu_environment.why_not({**facts, "torch": "2.9.1"}, False)
    assert "not one that" in gpu_environment.why_not({**facts, "torch": "2.15.0"}, False)
    del facts["device"]
    assert "finds no CUDA device" in gpu_environment.why_not(facts, False)
    assert gpu_environment.why_not(facts, emulated=True) == ""
    assert gpu_environment.why_not({**facts, "missing": ["rich"]}, emulated=True) == "no rich"


@pytest.mark.parametrize(("interrupt", "said"), [(True, "what it has"), (False, "")])
def test_a_command_that_does_not_end_is_ended(interrupt: bool, said: str, tmp_path: Path) -> None:
    """With all its children, and, interrupted, after it has written what it has."""
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
        "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('what it has', flush=True)\n"
    )
    env = gpu_environment.Environment(sys.executable, {}, True, tmp_path)
    start = time.monotonic()
    status, output = env.run([sys.executable, "-c", code], start + 3, interrupt=interrupt)
    assert status == "timed out" and output.strip() == said
    assert time.monotonic() - start < 30
    child = Path("/proc") / (tmp_path / "child").read_text() / "status"
    until = time.monotonic() + 10  # a signal takes effect when its process next runs
    while child.exists() and "zombie" not in child.read_text():
        assert time.monotonic() < until, "the child lives on"
        time.sleep(0.05)


@pytest.mark.parametrize(("select", "status"), [("good", "passed"), ("bad", "failed"), ("other", "failed")])
def test_files_of_which_nothing_is_selected(
    select: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are no failure, but all of them together are."""
    (tmp_path / "tests").mkdir()
    for name in ("good", "bad"):
        test = f"import pytest\n@pytest.mark.cuda\ndef test_{name}(): assert {name == 'good'}\n"
        (tmp_path / "tests" / f"test_{name}.py").write_text(test)
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_check, "TESTS", ("test_good.py", "test_bad.py"))
    env = gpu_environment.Environment(sys.executable, {}, True, tmp_path, select=select)
    found = gpu_check.tests(env, time.monotonic() + 60)
    assert (found["status"], found["passed"], found["failed"]) == (status, int(select == "good"), int(select == "bad"))


def test_reports_of_the_sanitizer_are_counted() -> None:
    """Those about the package's own kernels, and those about others'."""
    assert gpu_report.sanitizer_errors(REPORTS) == (2, 1)
    assert gpu_report.sanitizer_errors("========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n") == (0, 0)


def test_counts_of_tests(tmp_path: Path) -> None:
    assert gpu_report.summary_of_tests([tmp_path / "none.xml"])["passed"] == 0
    results = tmp_path / "tests.xml"
    results.write_text(
        "<testsuites><testsuite><testcase name='good' time='2.5'/>"
        "<testcase name='bad' time='1'><failure message='assert 1 == 2'>...</failure></testcase>"
        "<testcase name='not' time='0'><skipped message='no card'/></testcase></testsuite></testsuites>"
    )
    found = gpu_report.summary_of_tests([results, tmp_path / "none.xml"])
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, {"no card": 1})
    assert found["failures"] == [{"test": "bad", "said": "assert 1 == 2"}]
    step = {"status": "failed", "seconds": 1.0, "output": "", **found}
    page = gpu_report.markdown({"emulated": False, "passed": False, "seconds": 1.0, "steps": {"tests": step}})
    assert "1 passed, 1 failed, 1 skipped" in page and "assert 1 == 2" in page
