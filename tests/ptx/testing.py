"""Builds and runs the programs in ``programs/`` for the tests of this tool."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from .build import build, find_nvcc

PROGRAMS = Path(__file__).parent / "programs"
FAULT = 99  # the status of a program whose kernel did wrong
SECONDS = 60
NEWER = (
    "bulk",
    "clusters",
    "faults_bulk",
    "faults_cluster",
    "faults_mbarrier",
    "limits_cluster",
    "matrices",
    "mbarriers",
)
ARCHITECTURES = dict.fromkeys(NEWER, "compute_90")

needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="nvcc, CUDA's compiler, was not found")
Builder = Callable[..., Path]


@pytest.fixture(scope="session")
def built(pytestconfig: pytest.Config) -> Builder:
    """``built(name)``: the program of ``programs/name.cu``, or of other sources. Its parts stay in pytest's cache."""
    cache = pytestconfig.cache
    assert cache is not None
    folder = cache.mkdir("ptx")

    @functools.cache
    def builder(name: str, *sources: Path, defines: Sequence[str] = (), shared: bool = False) -> Path:
        output = folder / (name + ".so" if shared else name)
        files = sources or (PROGRAMS / f"{name}.cu",)
        arch = ARCHITECTURES.get(name, "compute_80")
        return build(files, output, arch=arch, includes=[PROGRAMS], defines=defines, shared=shared)

    return builder


def run(program: Path, *args: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """Runs a program; settings are the runtime's, without PTX_: ``seed=1, check="race"``."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PTX_")}
    environment |= {f"PTX_{name.upper()}": str(value) for name, value in settings.items()}
    return subprocess.run(
        [program, *args], env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
