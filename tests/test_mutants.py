"""``mutants``: the changes that it makes to a small text, and that planted faults of the kernels are found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import emulated
import pytest
from mutants import build, driver, judge
from mutants.journal import Journal
from mutants.operators import Mutant, mutants
from mutants.survivors import Survivor, explained, out_of_date, survivors
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
    assert mutants("f.cuh", "__global__ void __launch_bounds__(threads, 1) f() {}") == []  # nor hints to the compiler


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
    known = [Survivor("f.cuh", first.was, first.becomes, "because")]
    assert explained([first, second, first], known) == [(first, "because"), (second, ""), (first, "")]
    assert out_of_date([first], known) == [] and out_of_date([second], known) == known


def test_a_reason_is_of_the_lines_beneath_it() -> None:
    text = "About it.\n\na.cu\n  One\n  reason.\n    - x + 1\n    + x - 1\n    +2 x + 2\n  Another.\n    - y\n    + ;\n"
    assert list(survivors(text + "\nb.cu\n  Last.\n    - z\n    + 0")) == [
        Survivor("a.cu", "x + 1", "x - 1", "One reason."),
        Survivor("a.cu", "x + 1", "x + 2", "One reason.", 2),
        Survivor("a.cu", "y", ";", "Another."),
        Survivor("b.cu", "z", "0", "Last."),
    ]
    with pytest.raises(ValueError, match=r"expected '- line' or '\+ line', got 'y'"):
        list(survivors("a.cu\n  One.\n    y"))


def test_a_journal_forgets_what_passed_when_the_tests_change(tmp_path: Path) -> None:
    first, second, third, *_ = mutants("f.cuh", TEXT)
    path, killed, passed = tmp_path / "journal", judge.Verdict("killed", "wrong"), judge.Verdict("survived", rounds=4)
    journal = Journal(path)
    journal.write(first, killed)
    journal.write(second, passed)
    assert [Journal(path).verdict(mutant) for mutant in (first, second, third)] == [killed, passed, judge.Verdict()]
    journal.stamps["tests"] = "others"
    journal.write(second, passed)
    journal.write(third, killed)
    assert [Journal(path).verdict(mutant) for mutant in (first, second, third)] == [killed, passed, killed]
    path.write_text(path.read_text().replace(Journal(path).stamps["tests"], "others"))
    assert [Journal(path).verdict(mutant) for mutant in (first, second, third)] == [killed, judge.Verdict(), killed]
    path.write_text(path.read_text().replace(Journal(path).stamps["sources"], "others"))
    assert Journal(path).verdict(first) == judge.Verdict()


@dataclass
class Workplace:
    """The kernels of float32 as they are, which pass their tests, and what mutants of them are judged with."""

    base: build.Base
    bench: build.Bench
    library: judge.Library
    table: Path

    def outcomes(self, *mutants: Mutant) -> list[str]:
        judged = [(mutant, judge.Verdict()) for mutant in mutants]
        for number in range(len(build.ROUNDS)):
            left = [(mutant, verdict) for mutant, verdict in judged if verdict.outcome == "open"]
            judge.judge(self.base, self.bench, self.library, self.table, number, left)
        return [verdict.outcome for _, verdict in judged]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    if why := emulated.why_not():
        pytest.skip(f"no emulation: {why}")
    folder = tmp_path_factory.mktemp("mutants")
    base, table = build.base(folder, types=("float",)), folder / "table"
    judge.record(base, table, ["float"])
    library = judge.Library(base.library)
    yield Workplace(base, build.Bench(folder / "bench", emulated.CSRC, 4), library, table)
    library.close()


def test_a_process_that_ended_is_no_verdict(workplace: Workplace) -> None:
    library = judge.Library(workplace.base.library)
    library.process.kill()
    with pytest.raises(RuntimeError, match="ended with -9"):
        library.says(driver.Task(workplace.table, [("float", "lstm")]))


def of_file(file: str) -> list[Mutant]:
    return mutants(file, (emulated.CSRC / file).read_text())


def same(text: str) -> Mutant:
    """A mutant that puts a text in the place of an ``if``."""
    file = "cuda/backward.cuh"
    at = (emulated.CSRC / file).read_text().index("if (")
    return Mutant(file, 1, 1, "none", "", text, at, at + 2, text)


@pytest.mark.parametrize(
    ("file", "kind", "part"),
    [
        ("cells/lstm.h", "index", "s[1] = sigmoid"),
        ("cuda/block.cuh", "barrier", "__syncthreads"),
        ("cuda/backward.cuh", "operator", "b >= rows.end"),
        ("cuda/launch.cuh", "operator", "count + each - 1"),
    ],
)
def test_planted_faults_are_found(workplace: Workplace, file: str, kind: str, part: str) -> None:
    """A swapped gate, a barrier left out, a bound that is off by one, too few blocks."""
    found = [m for m in of_file(file) if m.kind == kind and part in m.was]
    planted = next(m for m in found if part != "b >= rows.end" or m.put == ">")
    assert workplace.outcomes(planted) == ["killed"], planted


def test_what_the_compiler_cannot_tell_apart_is_no_mutant(workplace: Workplace) -> None:
    """Nor what is no program; in whatever company these are judged."""
    endless = next(m for m in of_file("cells/activations.h") if "polynomial<V, k + 0>" in m.becomes)
    unchanged, broken = same("/* the same */ if"), same("nothing of the kind")
    other = next(m for m in of_file("cuda/backward.cuh") if m.becomes == "if (true) return {};")
    assert workplace.outcomes(other, unchanged, broken, endless) == ["killed", "equivalent", "invalid", "invalid"]
    assert workplace.outcomes(unchanged) == ["equivalent"]  # the others have been taken back
