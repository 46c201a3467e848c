"""The benchmark on the terminal: floor, rows, contended rows, variants, targets."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from lstm_fused.bench.card import CardFloor
from lstm_fused.bench.card_table import add_card, card_rows
from lstm_fused.bench.machine import Caches
from lstm_fused.bench.measure import Timing
from lstm_fused.bench.report import PeerResult, Report, Row
from lstm_fused.bench.targets import Target, evaluate
from lstm_fused.bench.words import seconds, shade, size, timed


def caches_line(caches: Caches) -> str:
    """Cache sizes in words."""
    line = f"L1 {size(caches.l1)}, L2 {size(caches.l2)} a core, L3 {size(caches.l3)}"
    return line + (" (assumed: the system does not tell)" if caches.assumed else "")


def conditions(report: Report) -> str:
    """Type and threads, or type alone on a CUDA device, whose work no thread of the host does."""
    floor = report.floor
    return floor.dtype if isinstance(floor, CardFloor) else f"{floor.dtype}, {floor.threads} threads"


def hardware(report: Report) -> str:
    """What ran the rows, in a few words."""
    if report.card is not None:
        return f"{report.card.name}, {report.card.architecture}"
    return f"{report.machine.cpu}, {report.machine.isa}"


def floor_table(report: Report) -> Table:
    """The machine and its measured ceilings, printed before the rows."""
    machine, floor = report.machine, report.floor
    table = Table(title="this machine's floor", show_header=False, title_justify="left")
    software = f"lstm_fused {machine.lstm_fused}, torch {machine.torch}, Python {machine.python}"
    if isinstance(floor, CardFloor):
        add_card(table, floor, software)
        return table
    table.add_row("CPU", f"{machine.cpu}, {machine.cores} cores; {caches_line(machine.caches)}")
    table.add_row("software", software)
    table.add_row("this run", f"{floor.threads} threads, {floor.dtype}, ISA {machine.isa}")
    if machine.busy:
        text = f"load average {machine.load:.1f} as the run began: other processes disturb these times"
        table.add_row("busy", Text(text, style="yellow"))
    table.add_row("GEMM peak", f"{floor.peak_gflops:.0f} GFLOP/s ({floor.peak_shape})")
    table.add_row(
        "read bandwidth",
        f"L2 {floor.l2_gbs:.0f} GB/s, L3 {floor.l3_gbs:.0f} GB/s, memory {floor.memory_gbs:.0f} GB/s",
    )
    return table


def peer_text(peer: PeerResult | None, ours: Timing) -> str:
    """A peer's median and how many times ours that is, or a dash."""
    if peer is None or peer.timing is None:
        return "-"
    return f"{timed(peer.timing)} ({peer.timing.median / ours.median:.2f}x)"


def rows_table(report: Report) -> Table:
    """One line a row: both times, ratio, GFLOP/s, floor, plan and ISA, difference from torch."""
    if report.card is not None:
        return card_rows(report)
    runs = f", median of {report.runs} runs" if report.runs > 1 else ""
    table = Table(
        title=f"torch.nn beside lstm_fused, {conditions(report)}{runs}",
        caption="median ± half the interquartile range; ~ budget ended first; ratio = torch / lstm_fused; "
        "floor = max(FLOPs / GEMM peak, recurrent weights / bandwidth of the level that holds them)",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("TxB I>H", "mode"):
        table.add_column(name, no_wrap=True)
    for name in ("torch", "lstm_fused", "ratio", "GFLOP/s", "floor", "of floor"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("plan, ISA")
    table.add_column("max |diff|", justify="right", no_wrap=True)
    peers = sorted({name for row in report.rows for name in row.peers})
    for name in peers:
        table.add_column(f"{name} (x ours)", justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(*row_cells(row), *(peer_text(row.peers.get(name), row.ours) for name in peers))
    return table


def row_cells(row: Row) -> list[str | Text]:
    """The cells of one row, peers apart."""
    return [
        row.case.name,
        row.mode,
        timed(row.torch),
        timed(row.ours),
        Text(f"{row.ratio:.2f}", style=shade(row.ratio)),
        f"{row.gflops:.3g}",
        f"{seconds(row.bound.seconds)} {row.bound.limit}",
        f"{100 * row.fraction:.0f}%",
        f"{row.plan}, {row.isa}",
        f"{row.difference.absolute:.1e}",
    ]


def peer_remarks(report: Report) -> list[str]:
    """Why peers did not run, each reason once."""
    reasons: dict[tuple[str, str], int] = {}
    for row in report.rows:
        for name, peer in row.peers.items():
            if peer.reason:
                reasons[name, peer.reason] = reasons.get((name, peer.reason), 0) + 1
    return [f"{name} did not run {count} of the rows: {why}" for (name, why), count in reasons.items()]


def row_line(row: Row) -> str:
    """One row as a line of text, for logs and the progress bar."""
    return (
        f"{row.case.name}, {row.mode}: torch {seconds(row.torch.median)}, "
        f"lstm_fused {seconds(row.ours.median)}, ratio {row.ratio:.2f}"
    )


def contended_table(report: Report) -> Table:
    """Slow-down of both layers with each core taken in turn."""
    table = Table(title="beside one busy process, pinned to each core in turn", title_justify="left")
    table.add_column("row", no_wrap=True)
    for name in ("layer", "quiet", "busy, by core", "worst slow-down"):
        table.add_column(name, justify="left" if name == "layer" else "right")
    for row in report.contended:
        for index, name in enumerate(row.quiet):
            busy = ", ".join(f"{core}: {seconds(times[name])}" for core, times in sorted(row.busy.items()))
            label = f"{row.case.name}, {row.mode}" if index == 0 else ""
            table.add_row(label, name, seconds(row.quiet[name]), busy, f"{row.slowdown(name):.1f}x")
    return table


def variants_table(report: Report) -> Table:
    """What lengths, resets and torch.compile take, as parts of a plain run."""
    table = Table(
        title="lstm_fused beside its own plain run on the padded batch",
        caption="lengths uniform in 1..T; resets before 2% of the steps; ratio = variant / plain run, loop or torch",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("TxB I>H", "mode", "variant"):
        table.add_column(name, no_wrap=True)
    for name in ("plain", "time", "ratio", "allowed"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.variants:
        style = "red" if row.allowed and row.ratio > 1.03 * row.allowed else ""
        ratio, most = Text(f"{row.ratio:.2f}", style=style), f"{row.allowed:.2f}" if row.allowed else "-"
        table.add_row(row.case.name, row.mode, row.variant, timed(row.plain), timed(row.timing), ratio, most)
    return table


def met_text(target: Target) -> Text:
    """Whether a target is met, in colour."""
    if target.met is None:
        return Text("not measured", style="dim")
    return Text("met", style="green") if target.met else Text("missed", style="red")


def targets_table(report: Report) -> Table:
    """The speed targets, evaluated from the rows."""
    stated = conditions(report) == "float32, 2 threads"
    table = Table(
        title="speed targets" + ("" if stated else " (stated for float32 and two threads, which this run is not)"),
        title_justify="left",
    )
    table.add_column("target")
    table.add_column("wanted", justify="right", no_wrap=True)
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("remark")
    for target in evaluate(report):
        sign = "<=" if target.at_most else ">="
        measured = "" if target.measured is None else f"{target.measured:.3g}x"
        table.add_row(target.name, f"{sign} {target.wanted:g}x", measured, met_text(target), target.remark)
    return table
