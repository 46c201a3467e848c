"""Verdicts that stand from run to run: a run that was interrupted goes on, and stricter tests find only more.

So a mutant that was found stays found while the sources are the same. One that passes has to pass again after every
change of the tests.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import emulated

from .judge import Verdict
from .operators import Mutant

HERE = Path(__file__).parent
COMMENT = r"[ \t]*//[^\n]*"


def digest(paths: Iterable[Path]) -> str:
    """Of what the files say; comments of C++ apart, which change no verdict."""
    hashed = hashlib.sha256()
    for path in sorted(paths):
        hashed.update(path.read_bytes() if path.suffix == ".py" else re.sub(COMMENT, "", path.read_text()).encode())
    return hashed.hexdigest()[:12]


def stamps() -> dict[str, str]:
    """Of what the mutants are of, and of all that is done with them; explanations are no part of it."""
    csrc, tests = emulated.CSRC, HERE.parent
    sources = [*csrc.glob("*.h"), *csrc.glob("cells/*"), *csrc.glob("cuda/*")]
    runner = [*tests.glob("ptx/*.py"), *tests.glob("ptx/runtime/*"), tests / "cases.py", tests / "oracles.py"]
    here = [HERE / f"{name}.py" for name in ("build", "driver", "judge", "resets")]
    return {"sources": digest(sources), "tests": digest([*runner, *here])}


class Journal:
    def __init__(self, path: Path) -> None:
        self.path, self.stamps = path, stamps()
        lines = path.read_text().splitlines() if path.exists() else []
        self.found = {line["mutant"]: Verdict(**line["verdict"]) for line in map(json.loads, lines) if self.holds(line)}

    def holds(self, line: dict[str, object]) -> bool:
        if line["sources"] != self.stamps["sources"]:
            return False
        verdict = Verdict(**line["verdict"])  # type: ignore[arg-type]
        return verdict.outcome in ("killed", "invalid") or line["tests"] == self.stamps["tests"]

    def verdict(self, mutant: Mutant) -> Verdict:
        """What is known of it."""
        return self.found.get(key(mutant)) or Verdict()

    def write(self, mutant: Mutant, verdict: Verdict) -> None:
        self.found[key(mutant)] = verdict
        line = {"mutant": key(mutant), "verdict": asdict(verdict), **self.stamps}
        with self.path.open("a") as written:
            print(json.dumps(line), file=written)


def key(mutant: Mutant) -> str:
    return f"{mutant.id} {mutant.becomes}"
