"""What runs can be asked for and forced, and a package without working kernels says so when imported."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lstm_fused
from lstm_fused import runtime


def test_info() -> None:
    info = runtime.info()
    assert info["version"] == lstm_fused.__version__
    assert info["torch"] == torch.__version__
    assert info["threads"] == torch.get_num_threads()
    assert info["isa"] in info["isas_available"]
    assert set(info["isas_available"]) <= set(info["isas_compiled"])
    assert "scalar" in info["isas_available"]
    assert info["cuda_compiled"] == (not info["why_no_cuda"])
    assert info["devices"][0].startswith("cpu ")


def test_forced_isas_nest_and_are_put_back() -> None:
    best = runtime.isa()
    with runtime.use_isa("scalar"):
        for name in runtime.available_isas():
            with runtime.use_isa(name):
                assert runtime.isa() == name
            assert runtime.isa() == "scalar"
        with runtime.use_isa(""):
            assert runtime.isa() == best
    assert runtime.isa() == best
    with pytest.raises(KeyError), runtime.use_isa("scalar"):
        raise KeyError
    assert runtime.isa() == best


def test_forced_plans_nest_and_are_put_back() -> None:
    def plan() -> str:
        return runtime.plan("lstm", T=100, B=8, I=64, H=256, threads=2).split()[0]

    chosen = plan()
    with runtime.use_plan("serial"):
        assert plan() == "serial"
        with runtime.use_plan("rows"):
            assert plan() == "rows"
        assert plan() == "serial"
    assert plan() == chosen


@pytest.mark.parametrize(("force", "names"), [(runtime.use_isa, "scalar"), (runtime.use_plan, "rows")])
def test_what_cannot_be_forced_is_named(force: object, names: str) -> None:
    before = runtime.isa()
    with pytest.raises(RuntimeError, match=f"{names}.*'neon'"), force("neon"):  # type: ignore[operator]
        pass
    assert runtime.isa() == before


def import_error(folder: Path, library: bytes | None) -> str:
    """What importing a copy of the package says whose library is missing or is these bytes."""
    package = folder / "lstm_fused"
    source = Path(lstm_fused.__file__).parent
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("_C*", "__pycache__", "bench"))
    if library is not None:
        (package / "_C.so").write_bytes(library)
    command = [sys.executable, "-c", "import lstm_fused"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    return result.stderr.strip().splitlines()[-1]


def test_missing_kernels_are_explained(tmp_path: Path) -> None:
    message = import_error(tmp_path, None)
    assert message.startswith("ImportError: lstm_fused: its compiled kernels")
    assert "pip install" in message


def test_with_a_binding_of_another_build_calls_go_through_torch_ops(tmp_path: Path) -> None:
    source = Path(lstm_fused.__file__).parent
    shutil.copytree(source, tmp_path / "lstm_fused", ignore=shutil.ignore_patterns("__pycache__"))
    for binding in (tmp_path / "lstm_fused").glob("_direct*.so"):
        binding.write_bytes(b"not a library")
    code = "import torch, lstm_fused as l; l.LSTMCell(2, 3)(torch.ones(1, 2)); l.GRU(2, 3)(torch.ones(4, 1, 2))"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "binding for this Python" in result.stderr and "Build again" in result.stderr


def test_kernels_of_another_build_are_explained(tmp_path: Path) -> None:
    message = import_error(tmp_path, b"not a library")
    assert message.startswith("ImportError: lstm_fused:")
    assert f"does not load into torch {torch.__version__}" in message
