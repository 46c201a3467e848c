"""What `recompute=True` saves and costs: memory and time of a training step beside torch's layer and our plain one.

Memory is what the process holds at most during a step (its peak resident size) beyond what it held before, in a
process of its own for each layer; so everything counts, whoever allocated it. Time is taken in this process, the three
layers in turn. Gradients of the input and every weight are part of the step; what they accumulate into is there before.

    python benchmarks/experiments/recompute.py --plot recompute.png
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import lstm_fused
from lstm_fused.bench.cases import Case
from lstm_fused.bench.measure import interleave
from lstm_fused.bench.workload import Workload, make_inputs

LAYERS = ("torch", "plain", "recompute")
COLOURS = {"torch": "#888888", "plain": "#2a7f9e", "recompute": "#e08e45"}
#: Memory matters for many data rows of many units; time for the small ones, too.
CASES = [
    Case(cell, T, B, H, H)
    for cell in ("lstm", "gru")
    for T, B, H in (
        (100, 1, 256),
        (100, 4, 256),
        (1000, 1, 128),
        (1000, 8, 64),
        (100, 32, 256),
        (50, 64, 512),
        (200, 64, 512),
    )
]


def workload(case: Case, layer: str) -> Workload:
    """A training step of one layer."""
    torch.manual_seed(0)
    options = {"recompute": True} if layer == "recompute" else {}
    kind: Any = getattr(nn if layer == "torch" else lstm_fused, case.cell.upper())
    return Workload(case, "training", kind(case.I, case.H, **options), make_inputs(case, torch.float32))


def resident(name: str) -> int:
    """Bytes of this process: ``VmRSS``, now, or ``VmHWM``, the most since the count was set back."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def peak_here(case: Case, layer: str) -> int:
    """Peak bytes of a step in this process, after a short one that loads what is loaded once."""
    workload(Case(case.cell, 2, case.B, case.I, case.H), layer).call()
    work = workload(case, layer)
    for leaf in (work.data, *work.parameters):
        leaf.grad = torch.zeros_like(leaf)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    torch.autograd.backward(work.differentiated(work.module(*work.arguments)), work.gradient)
    return resident("VmHWM") - before


def peak(case: Case, layer: str) -> int:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--child", layer, case.cell, *map(str, (case.T, case.B, case.H))]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def plot(results: list[tuple[Case, dict[str, int], dict[str, float]]], path: Path) -> None:
    """Memory and time of every case, torch's being 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.9 + 0.5 * len(results)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for k, title in enumerate(("peak memory of a training step", "time of a training step")):
        for i, layer in enumerate(LAYERS[1:]):
            values = [r[1 + k][layer] / r[1 + k]["torch"] for r in results]
            places = [row + (i - 0.5) * 0.38 for row in range(len(results))]
            axes[k].barh(places, values, 0.38, color=COLOURS[layer], label=layer)
            for place, value in zip(places, values, strict=True):
                axes[k].annotate(f"{value:.2f}", (value, place), xytext=(3, 0), textcoords="offset points", va="center")
        axes[k].axvline(1, color="#444444", linewidth=1)
        axes[k].set_title(f"{title}, torch.nn = 1", loc="left", fontsize=10)
        axes[k].spines[["top", "right", "left"]].set_visible(False)
    axes[0].set_yticks(range(len(results)), [case.name.replace(">", "→") for case, _, _ in results])
    axes[0].set_ylim(len(results) - 0.4, -0.6)
    axes[0].legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=130)


def main(
    budget: Annotated[float, typer.Option(help="seconds of timing for each case")] = 4.0,
    threads: Annotated[int, typer.Option()] = 2,
    plot_to: Annotated[Path | None, typer.Option("--plot", help="draw the result to this file")] = None,
    child: Annotated[str, typer.Option(hidden=True)] = "",
    arguments: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
) -> None:
    """Memory and time of a training step with and without recompute, beside torch's layer."""
    torch.set_num_threads(threads)
    if child:
        cell, T, B, H = arguments or []
        print(peak_here(Case(cell, int(T), int(B), int(H), int(H)), child))
        return
    results = []
    for case in track(CASES, description="measuring"):
        memory = {layer: peak(case, layer) for layer in LAYERS}
        timings = interleave({layer: workload(case, layer).call for layer in LAYERS}, budget)
        results.append((case, memory, {layer: timings[layer].median for layer in LAYERS}))
    table = Table("case", "peak MB: torch", "plain", "recompute", "of torch's", "time: plain", "recompute", "ratio")
    for case, memory, times in results:
        table.add_row(
            case.name,
            *(f"{memory[layer] / 1e6:.1f}" for layer in LAYERS),
            f"{memory['recompute'] / memory['torch']:.2f}",
            *(f"{1e3 * times[layer]:.2f} ms" for layer in LAYERS[1:]),
            f"{times['recompute'] / times['plain']:.2f}",
        )
    Console(width=120).print(table)
    if plot_to:
        plot(results, plot_to)


if __name__ == "__main__":
    typer.run(main)
