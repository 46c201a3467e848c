"""``python -m mutants``: small faults put into the CUDA kernels and the cells one at a time, and which are found.

Ends with status 1 if fewer than 95 % are killed, or if one survives that ``survivors.py`` does not explain.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import random
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue

import emulated
from rich.console import Console
from rich.table import Table

from . import build
from .judge import Judged, Library, Verdict, judge, record
from .operators import Mutant, mutants
from .survivors import explained, explanation, out_of_date

FOLDER = emulated.ROOT / "build" / "mutants"
CELLS = ("cells/activations.h", "cells/approximate.h", "cells/gru.h", "cells/lstm.h")
LEAST = 0.95
console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def files() -> list[str]:
    kernels = sorted([*(emulated.CSRC / "cuda").glob("*.cu"), *(emulated.CSRC / "cuda").glob("*.cuh")])
    return [*CELLS, *(str(path.relative_to(emulated.CSRC)) for path in kernels)]


def stamp() -> str:
    """Of all that verdicts depend on: sources, tests, the runner, but not the explanations."""
    here, csrc = Path(__file__).parent, emulated.CSRC
    parts = [*csrc.glob("*.h"), *csrc.glob("cells/*"), *csrc.glob("cuda/*"), *here.parent.glob("ptx/*.py")]
    parts += [*here.parent.glob("ptx/runtime/*"), *(here.parent / f"{name}.py" for name in ("cases", "oracles"))]
    parts += [here / f"{name}.py" for name in ("build", "driver", "judge", "resets", "steps")]
    hashed = hashlib.sha256()
    for path in sorted(parts):
        hashed.update(path.read_bytes())
    return hashed.hexdigest()[:12]


def verdicts(chosen: Sequence[Mutant], jobs: int) -> Iterator[Judged]:
    """Judges each mutant, but those that an interrupted run on the same sources has judged."""
    folder = FOLDER / stamp()
    folder.mkdir(parents=True, exist_ok=True)
    journal = folder / "verdicts.jsonl"
    known = dict(json.loads(line) for line in journal.read_text().splitlines()) if journal.exists() else {}
    key = {mutant: f"{mutant.id} {mutant.becomes}" for mutant in chosen}
    yield from ((mutant, Verdict(**known[key[mutant]])) for mutant in chosen if key[mutant] in known)
    left = [mutant for mutant in chosen if key[mutant] not in known]
    if not left:
        return
    base, table = build.base(FOLDER), folder / "table.pickle"
    record(base, table)
    found: SimpleQueue[Judged | BaseException | None] = SimpleQueue()
    batches: SimpleQueue[list[Mutant]] = SimpleQueue()
    for batch in batched(left):
        batches.put(batch)

    def work(number: int) -> None:
        try:
            bench, library = build.Bench(folder / f"bench-{number}", emulated.CSRC), Library(base.library)
            with contextlib.suppress(Empty):
                while True:
                    for judged in judge(base, bench, library, table, batches.get(block=False)):
                        found.put(judged)
            found.put(None)
        except BaseException as error:
            found.put(error)

    for number in range(jobs):
        threading.Thread(target=work, args=(number,), daemon=True).start()
    with journal.open("a") as written:
        while jobs:
            done = found.get()
            if isinstance(done, BaseException):
                raise done
            if done is None:
                jobs -= 1
                continue
            mutant, verdict = done
            print(json.dumps([key[mutant], asdict(verdict)]), file=written, flush=True)
            yield mutant, verdict


def batched(chosen: Sequence[Mutant]) -> Iterator[list[Mutant]]:
    """As many at a time as a bench has copies, of one file: these change the same kernels."""
    for _, of_file in itertools.groupby(chosen, lambda mutant: mutant.file):
        left = list(of_file)
        while left:
            yield left[: build.COPIES]
            del left[: build.COPIES]


def show(judged: Sequence[Judged]) -> int:
    """Prints the survivors, the table of files and the totals; returns the exit status."""
    survived = explained(sorted(m for m, v in judged if v.outcome == "survived"))
    for mutant, why in survived:
        console.print(f"{mutant.id} {mutant.kind}\n  - {mutant.was}\n  + {mutant.becomes}", markup=False)
        console.print(f"  {why or 'unexplained'}", style="dim" if why else "red", markup=False)
    table = Table("file", "mutants", "killed", "survived", "equivalent", "invalid", "seconds each")
    for file in sorted({m.file for m, _ in judged}):
        row(table, file, [v for m, v in judged if m.file == file])
    row(table, "all", [v for _, v in judged])
    console.print(table)
    outcomes = Counter(v.outcome for _, v in judged)
    counted = outcomes["killed"] + outcomes["survived"]
    rate = outcomes["killed"] / counted if counted else 1.0
    unexplained = sum(not why for _, why in survived)
    console.print(f"{rate:.1%} of {counted} mutants killed; {len(survived)} survived, {unexplained} unexplained")
    return int(rate < LEAST or unexplained > 0)


def row(table: Table, name: str, found: Sequence[Verdict]) -> None:
    counts = Counter(v.outcome for v in found)
    outcomes = [str(counts[outcome]) for outcome in ("killed", "survived", "equivalent", "invalid")]
    table.add_row(name, str(len(found)), *outcomes, f"{sum(v.seconds for v in found) / len(found):.1f}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__)
    parser.add_argument("--file", action="append", help="only this file beneath csrc/ (several are possible)")
    parser.add_argument("--match", help="only those whose place, kind or new line has this text: cuda/product.cuh:82")
    parser.add_argument("--sample", type=int, help="so many of them, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--list", action="store_true", help="print them and judge none")
    parser.add_argument("-j", "--jobs", type=int, default=2)
    asked = parser.parse_args()
    if why := emulated.why_not():
        raise SystemExit(f"mutants: no emulation: {why}")
    chosen = [m for file in asked.file or files() for m in mutants(file, (emulated.CSRC / file).read_text())]
    if asked.match is not None:
        chosen = [m for m in chosen if asked.match in f"{m.id} {m.kind} {m.becomes}"]
    if asked.sample is not None and asked.sample < len(chosen):
        chosen = sorted(random.Random(asked.seed).sample(chosen, asked.sample))
    if asked.list:
        for mutant in chosen:
            print(f"{mutant.id} {mutant.kind}\n  - {mutant.was}\n  + {mutant.becomes}")
        return 0
    for known in out_of_date(chosen) if asked.sample is None and asked.match is None else ():
        console.print(f"out of date in survivors.py: {known.file}: {known.was}", markup=False, style="red")
    judged: list[Judged] = []
    for mutant, verdict in verdicts(chosen, asked.jobs):
        judged.append((mutant, verdict))
        console.print(
            f"{len(judged)}/{len(chosen)} {mutant.id} {mutant.kind} {verdict.outcome} {verdict.seconds} s "
            f"{verdict.reason}\n    {mutant.becomes}",
            markup=False,
            style="red" if verdict.outcome == "survived" and not explanation(mutant) else None,
        )
    return show(judged)


if __name__ == "__main__":
    raise SystemExit(main())
