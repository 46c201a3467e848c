"""The project's speed targets, evaluated from the rows that were run.

Targets are stated for float32 and two threads. Classes:

    never slower      every row
    latency-bound     LSTM and GRU layers with B 1 to 8 and H <= 256 (the streaming row 1,1,256,256 is one)
    GRU               layers with B <= 8; the rest; every row
    packed            rows with packed input, both modes: at least eight shapes make the class
    streaming         T = 1, B = 1: the cell module against torch's cell, the layer against torch's layer
    contention        slow-down with a busy process on the worst core

Packed rows and cell modules count in their own classes and in the every-row ones only: torch's packed path
and per-step overhead are so slow that they would carry the other means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lstm_fused.bench.report import ContendedRow, Report, Row
from lstm_fused.bench.statistics import geometric_mean

LEAST_PACKED_SHAPES = 8


@dataclass(frozen=True)
class Target:
    """One target: what was wanted (at least, or at most), what was measured (None: nothing), a remark."""

    name: str
    wanted: float
    measured: float | None
    remark: str = ""
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """True, False, or None if nothing was measured."""
        if self.measured is None:
            return None
        return self.measured <= self.wanted if self.at_most else self.measured >= self.wanted


def plain_layer(row: Row) -> bool:
    """A layer on padded input."""
    return row.case.module == "layer" and not row.case.packed


def worst(name: str, wanted: float, rows: Sequence[Row]) -> Target:
    """The smallest ratio of `rows`, with its row's name as the remark."""
    if not rows:
        return Target(name, wanted, None)
    row = min(rows, key=lambda row: row.ratio)
    below = sum(row.ratio < wanted for row in rows)
    return Target(name, wanted, row.ratio, f"{row.case.name}, {row.mode}; {below} of {len(rows)} rows below")


def mean(name: str, wanted: float, rows: Sequence[Row]) -> Target:
    """The geometric mean of the ratios of `rows`."""
    if not rows:
        return Target(name, wanted, None)
    return Target(name, wanted, geometric_mean([row.ratio for row in rows]), f"rows: {len(rows)}")


def packed(rows: Sequence[Row]) -> Target:
    """The packed class, which needs enough shapes to mean anything."""
    found = [row for row in rows if row.case.packed]
    target = mean("packed, geometric mean", 5.0, found)
    shapes = len({row.case.shape for row in found})
    if found and shapes < LEAST_PACKED_SHAPES:
        return Target(
            target.name,
            5.0,
            target.measured,
            f"shapes: {shapes}; --grid packed has {LEAST_PACKED_SHAPES}",
        )
    return target


def streaming(rows: Sequence[Row]) -> list[Target]:
    """The LSTM step at B = 1, H = 256, inference: the cell module and the layer, each against torch's own."""
    steps = [
        row
        for row in rows
        if row.case.cell == "lstm"
        and row.case.streaming
        and row.case.B == 1
        and row.case.H == 256
        and row.mode == "inference"
    ]
    return [
        worst(
            f"streaming step, nn.LSTM{suffix} / lstm_fused.LSTM{suffix}",
            wanted,
            [row for row in steps if row.case.module == module],
        )
        for suffix, module, wanted in (("Cell", "cell", 3.0), ("", "layer", 5.0))
    ]


def contention(rows: Sequence[ContendedRow]) -> Target:
    """The worst slow-down of ours, with torch's on the same row as the remark."""
    name = "slow-down with one core busy, worst row"
    if not rows:
        return Target(name, 4.0, None, "run with --contended", at_most=True)
    row = max(rows, key=lambda row: row.slowdown("lstm_fused"))
    remark = f"{row.case.name}, {row.mode}; torch {row.slowdown('torch'):.1f}x there"
    return Target(name, 4.0, row.slowdown("lstm_fused"), remark, at_most=True)


def evaluate(report: Report) -> list[Target]:
    """Every target, in the order of the table at the end of a run."""
    rows = report.rows
    found = [worst("never slower, every row", 0.97, rows)]
    latency: Callable[[Row], bool] = lambda row: plain_layer(row) and row.case.B <= 8 and row.case.H <= 256  # noqa: E731
    for mode, wanted in (("inference", 3.0), ("training", 2.0)):
        chosen = [row for row in rows if latency(row) and row.mode == mode]
        found.append(mean(f"latency-bound, {mode}, geometric mean", wanted, chosen))
        lstm = [row for row in chosen if row.case.cell == "lstm"]
        found.append(mean(f"latency-bound LSTM, {mode}, geometric mean", wanted, lstm))
    gru = [row for row in rows if row.case.cell == "gru"]
    few = [row for row in gru if plain_layer(row) and row.case.B <= 8]
    rest = [row for row in gru if plain_layer(row) and row.case.B > 8]
    found.append(mean("GRU B <= 8, geometric mean", 3.0, few))
    found.append(mean("GRU B > 8, geometric mean", 1.5, rest))
    found.append(worst("GRU, every row", 1.15, gru))
    found.append(packed(rows))
    found += streaming(rows)
    found.append(contention(report.contended))
    return found
