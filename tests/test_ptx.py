"""Kernels that are right, run on the CPU: each program compares its results with plain C++."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import ptx
import pytest
from ptx.testing import FAULT, PROGRAMS, Builder, built, needs_nvcc, run

pytestmark = needs_nvcc
__all__ = ["built"]

SOUND = [
    "arithmetic",
    "atomics",
    "barriers",
    "bulk",
    "clusters",
    "control",
    "fragments",
    "halves",
    "integers",
    "lstm",
    "matrices",
    "mbarriers",
    "pipeline",
    "reductions",
    "tiles",
]


def test_every_program_is_tested() -> None:
    others = {
        "faults_bulk",
        "faults_cluster",
        "faults_mbarrier",
        "faults_memory",
        "faults_race",
        "faults_relaxed",
        "library",
        "limits",
        "limits_cluster",
    }
    assert {p.stem for p in PROGRAMS.glob("*.cu")} == others | set(SOUND)


@pytest.mark.parametrize("name", SOUND)
def test_right_in_every_order_and_under_every_check(built: Builder, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an instruction that the translator does not know
        program = built(name)
    for seed in range(4):
        for check in ("", "all"):
            done = run(program, seed=seed, check=check)
            assert done.returncode == 0, f"seed {seed}, check {check!r}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("name", ["pipeline", "fragments"])
def test_copies_may_also_happen_at_once(built: Builder, name: str) -> None:
    assert run(built(name), eager=1).returncode == 0


def test_printf_reaches_the_output(built: Builder) -> None:
    assert "thread 3 of call: 1.50\n" in run(built("control")).stdout


def test_verbose_tells_of_every_launch(built: Builder) -> None:
    said = run(built("reductions"), verbose=1).stderr
    assert "votes(int const*, Votes*) grid 1x1x1 block 32x1x1" in said
    assert said.count("thread instructions") == 4


KERNEL = "__global__ void k(int* p) { *p = VALUE; }\n"
MAIN = """#include "check.h"
void launch(int*);
int main() { Array<int> a(1); launch(a); std::printf("%d", a.host()[0]); }
"""


def test_several_sources_and_defines_are_built_once(built: Builder, tmp_path: Path) -> None:
    kernel, main = tmp_path / "several_kernel.cu", tmp_path / "several_main.cu"
    kernel.write_text(KERNEL + "void launch(int* p) { k<<<1, 1>>>(p); }")
    main.write_text(MAIN)
    new = time.time_ns() % 1_000_000_000  # what no earlier run has built

    def built_with(value: int) -> Path:
        program = built("several", kernel, main, defines=(f"VALUE={value}",))
        assert run(program).stdout == str(value)
        return program

    def made(program: Path) -> dict[Path, int]:
        files = [program, *program.parent.glob("ptx-cache/several_*")]
        return {p: p.stat().st_mtime_ns for p in files}

    first = made(built_with(new))
    built.cache_clear()  # type: ignore[attr-defined]
    assert made(built_with(new)) == first
    assert len(made(built_with(new + 1))) > len(first)


def test_a_compiler_that_refuses_is_quoted(built: Builder, tmp_path: Path) -> None:
    (tmp_path / "wrong.cu").write_text("__global__ void k() { undeclared(); }")
    with pytest.raises(ptx.BuildError, match=r'identifier "undeclared" is undefined'):
        built("wrong", tmp_path / "wrong.cu")


def test_an_unknown_instruction_is_a_warning_and_a_fault_where_it_is_reached(built: Builder, tmp_path: Path) -> None:
    source = tmp_path / "unknown.cu"
    source.write_text(
        '#include "check.h"\n'
        '__global__ void k(int n) { if (n > 1) asm volatile("{ .reg .b64 a; mov.b64 a, 0;"'
        ' "mbarrier.pending_count.b64 %0, a; }" : "+r"(n)); }\n'
        "int main(int n, char**) { k<<<1, 1>>>(n); CHECK(cudaGetLastError()); }\n"
    )
    with pytest.warns(UserWarning, match=r"unsupported: .*mbarrier.pending_count"):
        program = built("unknown", source)
    assert run(program).returncode == 0
    reached = run(program, "more")
    assert reached.returncode == FAULT
    assert "unsupported instruction, by thread (0,0,0)" in reached.stderr
