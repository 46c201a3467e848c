"""Mutants that no test can tell from the kernels as they are, or that none here does: each with the reason.

Named by their file and their line before and after the change, so that entries outlive changes elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from .operators import Mutant


@dataclass(frozen=True)
class Survivor:
    file: str
    was: str
    becomes: tuple[str, ...]
    why: str


SURVIVORS: tuple[Survivor, ...] = ()


def explanation(mutant: Mutant) -> str:
    """Why this mutant survives; empty if nobody has said."""
    for known in SURVIVORS:
        if (known.file, known.was) == (mutant.file, mutant.was) and mutant.becomes in known.becomes:
            return known.why
    return ""
