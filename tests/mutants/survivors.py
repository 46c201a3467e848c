"""Mutants that no test can tell from the kernels as they are, or that none here does: each with the reason.

Named by their file and their line before and after the change, so that entries outlive changes elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .operators import Mutant


@dataclass(frozen=True)
class Survivor:
    file: str
    was: str
    becomes: tuple[str, ...]
    why: str
    times: int = 1  # how many places of the file with this line may survive


SURVIVORS = (
    Survivor(
        "cuda/backward.cu",
        "for (std::int64_t step = steps - 1; step >= -1 && error.empty(); --step) {",
        ("for (std::int64_t step = steps - 1; step >= -2 && error.empty(); --step) {",),
        "Equivalent: a step -2 has no rows, so nothing is started for it.",
    ),
    Survivor(
        "cuda/product.cuh",
        "first_staged = -1;",
        ("first_staged = 1;", "first_staged = -2;"),
        "Equivalent: a pass over the columns begins at a multiple of 32, so all of these stand for no pass.",
    ),
    Survivor(
        "cuda/product.cuh",
        "__syncthreads();",
        (";",),
        "Of the three, the one at the end of keep_weights: every product begins with the barrier of its first "
        "staging, before it reads a weight. Without either of the other two the race detector speaks.",
    ),
)


def explanation(mutant: Mutant, known: Sequence[Survivor] = SURVIVORS) -> str:
    """Why this mutant survives; empty if nobody has said."""
    return next((k.why for k in known if explains(k, mutant)), "")


def explained(survived: Sequence[Mutant], known: Sequence[Survivor] = SURVIVORS) -> list[tuple[Mutant, str]]:
    """Each with its explanation. One that is for a single place explains no other place with the same line."""
    used = Counter[tuple[str, str, str]]()
    result = []
    for mutant in survived:
        same = (mutant.file, mutant.was, mutant.becomes)
        used[same] += 1
        result.append((mutant, next((k.why for k in known if explains(k, mutant) and used[same] <= k.times), "")))
    return result


def out_of_date(mutants: Sequence[Mutant], known: Sequence[Survivor] = SURVIVORS) -> list[Survivor]:
    """Explanations of what is no mutant of these files any more."""
    return [k for k in known if any(m.file == k.file for m in mutants) and not any(explains(k, m) for m in mutants)]


def explains(known: Survivor, mutant: Mutant) -> bool:
    return (known.file, known.was) == (mutant.file, mutant.was) and mutant.becomes in known.becomes
