"""Mutants that no test can tell from the kernels as they are, or that none here does; ``survivors.txt`` says why.

They are named by their file and their line before and after the change, so that entries outlive changes elsewhere. A
line that is ``*`` stands for any.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .operators import Mutant


@dataclass(frozen=True)
class Survivor:
    file: str
    was: str
    becomes: str
    why: str
    times: int = 1  # how many places of the file with this line may survive


def survivors(text: str) -> Iterator[Survivor]:
    """Those of a text like ``survivors.txt``: files, reasons indented, and beneath a reason its lines."""
    file, why, was = "", "", ""
    for line in text.split("\n"):
        said, indent = line.strip(), len(line) - len(line.lstrip())
        if indent == 0:
            file, why, was = said, "", ""
        elif indent == 2:
            why, was = (said if was else f"{why} {said}".strip()), ""
        elif found := re.fullmatch(r"([-+])(\d*) (.*)", said):
            if found[1] == "-":
                was = found[3]
            else:
                yield Survivor(file, was, found[3], why, int(found[2] or 1))
        elif said:
            raise ValueError(f"survivors: expected '- line' or '+ line', got {said!r}")


SURVIVORS = tuple(survivors(Path(__file__).with_suffix(".txt").read_text()))


def explanation(mutant: Mutant, known: Sequence[Survivor] = SURVIVORS) -> str:
    """Why this mutant survives; empty if nobody has said."""
    return next((k.why for k in known if explains(k, mutant)), "")


def is_equivalent(why: str) -> bool:
    """Whether an explanation says that no result can show the change."""
    return why.startswith("Equivalent")


def explained(survived: Sequence[Mutant], known: Sequence[Survivor] = SURVIVORS) -> list[tuple[Mutant, str]]:
    """Each with its explanation. One that is for a single place explains no other place with the same line."""
    used = Counter[tuple[str, str, str]]()
    result = []
    for mutant in survived:
        same = (mutant.file, mutant.was, mutant.becomes)
        used[same] += 1
        reasons = (k.why for k in known if explains(k, mutant) and (k.becomes == "*" or used[same] <= k.times))
        result.append((mutant, next(reasons, "")))
    return result


def out_of_date(mutants: Sequence[Mutant], known: Sequence[Survivor] = SURVIVORS) -> list[Survivor]:
    """Explanations of what is no mutant of these files any more."""
    return [k for k in known if any(m.file == k.file for m in mutants) and not any(explains(k, m) for m in mutants)]


def explains(known: Survivor, mutant: Mutant) -> bool:
    return known.file == mutant.file and known.was in ("*", mutant.was) and known.becomes in ("*", mutant.becomes)
