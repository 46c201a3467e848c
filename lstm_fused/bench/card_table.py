"""The tables of a run on a CUDA device: its floor, and its rows."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from lstm_fused.bench.card import CardFloor
from lstm_fused.bench.report import Report, Row
from lstm_fused.bench.words import seconds, shade, size, timed


def add_card(table: Table, floor: CardFloor, software: str) -> None:
    """The device and its measured ceilings, as rows of `table`."""
    card = floor.card
    facts = f"{card.multiprocessors} multiprocessors, L2 {size(card.l2)}, memory {card.memory / 2**30:.0f} GiB"
    table.add_row("device", f"{card.name}, {card.architecture}, {facts}")
    table.add_row("software", f"{software}, CUDA {card.cuda}, cuDNN {card.cudnn}")
    table.add_row("this run", floor.dtype)
    table.add_row("GEMM peak", f"{floor.peak_gflops / 1e3:.3g} TFLOP/s ({floor.peak_shape})")
    table.add_row("memory bandwidth", f"{floor.memory_gbs:.0f} GB/s (a copy, read and written)")


def card_rows(report: Report) -> Table:
    """One line a row: both times, ratio, time a step, TFLOP/s, floor, our plan, cuDNN's path, difference from torch."""
    runs = f", median of {report.runs} runs" if report.runs > 1 else ""
    device = report.card.name if report.card else ""
    table = Table(
        title=f"torch.nn beside lstm_fused, {device}, {report.floor.dtype}{runs}",
        caption="median ± half the interquartile range; ~ budget ended first; ratio = torch / lstm_fused; "
        "a step: our time over the steps that follow one another, both passes of training as one; "
        "floor = max(FLOPs / GEMM peak, input, weights and output / memory bandwidth); "
        "cuDNN: the algorithm that torch asks it for",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("TxB I>H", "mode"):
        table.add_column(name, no_wrap=True)
    for name in ("torch", "lstm_fused", "ratio", "a step", "TFLOP/s", "floor", "of floor"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("plan", "cuDNN", "by"):
        table.add_column(name)
    table.add_column("max |diff|", justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(*card_cells(row))
    return table


def card_cells(row: Row) -> list[str | Text]:
    """The cells of one row."""
    steps = row.case.steps * row.case.layers * row.case.directions
    return [
        row.case.name,
        row.mode,
        timed(row.torch),
        timed(row.ours),
        Text(f"{row.ratio:.2f}", style=shade(row.ratio)),
        seconds(row.ours.median / steps),
        f"{row.gflops / 1e3:.3g}",
        f"{seconds(row.bound.seconds)} {row.bound.limit}",
        f"{100 * row.fraction:.0f}%",
        row.plan,
        row.cudnn,
        row.timed,
        f"{row.difference.absolute:.1e}",
    ]
