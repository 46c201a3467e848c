"""A small real training run with either layer: a character model of four of Shakespeare's plays.

Two copies of one model, one on torch.nn.LSTM (or GRU), one on lstm_fused.LSTM, start from the same weights,
see the same batches in the same order and take turns in blocks of a few steps, so that whatever else the
machine does hits both. Printed: both loss curves, the loss on held-out text, time of both, and a sample of
what the model writes, one streaming step a character. Ends with status 1 if the held-out losses lie apart.

    python benchmarks/experiments/train_shakespeare.py --steps 300 --plot curve.png

The text ships with the repository (data/PROVENANCE.md); nothing is downloaded.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lstm_fused

DATA = Path(__file__).parent / "data"
HELD_OUT = 0.05  # the last part of each play
BLOCK = 10  # steps of one layer before it is the other's turn
LIBRARIES: dict[str, Any] = {"torch": torch.nn, "lstm_fused": lstm_fused}


class CharacterModel(nn.Module):
    """Embedding, stacked recurrent layer, projection to the alphabet of V characters."""

    def __init__(self, library: Any, cell: str, alphabet: int, embedding: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(alphabet, embedding)
        self.recurrent = getattr(library, cell.upper())(embedding, hidden, num_layers=layers)
        self.head = nn.Linear(hidden, alphabet)

    def forward(self, characters: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Characters [T, B] to logits [T, B, V] of the next ones, and the state after the last."""
        output, state = self.recurrent(self.embedding(characters), state)
        return self.head(output), state


@dataclass
class Run:
    """One copy of the model in training: what it needs, and what came out."""

    model: CharacterModel
    optimizer: torch.optim.Optimizer
    state: Any = None
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)

    def step(self, characters: Tensor) -> None:
        """One step of truncated backpropagation on [T+1, B]: the state is carried, its graph is cut."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        logits, state = self.model(characters[:-1], self.state)
        self.state = detached(state)
        loss = cross_entropy(logits.flatten(0, 1), characters[1:].flatten())
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.losses.append(loss.item())
        self.seconds += time.perf_counter() - start


def detached(state: Any) -> Any:
    """The state without its graph: (h, c) of an LSTM, h of a GRU."""
    return state.detach() if isinstance(state, Tensor) else tuple(part.detach() for part in state)


def read_plays(folder: Path = DATA) -> tuple[Tensor, Tensor, str]:
    """All plays as character numbers: text to train on, held-out text, and the alphabet."""
    texts = [path.read_text(encoding="ascii") for path in sorted(folder.glob("*.txt"))]
    alphabet = "".join(sorted(set("".join(texts))))
    number = {character: index for index, character in enumerate(alphabet)}
    cut = [int(len(text) * (1 - HELD_OUT)) for text in texts]
    parts = ("".join(t[:c] for t, c in zip(texts, cut, strict=True)),
             "".join(t[c:] for t, c in zip(texts, cut, strict=True)))  # fmt: skip
    train, held_out = (torch.tensor([number[character] for character in part]) for part in parts)
    return train, held_out, alphabet


def batches(text: Tensor, batch: int, seq_len: int) -> Iterator[Tensor]:
    """Endless [T+1, B] pieces of B parallel streams through the text, each beginning where the last ended."""
    length = len(text) // batch
    streams = text[: length * batch].view(batch, length).t().contiguous()  # [length, B]
    while True:
        for start in range(0, length - seq_len - 1, seq_len):
            yield streams[start : start + seq_len + 1]


@torch.no_grad()
def held_out_loss(model: CharacterModel, text: Tensor) -> float:
    """Mean nats a character over the held-out text, read as 16 streams."""
    length = len(text) // 16
    streams = text[: length * 16].view(16, length).t()
    logits, _ = model(streams[:-1])
    return cross_entropy(logits.flatten(0, 1), streams[1:].flatten()).item()


@torch.no_grad()
def write(model: CharacterModel, alphabet: str, characters: int, seed: int) -> str:
    """Lets the model write on from a newline, one streaming step (T = 1, B = 1) a character."""
    generator = torch.Generator().manual_seed(seed)
    current, state, text = torch.tensor([[alphabet.index("\n")]]), None, ""
    for _ in range(characters):
        logits, state = model(current, state)
        current = torch.multinomial(torch.softmax(logits[0] / 0.7, -1), 1, generator=generator)
        text += alphabet[int(current)]
    return text


def make_runs(build: Callable[[Any], CharacterModel], learning_rate: float) -> dict[str, Run]:
    """A run for each library, with the same initial weights."""
    models = {name: build(library) for name, library in LIBRARIES.items()}
    initial = copy.deepcopy(models["torch"].state_dict())
    for model in models.values():
        model.load_state_dict(initial)
    return {name: Run(model, torch.optim.Adam(model.parameters(), lr=learning_rate)) for name, model in models.items()}


def train(runs: dict[str, Run], text: Tensor, steps: int, batch: int, seq_len: int, console: Console) -> None:
    """`steps` steps of every run, in blocks by turns; the first step of each is not timed (warm-up)."""
    source = batches(text, batch, seq_len)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("training", total=steps)
        for start in range(0, steps, BLOCK):
            block = [next(source) for _ in range(min(BLOCK, steps - start))]
            for run in runs.values():
                for index, characters in enumerate(block):
                    run.step(characters)
                    if start == index == 0:
                        run.seconds = 0.0
            progress.update(task, advance=len(block))


def smoothed(losses: list[float], width: int = 20) -> list[float]:
    """Means over the last `width` losses."""
    return [sum(losses[max(0, i + 1 - width) : i + 1]) / min(width, i + 1) for i in range(len(losses))]


def curve_table(runs: dict[str, Run]) -> Table:
    """Loss of both layers at ten places, and how far they lie apart there."""
    table = Table(title="training loss, nats a character", title_justify="left")
    for name in ("step", *runs, "difference"):
        table.add_column(name, justify="right")
    curves = [smoothed(run.losses) for run in runs.values()]
    steps = len(curves[0])
    for step in sorted({max(1, steps * tenth // 10) for tenth in range(1, 11)}):
        values = [curve[step - 1] for curve in curves]
        gap = abs(values[0] - values[1])
        table.add_row(str(step), *(f"{value:.4f}" for value in values), f"{gap:.1e}")
    return table


def draw(runs: dict[str, Run], title: str, path: Path) -> None:
    """Both loss curves over steps and over seconds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    by_step, by_time = figure.subplots(1, 2, sharey=True)
    for (name, run), style in zip(runs.items(), ("-", "--"), strict=True):
        curve = smoothed(run.losses)
        by_step.plot(range(1, len(curve) + 1), curve, style, label=name)
        by_time.plot([run.seconds * (i + 1) / len(curve) for i in range(len(curve))], curve, style, label=name)
    by_step.set(xlabel="step", ylabel="loss, nats a character")
    by_time.set(xlabel="seconds")
    by_step.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)


def main(
    steps: Annotated[int, typer.Option(min=2, help="Training steps of each layer.")] = 2000,
    cell: Annotated[str, typer.Option(help="lstm or gru.")] = "lstm",
    batch: Annotated[int, typer.Option(min=1, help="B.")] = 8,
    seq_len: Annotated[int, typer.Option(min=1, help="T.")] = 100,
    embedding: Annotated[int, typer.Option(min=1, help="Size of the character embedding.")] = 64,
    hidden: Annotated[int, typer.Option(min=1, help="H.")] = 128,
    layers: Annotated[int, typer.Option(min=1, help="Stacked layers.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Adam's.")] = 4e-3,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: 2, or torch's if fewer.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights and sample.")] = 0,
    sample: Annotated[int, typer.Option(min=0, help="Characters that the trained model writes.")] = 240,
    tolerance: Annotated[float, typer.Option(help="Held-out losses must agree to this many nats.")] = 0.02,
    plot: Annotated[Path | None, typer.Option(help="Draw both loss curves to this file.")] = None,
) -> None:
    """Train a character model of Shakespeare's plays with torch.nn's layer and with lstm_fused's."""
    if cell not in ("lstm", "gru"):
        raise typer.BadParameter(f"expected lstm or gru, got {cell!r}", param_hint="--cell")
    console = Console()
    torch.set_num_threads(threads or min(2, torch.get_num_threads()))
    torch.manual_seed(seed)
    text, held_out, alphabet = read_plays()
    runs = make_runs(
        lambda library: CharacterModel(library, cell, len(alphabet), embedding, hidden, layers), learning_rate
    )
    title = f"{cell.upper()} T={seq_len} B={batch} I={embedding} H={hidden} layers={layers}, "
    title += f"{torch.get_num_threads()} threads, torch {torch.__version__}, {lstm_fused.runtime.isa()}"
    console.print(f"{title}\n{len(text):,} characters, alphabet of {len(alphabet)}", highlight=False)
    train(runs, text, steps, batch, seq_len, console)
    console.print(curve_table(runs))
    losses = {name: held_out_loss(run.model, held_out) for name, run in runs.items()}
    for name, run in runs.items():
        each = 1e3 * run.seconds / (steps - 1)
        console.print(
            f"{name:>10}: {run.seconds:6.1f} s, {each:6.2f} ms a step, held-out loss {losses[name]:.4f}",
            highlight=False,
        )
    speed_up = runs["torch"].seconds / runs["lstm_fused"].seconds
    console.print(f"time of a whole training step, torch / lstm_fused: {speed_up:.2f}")
    if sample:
        console.rule("the lstm_fused model writes")
        console.print(write(runs["lstm_fused"].model, alphabet, sample, seed), markup=False, highlight=False)
        console.rule()
    if plot is not None:
        draw(runs, title, plot)
        console.print(f"wrote {plot}")
    gap = abs(losses["torch"] - losses["lstm_fused"])
    if not gap <= tolerance:
        console.print(f"held-out losses differ by {gap:.4f} nats, more than {tolerance}", style="red")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
