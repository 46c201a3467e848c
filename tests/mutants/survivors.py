"""Mutants that no test can tell from the kernels as they are, or that none here does: each with the reason.

Named by their file and their line before and after the change, so that entries outlive changes elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .operators import Mutant


@dataclass(frozen=True)
class Survivor:
    file: str
    was: str
    becomes: tuple[str, ...]
    why: str


SURVIVORS: tuple[Survivor, ...] = ()


def explanation(mutant: Mutant, known: Sequence[Survivor] = SURVIVORS) -> str:
    """Why this mutant survives; empty if nobody has said."""
    return next((k.why for k in known if explains(k, mutant)), "")


def out_of_date(mutants: Sequence[Mutant], known: Sequence[Survivor] = SURVIVORS) -> list[Survivor]:
    """Explanations of what is no mutant of these files any more."""
    return [k for k in known if any(m.file == k.file for m in mutants) and not any(explains(k, m) for m in mutants)]


def explains(known: Survivor, mutant: Mutant) -> bool:
    return (known.file, known.was) == (mutant.file, mutant.was) and mutant.becomes in known.becomes
