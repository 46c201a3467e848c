"""``python -m mutants``: small faults put into the CUDA kernels and the cells one at a time, and which are found.

Ends with status 1 if fewer than 95 % are killed, or if one survives that ``survivors.txt`` does not explain.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from queue import SimpleQueue

import emulated
from rich.console import Console
from rich.table import Table

from . import build
from .journal import Journal
from .judge import Judged, Library, Verdict, judge, record
from .operators import Mutant, mutants
from .survivors import explained, explanation, is_equivalent, out_of_date

FOLDER = emulated.ROOT / "build" / "mutants"
HOST = ("cuda/launch.cuh", "cuda/forward.cu", "cuda/backward.cu")
KERNELS = tuple(
    f"cuda/{name}.cuh"
    for name in (
        *("block", "forward", "backward", "product", "tensor_product", "values"),
        *("exchange", "chain_product", "even_forward", "even_backward"),
    )
)
CELLS = ("cells/activations.h", "cells/approximate.h", "cells/gru.h", "cells/lstm.h")
LEAST = 0.95
console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, emoji=False)


def files() -> list[str]:
    """In the order in which their mutants are tried."""
    kernels = sorted([*(emulated.CSRC / "cuda").glob("*.cu"), *(emulated.CSRC / "cuda").glob("*.cuh")])
    others = {str(path.relative_to(emulated.CSRC)) for path in kernels} - {*HOST, *KERNELS}
    return [*HOST, *KERNELS, *sorted(others), *CELLS]


def verdicts(chosen: Sequence[Mutant], journal: Journal, rounds: int, jobs: int) -> Iterator[Judged]:
    """Judges each mutant, as far as the journal has no verdict; those that are open after a round, in the next one."""
    judged = [(mutant, journal.verdict(mutant)) for mutant in chosen]
    yield from (done for done in judged if done[1].outcome != "open")
    if all(verdict.outcome != "open" for _, verdict in judged):
        return
    base, table = build.base(FOLDER), FOLDER / f"table-{'-'.join(journal.stamps.values())}.pickle"
    record(base, table)
    benches: SimpleQueue[tuple[build.Bench, Library]] = SimpleQueue()
    for job in range(jobs):
        benches.put((build.Bench(FOLDER / f"bench-{job}", emulated.CSRC), Library(base.library)))

    def work(number: int, batch: Sequence[Judged]) -> Sequence[Judged]:
        bench, library = benches.get()
        judge(base, bench, library, table, number, batch)
        benches.put((bench, library))
        return batch

    with ThreadPoolExecutor(jobs) as pool:
        for number in range(rounds):
            left = [(m, v) for m, v in judged if v.outcome == "open" and v.rounds == number]
            batches = [left[i : i + build.COPIES] for i in range(0, len(left), build.COPIES)]
            for done in as_completed([pool.submit(work, number, batch) for batch in batches]):
                for mutant, verdict in done.result():
                    journal.write(mutant, verdict)
                    yield mutant, verdict


def show(chosen: Sequence[Mutant], journal: Journal, sampled: bool) -> int:
    """Prints what is not killed, the table of files and the totals; returns the exit status."""
    judged = [(mutant, journal.verdict(mutant)) for mutant in chosen]
    passed = explained(sorted(m for m, v in judged if v.outcome == "survived" or (v.outcome == "open" and v.rounds)))
    for mutant, why in passed:
        console.print(f"{mutant.id} {mutant.kind}\n  - {mutant.was}\n  + {mutant.becomes}", markup=False)
        console.print(f"  {why or 'unexplained'}", style="dim" if why else "red", markup=False)
    reasons = dict(passed)
    table = Table("file", "mutants", *COLUMNS, "seconds each")
    for file in sorted({m.file for m in chosen}):
        row(table, file, [(column(m, v, reasons), v) for m, v in judged if m.file == file])
    found = [(column(m, v, reasons), v) for m, v in judged]
    row(table, "all", found)
    console.print(table)
    counts = Counter(name for name, _ in found)
    tried = sum(counts[name] for name in ("killed", "equal", "explained", "unexplained", "open"))
    worth = tried - counts["equal"]
    rate = counts["killed"] / worth if worth else 1.0
    console.print(
        f"{counts['killed']} killed: {rate:.1%} of the {worth} that change a result, "
        f"{counts['killed'] / max(tried, 1):.1%} of all {tried} that were tried and change a program"
    )
    if sampled:
        low, high = interval(counts["killed"], worth)
        console.print(f"of all that change a result, with 95 % confidence: {low:.1%} to {high:.1%}")
    return int(rate < LEAST or counts["unexplained"] + counts["open"] + counts["not tried"] > 0)


def interval(found: int, tried: int) -> tuple[float, float]:
    """Where a share lies with 95 % confidence, of which a sample is known: Wilson's interval (1927)."""
    z, n = 1.96, max(tried, 1)
    centre, spread = found / n + z * z / (2 * n), z * math.sqrt(found * (n - found) / n**3 + (z / (2 * n)) ** 2)
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)


# A mutant that survives changes no result ("equal", says survivors.txt), or is seen by no test there for a known
# reason, or for none. One that passes the rounds so far, but not yet all, is "open".
COLUMNS = ("killed", "equal", "explained", "unexplained", "open", "same program", "invalid", "not tried")


def column(mutant: Mutant, verdict: Verdict, reasons: dict[Mutant, str]) -> str:
    if verdict.outcome == "open" and not verdict.rounds:
        return "not tried"
    if verdict.outcome in ("killed", "invalid"):
        return verdict.outcome
    if verdict.outcome == "equivalent":
        return "same program"
    if why := reasons[mutant]:
        return "equal" if is_equivalent(why) else "explained"
    return "open" if verdict.outcome == "open" else "unexplained"


def row(table: Table, name: str, found: Sequence[tuple[str, Verdict]]) -> None:
    counts = Counter(column for column, _ in found)
    seconds = [verdict.seconds for column, verdict in found if column != "not tried"]
    numbers = [str(counts[column] or "") for column in COLUMNS]
    table.add_row(name, str(len(found)), *numbers, f"{sum(seconds) / max(len(seconds), 1):.1f}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__)
    parser.add_argument("--file", action="append", help="only this file beneath csrc/ (several are possible)")
    parser.add_argument("--match", help="only those whose place, kind or new line has this text: cuda/product.cuh:82")
    parser.add_argument("--sample", type=int, help="so many of them, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--list", action="store_true", help="print them and judge none")
    parser.add_argument("--rounds", type=int, default=len(build.ROUNDS), help="of kernels, the first ones alone")
    parser.add_argument("--show", action="store_true", help="what earlier runs on these sources and tests have found")
    parser.add_argument("-j", "--jobs", type=int, default=2)
    asked = parser.parse_args()
    if why := emulated.why_not():
        raise SystemExit(f"mutants: no emulation: {why}")
    chosen = [m for file in asked.file or files() for m in mutants(file, (emulated.CSRC / file).read_text())]
    if asked.match is not None:
        chosen = [m for m in chosen if asked.match in f"{m.id} {m.kind} {m.becomes}"]
    if asked.sample is not None:  # of a larger sample by the same seed, a smaller one is part
        chosen = sorted(random.Random(asked.seed).sample(chosen, len(chosen))[: asked.sample])
    if asked.list:
        for mutant in chosen:
            print(f"{mutant.id} {mutant.kind}\n  - {mutant.was}\n  + {mutant.becomes}")
        return 0
    for known in out_of_date(chosen) if asked.sample is None and asked.match is None else ():
        console.print(f"out of date in survivors.txt: {known.file}: {known.was}", markup=False, style="red")
    FOLDER.mkdir(parents=True, exist_ok=True)
    journal = Journal(FOLDER / "verdicts.jsonl")
    found = () if asked.show else verdicts(chosen, journal, asked.rounds, asked.jobs)
    for done, (mutant, verdict) in enumerate(found, 1):
        console.print(
            f"{done} ({len(chosen)}) {mutant.id} {mutant.kind} {verdict.outcome} {verdict.seconds} s "
            f"{verdict.reason}\n    {mutant.becomes}",
            markup=False,
            style="red" if verdict.outcome == "survived" and not explanation(mutant) else None,
        )
    return show(chosen, journal, sampled=asked.sample is not None)


if __name__ == "__main__":
    raise SystemExit(main())
