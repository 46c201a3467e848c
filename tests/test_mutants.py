"""``mutants``: the changes that it makes to a small text, and that planted faults of the kernels are found."""

from __future__ import annotations

from pathlib import Path

import emulated
import pytest
from mutants import build, judge
from mutants.operators import Mutant, mutants
from mutants.survivors import Survivor, explained, out_of_date
from mutants.text import masked

TEXT = """\
#define SIZE (a + b)
// a comment: a < b
__device__ void f(const float* p, float (&s)[4], int n) {
  for (int i = 0; i < n; ++i) {
    s[0] += p[i] * 0.5f;  /* a + b */
    if (i + 1 < n && s[1] > 0) __syncthreads();
  }
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
  s[1] = n ? -s[0] : load_fresh<float>(p);
}
"""


def becomes(kind: str) -> set[str]:
    return {mutant.becomes for mutant in mutants("f.cuh", TEXT) if mutant.kind == kind}


def test_comments_literals_and_the_preprocessor_are_left_alone() -> None:
    assert len(masked(TEXT)) == len(TEXT)
    assert "SIZE" not in masked(TEXT) and "comment" not in masked(TEXT) and "acq_rel" not in masked(TEXT)
    assert {m.line for m in mutants("f.cuh", TEXT)} == {4, 5, 6, 8, 9}


def test_every_kind_of_change() -> None:
    assert becomes("operator") == {
        "for (int i = 0; i <= n; ++i) {",
        "s[0] -= p[i] * 0.5f; /* a + b */",
        "s[0] += p[i] / 0.5f; /* a + b */",
        "if (i - 1 < n && s[1] > 0) __syncthreads();",
        "if (i + 1 <= n && s[1] > 0) __syncthreads();",
        "if (i + 1 < n || s[1] > 0) __syncthreads();",
        "if (i + 1 < n && s[1] >= 0) __syncthreads();",
    }
    assert becomes("condition") == {
        "if (true) __syncthreads();",
        "if (false) __syncthreads();",
        "s[1] = true ? -s[0] : load_fresh<float>(p);",
        "s[1] = false ? -s[0] : load_fresh<float>(p);",
    }
    assert becomes("statement") == {"; /* a + b */", ";"}
    assert becomes("barrier") == {"if (i + 1 < n && s[1] > 0) ;"}
    assert becomes("index") >= {"s[1] += p[i] * 0.5f; /* a + b */", "s[0] = n ? -s[0] : load_fresh<float>(p);"}
    assert becomes("constant") >= {"if (i + 2 < n && s[1] > 0) __syncthreads();", "for (int i = 1; i < n; ++i) {"}
    assert becomes("real") == {"s[0] += p[i] * (0.5f * 0.5f); /* a + b */"}
    assert becomes("sign") == {"s[1] = n ? s[0] : load_fresh<float>(p);"}
    assert becomes("name") == {"s[1] = n ? -s[0] : load<float>(p);"}
    assert becomes("order") == {
        'asm volatile("fence.relaxed.gpu;" ::: "memory");',
        'asm volatile("fence.acq_rel.cta;" ::: "memory");',
    }


def test_a_mutant_changes_its_place_alone() -> None:
    for mutant in mutants("f.cuh", TEXT):
        changed = mutant.applied(TEXT).split("\n")
        differing = [n for n, (a, b) in enumerate(zip(TEXT.split("\n"), changed, strict=True), 1) if a != b]
        assert differing == [mutant.line], mutant


def test_an_explanation_is_of_one_change_alone() -> None:
    first, second, *_ = mutants("f.cuh", TEXT)
    known = [Survivor("f.cuh", first.was, (first.becomes,), "because")]
    assert explained([first, second, first], known) == [(first, "because"), (second, ""), (first, "")]
    assert out_of_date([first], known) == [] and out_of_date([second], known) == known


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> tuple[build.Base, build.Bench, Path]:
    """The kernels of float32 as they are, which pass their tests."""
    if why := emulated.why_not():
        pytest.skip(f"no emulation: {why}")
    folder = tmp_path_factory.mktemp("mutants")
    base, table = build.base(folder, types=("float",)), folder / "table"
    judge.record(base, table, ["float"])
    return base, build.Bench(folder / "bench", emulated.CSRC), table


@pytest.mark.parametrize(
    ("file", "kind", "part"),
    [
        ("cells/lstm.h", "index", "s[1] = sigmoid"),
        ("cuda/block.cuh", "barrier", "__syncthreads"),
        ("cuda/backward.cuh", "operator", "b >= rows.end"),
    ],
)
def test_planted_faults_are_found(
    workplace: tuple[build.Base, build.Bench, Path], file: str, kind: str, part: str
) -> None:
    """A swapped gate, a barrier left out, a bound that is off by one."""
    found = [m for m in mutants(file, (emulated.CSRC / file).read_text()) if m.kind == kind and part in m.was]
    planted: Mutant = next(m for m in found if kind != "operator" or m.put == ">")
    assert judge.judge(*workplace, planted).outcome == "killed", planted


def test_what_the_compiler_cannot_tell_apart_is_no_mutant(workplace: tuple[build.Base, build.Bench, Path]) -> None:
    file = "cuda/backward.cuh"
    text = (emulated.CSRC / file).read_text()
    at = text.index("if (")
    same = Mutant(file, 1, 1, "none", "", "", at, at + 2, "/* the same */ if")
    assert judge.judge(*workplace, same).outcome == "equivalent"
    broken = Mutant(file, 1, 1, "none", "", "", at, at + 2, "nothing of the kind")
    assert judge.judge(*workplace, broken).outcome == "invalid"
    file = "cells/activations.h"
    found = mutants(file, (emulated.CSRC / file).read_text())
    endless = next(m for m in found if "polynomial<V, k + 0>" in m.becomes)
    assert judge.judge(*workplace, endless).outcome == "invalid"
