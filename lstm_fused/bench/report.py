"""What a run of the benchmark found, and how it is kept: rows, JSON (everything) and CSV (one line a row)."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lstm_fused.bench.card import Card, CardFloor
from lstm_fused.bench.cases import Case
from lstm_fused.bench.floor import Bound, Floor
from lstm_fused.bench.machine import Caches, Machine
from lstm_fused.bench.measure import Timing
from lstm_fused.bench.statistics import median
from lstm_fused.bench.workload import Difference

SCHEMA = 1


@dataclass(frozen=True)
class PeerResult:
    """One other runtime on one row: its time and difference from torch, or why there is none."""

    timing: Timing | None = None
    difference: Difference | None = None
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """One case in one mode: both layers' times, the floor, what was chosen, and how far results lie apart."""

    case: Case
    mode: str
    dtype: str
    threads: int
    isa: str
    plan: str
    torch: Timing
    ours: Timing
    flops: float
    bound: Bound
    difference: Difference
    peers: dict[str, PeerResult] = field(default_factory=dict)
    cudnn: str = ""  # of torch's layer on a CUDA device: the algorithm that cuDNN is asked for
    timed: str = "clock"

    @property
    def ratio(self) -> float:
        """torch's median over ours: above 1 we are faster."""
        return self.torch.median / self.ours.median

    @property
    def gflops(self) -> float:
        """GFLOP/s that our time comes to."""
        return self.flops / self.ours.median / 1e9

    @property
    def fraction(self) -> float:
        """Floor over our time: 1 would be the limit of the machine."""
        return self.bound.seconds / self.ours.median

    @property
    def key(self) -> tuple[Case, str, str, int]:
        """What identifies the row among several runs."""
        return self.case, self.mode, self.dtype, self.threads


@dataclass(frozen=True)
class Failure:
    """A row that could not be run: which layer raised what."""

    case: Case
    mode: str
    error: str


@dataclass(frozen=True)
class ContendedRow:
    """A row beside a busy process: seconds of both layers when quiet, and with each core taken in turn."""

    case: Case
    mode: str
    quiet: dict[str, float]
    busy: dict[int, dict[str, float]]  # core -> layer -> seconds

    def slowdown(self, name: str) -> float:
        """Time of the layer `name` with the worst core taken, over its quiet time."""
        return max(times[name] for times in self.busy.values()) / self.quiet[name]


@dataclass(frozen=True)
class VariantRow:
    """A plain run of our layer, a loop or torch's layer, and what is measured beside it: lengths, resets, vmap, ..."""

    case: Case
    mode: str
    variant: str
    plain: Timing
    timing: Timing
    allowed: float  # the most that `ratio` may be; 0: no bound

    @property
    def ratio(self) -> float:
        """The variant's median over that of the plain run."""
        return self.timing.median / self.plain.median

    @property
    def key(self) -> tuple[Case, str, str]:
        """What identifies the row among several runs."""
        return self.case, self.mode, self.variant


@dataclass
class Report:
    """One run, or the medians of several."""

    machine: Machine
    floor: Floor | CardFloor
    rows: list[Row] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    contended: list[ContendedRow] = field(default_factory=list)
    variants: list[VariantRow] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    runs: int = 1
    complete: bool = True

    @property
    def card(self) -> Card | None:
        """The CUDA device that the rows ran on, if they did."""
        return self.floor.card if isinstance(self.floor, CardFloor) else None


def to_dict(report: Report) -> dict[str, Any]:
    """Everything in plain types, with the derived numbers of each row written out for other tools."""
    plain = {"schema": SCHEMA, **asdict(report)}
    for entry, row in zip(plain["rows"], report.rows, strict=True):
        entry |= {"name": row.case.name, "ratio": row.ratio, "gflops": row.gflops, "fraction": row.fraction}
    return plain


def from_dict(plain: dict[str, Any]) -> Report:
    """The inverse of `to_dict`. Raises ValueError for another schema version."""
    if plain.get("schema") != SCHEMA:
        raise ValueError(f"report: expected schema {SCHEMA}, got {plain.get('schema')!r}")
    machine = dict(plain["machine"])
    machine |= {
        "caches": Caches(**machine["caches"]),
        "isas_available": tuple(machine["isas_available"]),
    }
    return Report(
        machine=Machine(**machine),
        floor=floor_from_dict(plain["floor"]),
        rows=[row_from_dict(entry) for entry in plain["rows"]],
        failures=[Failure(Case(**e["case"]), e["mode"], e["error"]) for e in plain["failures"]],
        contended=[
            ContendedRow(Case(**e["case"]), e["mode"], e["quiet"], {int(core): t for core, t in e["busy"].items()})
            for e in plain["contended"]
        ],
        variants=[
            VariantRow(
                **{**e, "case": Case(**e["case"]), "plain": Timing(**e["plain"]), "timing": Timing(**e["timing"])}
            )
            for e in plain.get("variants", ())  # reports of before have none
        ],
        settings=plain["settings"],
        runs=plain["runs"],
        complete=plain["complete"],
    )


def floor_from_dict(entry: dict[str, Any]) -> Floor | CardFloor:
    """The ceilings of a machine, or of a CUDA device."""
    if "card" not in entry:
        return Floor(**{**entry, "caches": Caches(**entry["caches"])})
    card = {**entry["card"], "capability": tuple(entry["card"]["capability"])}
    return CardFloor(**{**entry, "card": Card(**card)})


def row_from_dict(entry: dict[str, Any]) -> Row:
    """One row from its JSON object; derived numbers are computed again, not read."""
    return Row(
        case=Case(**entry["case"]),
        mode=entry["mode"],
        dtype=entry["dtype"],
        threads=entry["threads"],
        isa=entry["isa"],
        plan=entry["plan"],
        torch=Timing(**entry["torch"]),
        ours=Timing(**entry["ours"]),
        flops=entry["flops"],
        bound=Bound(**entry["bound"]),
        difference=Difference(**entry["difference"]),
        peers={
            name: PeerResult(
                Timing(**peer["timing"]) if peer["timing"] else None,
                Difference(**peer["difference"]) if peer["difference"] else None,
                peer["reason"],
            )
            for name, peer in entry["peers"].items()
        },
        cudnn=entry.get("cudnn", ""),
        timed=entry.get("timed", "clock"),
    )


def save_json(report: Report, path: Path) -> None:
    """Writes everything to `path`."""
    path.write_text(json.dumps(to_dict(report), indent=1) + "\n", encoding="utf-8")


def load_json(path: Path) -> Report:
    """Reads what `save_json` wrote."""
    return from_dict(json.loads(path.read_text(encoding="utf-8")))


CSV_COLUMNS = (
    *("case", "cell", "T", "B", "I", "H", "layers", "bidirectional", "proj", "packed"),
    *("mode", "dtype", "threads", "isa", "plan"),
    *("torch_s", "torch_q1_s", "torch_q3_s", "ours_s", "ours_q1_s", "ours_q3_s", "ratio", "gflops"),
    *("floor_s", "floor_limit", "fraction_of_floor"),
    *("max_abs_difference", "max_relative_difference", "settled", "cudnn", "timed"),
)


def csv_line(row: Row, peers: Sequence[str]) -> list[Any]:
    """The row's values in the order of CSV_COLUMNS, then seconds of each of `peers` (empty: none)."""
    c, t, o = row.case, row.torch, row.ours
    line: list[Any] = [c.name, c.cell, c.T, c.B, c.I, c.H, c.layers, c.bidirectional, c.proj, c.packed]
    line += [row.mode, row.dtype, row.threads, row.isa, row.plan]
    line += [t.median, t.q1, t.q3, o.median, o.q1, o.q3, row.ratio, row.gflops]
    line += [row.bound.seconds, row.bound.limit, row.fraction]
    line += [row.difference.absolute, row.difference.relative, t.settled and o.settled]
    line += [row.cudnn, row.timed]
    for name in peers:
        timing = row.peers[name].timing if name in row.peers else None
        line.append(timing.median if timing else "")
    return line


def save_csv(report: Report, path: Path) -> None:
    """Writes one line a row, with a header; peers' seconds are the last columns."""
    peers = sorted({name for row in report.rows for name in row.peers})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*CSV_COLUMNS, *(f"{name}_s" for name in peers)])
        writer.writerows(csv_line(row, peers) for row in report.rows)


def merge(reports: Iterable[Report]) -> Report:
    """The median of several runs: for each row the run whose ratio is the median (the lower one of two).

    Whole rows are taken, so that times, spread and ratio belong together. Rows that not every run has are
    left out; failures of any run are kept. Machine, floor and settings are the first run's.
    Raises ValueError without reports.
    """
    reports = list(reports)
    if not reports:
        raise ValueError("reports: expected at least one")
    return Report(
        machine=reports[0].machine,
        floor=reports[0].floor,
        rows=merge_rows([report.rows for report in reports]),
        failures=[failure for report in reports for failure in report.failures],
        contended=merge_contended([row for report in reports for row in report.contended]),
        variants=merge_rows([report.variants for report in reports]),
        settings=reports[0].settings,
        runs=sum(report.runs for report in reports),
        complete=all(report.complete for report in reports),
    )


AnyRow = TypeVar("AnyRow", Row, VariantRow)


def merge_rows(runs: list[list[AnyRow]]) -> list[AnyRow]:
    """Of each row that every run has, the one whose ratio is the median."""
    merged = []
    for first in runs[0]:
        found = [row for rows in runs for row in rows if row.key == first.key]
        if len(found) == len(runs):
            merged.append(sorted(found, key=lambda row: row.ratio)[(len(found) - 1) // 2])
    return merged


def merge_contended(rows: list[ContendedRow]) -> list[ContendedRow]:
    """One row for each case and mode: the one whose slow-down of ours is nearest the median."""
    merged = []
    for case, mode in dict.fromkeys((row.case, row.mode) for row in rows):
        found = [row for row in rows if (row.case, row.mode) == (case, mode)]
        middle = median([row.slowdown("lstm_fused") for row in found])
        merged.append(min(found, key=lambda row: abs(row.slowdown("lstm_fused") - middle)))
    return merged
