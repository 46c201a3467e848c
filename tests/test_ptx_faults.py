"""Planted faults: each is found and named, and its sound twin is not blamed."""

from __future__ import annotations

import pytest
from ptx.testing import FAULT, Builder, built, needs_nvcc, run

pytestmark = needs_nvcc
__all__ = ["built"]

SEEDS = range(3)

# program, case, the check that finds it (none: it is always found), what the report says
FAULTS = [
    ("faults_race", "block", "race", "data race at address"),
    ("faults_race", "reuse", "race", "data race at address"),
    ("faults_race", "warp", "race", "not ordered after the write by thread (31,0,0) of warp 0"),
    ("faults_race", "sum", "race", "data race at address"),
    ("faults_race", "halves", "race", ": write, by thread"),
    ("faults_race", "release", "race", ": read, by thread (0,0,0) of warp 0, block (1,0,0)"),
    ("faults_race", "acquire", "race", ": read, by thread (0,0,0) of warp 0, block (1,0,0)"),
    ("faults_race", "release_acquire", "race", ": read, by thread (0,0,0) of warp 0, block (3,0,0)"),
    ("faults_race", "message_of_block", "race", "block (0,0,0)"),
    ("faults_race", "constant", "race", "ld.global.nc of memory that the kernel writes, by thread"),
    ("faults_race", "blocks", "race", ": write, by thread (0,0,0) of warp 0, block"),
    ("faults_race", "flag_in_block", "race", ": read, by thread (32,0,0) of warp 1"),
    ("faults_race", "copy", "race", "not ordered after the cp.async, which has not been waited for"),
    ("faults_race", "copy", "unwritten", "read of unwritten shared memory"),
    ("faults_race", "copy_barrier", "race", "not ordered after the"),
    ("faults_memory", "global_bounds", "", "global access out of bounds"),
    ("faults_memory", "prefetch_bounds", "", "global access out of bounds"),
    ("faults_memory", "shared_bounds", "", "shared access out of bounds (address 0x100), by thread (63,0,0) of warp 1"),
    ("faults_memory", "alignment", "", "misaligned access"),
    ("faults_memory", "unwritten_global", "unwritten", "read of unwritten global memory"),
    (
        "faults_memory",
        "unwritten_shared",
        "unwritten",
        "read of unwritten shared memory (address 0xfc), by thread (63,",
    ),
    ("faults_memory", "unwritten_atomic", "unwritten", "read of unwritten shared memory (address 0x0), by thread (0,"),
    ("faults_memory", "divergent_block", "", "divergent block barrier"),
    ("faults_memory", "divergent_warp", "", "divergent block barrier"),
    ("faults_memory", "early_exit", "", "block barrier after some threads of the warp have exited, by thread (32,0,0)"),
    ("faults_memory", "deadlock", "", "deadlock in kernel void deadlock<true>(float*)"),
    ("faults_memory", "endless", "", "no end after"),
    ("faults_memory", "shuffle", "", "lanes 0000ffff of warp 0 wait for lanes of the warp: thread (0,0,0)"),
    ("faults_memory", "mask", "", "mask does not name the thread itself, by thread (16,0,0)"),
    ("faults_memory", "assertion", "", "trap, by thread (7,0,0)"),
    ("faults_memory", "stale", "weak", "trap, by thread (0,0,0) of warp 0, block (1,0,0)"),
    ("faults_memory", "stale_of_block", "weak", "trap, by thread"),
]
FAULTS += [
    ("faults_cluster", "bounds", "", "shared access out of bounds (address 0x2000100), by thread (63,0,0) of warp 1"),
    ("faults_cluster", "rank", "", "no block of rank 2 in a cluster of 2, by thread (0,0,0)"),
    ("faults_cluster", "own_window", "", "shared access out of bounds (address 0x"),
    ("faults_cluster", "pointer", "", "global access out of bounds"),
    ("faults_cluster", "exchange", "race", ": read, by thread"),
    ("faults_cluster", "relaxed", "race", "data race at address"),
    ("faults_cluster", "late", "race", "data race at address"),
    ("faults_cluster", "early", "race", "data race at address"),
    ("faults_cluster", "only_the_block", "race", "data race at address"),
    (
        "faults_cluster",
        "start",
        "race",
        "access to the shared memory of a block that may not have started, by thread (0,",
    ),
    ("faults_cluster", "end", "race", "access to the shared memory of a block that"),  # has exited, or may have
    ("faults_cluster", "ended", "", "access to the shared memory of a block that has exited (address 0x1000000), by"),
    ("faults_cluster", "unwritten", "unwritten", "read of unwritten shared memory (address 0x7c), by thread (31,0,0)"),
    ("faults_cluster", "stale", "weak", "trap, by thread (0,0,0) of warp 0, block (1,0,0)"),
    (
        "faults_cluster",
        "divergent",
        "",
        "of warp 0 wait for lanes of the warp: thread (16,0,0) of warp 0, block (0,0,0)",
    ),
    ("faults_cluster", "deadlock", "", "lanes ffffffff of warp 0 wait for the cluster: thread (0,0,0)"),
    ("faults_cluster", "twice", "", "second arrival at the cluster barrier without a wait between, by thread (0,0,0)"),
    ("faults_cluster", "no_arrival", "", "wait at the cluster barrier without an arrival, by thread (5,0,0)"),
]
FAULTS += [
    ("faults_mbarrier", "uninitialised", "", "mbarrier that is not initialised (address 0x0), by thread (0,0,0)"),
    ("faults_mbarrier", "unordered", "race", "not ordered after the write by thread (31,0,0) of warp 0"),
    ("faults_mbarrier", "no_arrivals", "", "mbarrier for 0 arrivals, by thread (0,0,0)"),
    ("faults_mbarrier", "too_many", "", "3 arrivals at an mbarrier that lacks 2, by thread (0,0,0)"),
    ("faults_mbarrier", "again", "", "mbarrier initialised again without mbarrier.inval (address 0x0), by thread (0,"),
    (
        "faults_mbarrier",
        "old_phase",
        "",
        "test of an mbarrier's phase that is neither the present one nor the last, by",
    ),
    ("faults_mbarrier", "missing", "", "no end after"),
    ("faults_mbarrier", "reads_early", "race", "data race at address"),
    ("faults_mbarrier", "overwrites", "race", "data race at address"),
    ("faults_mbarrier", "relaxed", "race", "data race at address"),
    ("faults_mbarrier", "after_the_end", "race", "access to the shared memory of a block that"),
]
FAULTS += [
    ("faults_bulk", "size", "", "bulk copy of 124 bytes, not a multiple of 16, by thread (0,0,0)"),
    ("faults_bulk", "alignment", "", "misaligned access"),
    ("faults_bulk", "global_bounds", "", "global access out of bounds"),
    ("faults_bulk", "shared_bounds", "", "shared access out of bounds (address 0x120), by thread (0,0,0)"),
    ("faults_bulk", "no_wait", "race", "not ordered after the cp.async, which has not been waited for"),
    ("faults_bulk", "no_wait", "unwritten", "read of unwritten shared memory"),
    ("faults_bulk", "not_expected", "race", "not ordered after the cp.async, which has not been waited for"),
    ("faults_bulk", "not_expected", "unwritten", "read of unwritten shared memory"),
]
FAULTS += [
    ("faults_relaxed", "counter", "race", "data race at address"),
    ("faults_relaxed", "counter_read", "race", "data race at address"),
    ("faults_relaxed", "word", "race", "data race at address"),
    ("faults_relaxed", "counted", "weak", "trap, by thread"),
    ("faults_relaxed", "early", "weak", "trap, by thread"),
]
LIMIT = 2_000_000  # thread instructions: far above what the sound twins take


@pytest.mark.parametrize(("program", "case", "check", "report"), FAULTS)
def test_found(built: Builder, program: str, case: str, check: str, report: str) -> None:
    for seed in SEEDS:
        done = run(built(program), case, "planted", seed=seed, check=check, limit=LIMIT)
        assert done.returncode == FAULT, f"seed {seed}: {done.stdout}{done.stderr}"
        assert report in done.stderr


@pytest.mark.parametrize(("program", "case"), sorted({(program, case) for program, case, _, _ in FAULTS}))
def test_sound_twin_passes(built: Builder, program: str, case: str) -> None:
    for seed in SEEDS:
        done = run(built(program), case, "sound", seed=seed, check="all", limit=LIMIT)
        assert done.returncode == 0, f"seed {seed}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize(
    ("program", "case", "check"), [(p, c, k) for p, c, k, _ in FAULTS if k in ("race", "unwritten")]
)
def test_only_its_check_finds_it(built: Builder, program: str, case: str, check: str) -> None:
    # The others do their own work, and are not to be credited with it.
    assert run(built(program), case, "planted", check="", limit=LIMIT).returncode == 0


def test_a_missing_fence_is_harmless_without_weak_memory(built: Builder) -> None:
    assert run(built("faults_memory"), "stale", "planted").returncode == 0


def test_strong_stores_pass_each_other_in_random_order(built: Builder) -> None:
    program = built("faults_relaxed")
    found = [run(program, "neighbours", "planted", seed=seed, check="weak").returncode for seed in range(1, 6)]
    assert FAULT in found
    assert all(run(program, "neighbours", "sound", seed=seed, check="all").returncode == 0 for seed in range(6))


def test_a_report_names_source_line_kernel_and_instruction(built: Builder) -> None:
    said = run(built("faults_race"), "reuse", "planted", check="race").stderr
    assert "kernel void reuse<true>(float const*, float*): ld.shared.f32" in said
    assert "(faults_race.cu:" in said


@pytest.mark.parametrize("check", ["", "race", "weak"])
def test_a_recurrence_without_its_grid_barrier_is_wrong(built: Builder, check: str) -> None:
    done = run(built("lstm"), "planted", check=check)
    assert done.returncode == (FAULT if check == "race" else 1)
    assert ("data race" in done.stderr) if check == "race" else ("WRONG" in done.stdout)


def test_an_unknown_check_is_named(built: Builder) -> None:
    done = run(built("faults_race"), "block", "sound", check="race,fences")
    assert done.returncode == 97
    assert "PTX_CHECK: expected words of race, unwritten, weak and all, got fences" in done.stderr
