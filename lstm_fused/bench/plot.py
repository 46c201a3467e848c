"""The picture of a run: speed-up over torch.nn as horizontal bars, one panel a cell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lstm_fused.bench import table
from lstm_fused.bench.cases import CELLS, MODES
from lstm_fused.bench.report import Report, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"inference": "#2a7f9e", "training": "#e08e45"}
BAR = 0.38  # height of a bar, where cases are 1 apart
INCHES_A_CASE = 0.36


def label(value: float) -> str:
    """A speed-up as text: two digits after the point while they mean something."""
    return f"{value:.2f}x" if value < 9.95 else f"{value:.0f}x"


def draw_panel(axes: Axes, rows: list[Row], title: str) -> None:
    """Bars of one cell's rows in their order from the top; the line at 1 is torch."""
    shapes = list(dict.fromkeys((row.case.module, row.case.shape) for row in rows))
    modes = [mode for mode in MODES if any(row.mode == mode for row in rows)]
    for index, mode in enumerate(modes):
        chosen = [row for row in rows if row.mode == mode]
        offset = (index - (len(modes) - 1) / 2) * BAR
        places = [shapes.index((row.case.module, row.case.shape)) + offset for row in chosen]
        ratios = [row.ratio for row in chosen]
        # Bars start at 1 (equal to torch), so that on the logarithmic axis their length is the speed-up.
        axes.barh(places, [r - 1 for r in ratios], BAR, left=1, color=COLOURS[mode], label=mode)
        for place, ratio in zip(places, ratios, strict=True):
            axes.annotate(
                label(ratio), (max(ratio, 1.0), place), xytext=(3, 0), textcoords="offset points",
                va="center", fontsize=7, color="#444444",
            )  # fmt: skip
    names = [("cell " if module == "cell" else "") + shape.replace(">", "→") for module, shape in shapes]
    axes.set_yticks(range(len(shapes)), names, fontsize=8)
    axes.set_ylim(len(shapes) - 0.4, -0.6)
    axes.axvline(1, color="#444444", linewidth=1)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def set_scale(axes: Axes, rows: list[Row]) -> None:
    """A logarithmic axis with plain numbers, wide enough for the labels."""
    from matplotlib.ticker import FixedLocator, NullLocator

    low = min([row.ratio for row in rows] + [1.0])
    high = max([row.ratio for row in rows] + [2.0])
    axes.set_xscale("log")
    axes.set_xlim(low * 0.9, high * 1.35)
    ticks = [t for t in (0.25, 0.5, 1, 2, 3, 5, 10, 20, 50, 100, 200) if low * 0.9 <= t <= high * 1.35]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{t:g}x" for t in ticks], fontsize=8)


def plot(report: Report, path: Path) -> None:
    """Draws the speed-ups of `report` to `path` (the ending names the format).

    Raises ImportError naming the extra that installs matplotlib where it is missing, ValueError without rows.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("--plot needs matplotlib, not installed here: pip install lstm-fused[plot]") from error
    if not report.rows:
        raise ValueError("plot: no rows to draw")
    cells = [cell for cell in CELLS if any(row.case.cell == cell for row in report.rows)]
    panels = {cell: [row for row in report.rows if row.case.cell == cell] for cell in cells}
    most = max(len({(row.case.module, row.case.shape) for row in rows}) for rows in panels.values())
    figure = Figure(figsize=(5.6 * len(cells), 1.5 + INCHES_A_CASE * most), layout="constrained")
    for index, (cell, rows) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(cells), index + 1)
        draw_panel(axes, rows, cell.upper())
        set_scale(axes, rows)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9)
    figure.suptitle(
        f"Speed-up over torch.nn (T x B  I→H), {table.conditions(report)}\n{table.hardware(report)}, "
        f"torch {report.machine.torch}",
        fontsize=10,
    )
    figure.savefig(path, dpi=150)
