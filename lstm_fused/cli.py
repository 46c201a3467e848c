"""The command line: `lstm-fused info`, `lstm-fused bench`, `lstm-fused report`.

torch and everything that needs it are imported inside the commands, so that help and wrong arguments answer
at once.
"""

from __future__ import annotations

from contextlib import nullcontext
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from lstm_fused.bench.cases import Case
    from lstm_fused.bench.report import Report
    from lstm_fused.bench.run import Settings

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Fused recurrent layers for PyTorch.")

#: Budget of one row in seconds, for each grid: quick and cuda (one dtype) end in 2 to 3 minutes, full in 25.
BUDGETS = {"quick": 4.0, "full": 10.0, "packed": 5.0, "cuda": 1.0}
#: Lines in a log file are as wide as the widest table, whatever the terminal is.
LOG_WIDTH = 190


class Grid(str, Enum):
    """Named sets of shapes."""

    quick = "quick"
    full = "full"
    packed = "packed"
    cuda = "cuda"


class DeviceChoice(str, Enum):
    """Where both layers run."""

    cpu = "cpu"
    cuda = "cuda"


class CellChoice(str, Enum):
    """Which cells to run."""

    lstm = "lstm"
    gru = "gru"
    both = "both"


class Mode(str, Enum):
    """Forward alone, forward and backward, or both."""

    inference = "inference"
    training = "training"
    both = "both"


class Dtype(str, Enum):
    """Element types of weights and input; tf32 is float32, multiplied on a CUDA device's tensor cores."""

    float32 = "float32"
    float64 = "float64"
    bfloat16 = "bfloat16"
    float16 = "float16"
    tf32 = "tf32"


class Peer(str, Enum):
    """Runtimes that can be put beside torch."""

    onnxruntime = "onnxruntime"
    openvino = "openvino"
    torch_compile = "torch.compile"


def make_console() -> Console:
    """A console that does not squeeze tables where no terminal is watching."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=LOG_WIDTH)


def fail(console: Console, message: str) -> NoReturn:
    """Prints an error and ends with status 2."""
    console.print(f"error: {message}", style="red", highlight=False, markup=False)
    raise typer.Exit(2)


@app.command()
def info() -> None:
    """Print versions, threads, instruction sets, CUDA and devices."""
    from rich.table import Table

    from lstm_fused import runtime

    table = Table(show_header=False, title="lstm_fused", title_justify="left")
    for key, value in runtime.info().items():
        table.add_row(key.replace("_", " "), info_text(value))
    make_console().print(table)


def info_text(value: Any) -> str:
    """A value of runtime.info() as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    return str(value) or "-"


def select_cases(
    grid: Grid, cell: CellChoice, shape: dict[str, int | None], options: dict[str, Any], texts: list[str]
) -> tuple[tuple[Case, ...], float]:
    """The cases asked for and the default budget: --case texts, or a shape given in numbers, or the grid."""
    from lstm_fused.bench import cases as grids

    cells: tuple[str, ...] = grids.CELLS if cell is CellChoice.both else (cell.value,)
    if texts:
        return tuple(grids.parse_grid("\n".join(texts), cells)), BUDGETS["full"]
    if any(value is not None for value in shape.values()) or any(options.values()):
        usual = {"T": 100, "B": 1, "I": 256, "H": 256}
        sizes = {key: usual[key] if value is None else value for key, value in shape.items()}
        if options["proj"] and cell is CellChoice.both:
            cells = ("lstm",)  # torch's GRU has no projection
        given: dict[str, Any] = {**sizes, **{key: value for key, value in options.items() if value}}
        return tuple(grids.Case(name, **given) for name in cells), BUDGETS["full"]
    return tuple(grids.grid(grid.value, cells)), BUDGETS[grid.value]


@app.command()
def bench(
    grid: Annotated[Grid | None, typer.Option(help="Named set of shapes; default: quick, or cuda on CUDA.")] = None,
    seq_len: Annotated[int | None, typer.Option(min=1, help="T; any size given replaces the grid.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="B.")] = None,
    input_size: Annotated[int | None, typer.Option(min=1, help="I.")] = None,
    hidden_size: Annotated[int | None, typer.Option(min=1, help="H.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Stacked layers.")] = None,
    bidirectional: Annotated[bool, typer.Option("--bidirectional", help="Both directions.")] = False,
    proj_size: Annotated[int | None, typer.Option(min=1, help="LSTM projection to this size.")] = None,
    packed: Annotated[bool, typer.Option("--packed", help="PackedSequence, lengths uniform in 1..T.")] = False,
    case: Annotated[
        list[str] | None, typer.Option(help='A case in one text, e.g. "100,8,64,64 packed". Repeatable.')
    ] = None,
    cell: Annotated[CellChoice, typer.Option(help="Which cells.")] = CellChoice.both,
    mode: Annotated[Mode, typer.Option(help="Forward alone, forward and backward, or both.")] = Mode.both,
    device: Annotated[DeviceChoice, typer.Option(help="Where both layers run.")] = DeviceChoice.cpu,
    graphs: Annotated[bool, typer.Option("--graphs", help="On CUDA: time CUDA graphs of both layers.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: 2, or fewer if torch has fewer.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of weights and input.")] = Dtype.float32,
    isa: Annotated[str, typer.Option(help="Force an instruction set: scalar, avx2, avx512.")] = "",
    peer: Annotated[list[Peer] | None, typer.Option(help="Another runtime beside torch. Repeatable.")] = None,
    contended: Annotated[bool, typer.Option("--contended", help="Add rows beside a busy process.")] = False,
    variants: Annotated[
        bool, typer.Option("--variants", help="Add rows with lengths, resets, torch.compile, beside a plain run.")
    ] = False,
    budget: Annotated[float | None, typer.Option(min=0.01, help="Seconds a row at most.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write everything to this file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write one line a row to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the speed-ups to this file.")] = None,
) -> None:
    """Time lstm_fused and torch.nn side by side, with the ceiling of this machine or device beside every row."""
    console = make_console()
    shape = {"T": seq_len, "B": batch, "I": input_size, "H": hidden_size}
    options = {"layers": layers, "bidirectional": bidirectional, "proj": proj_size, "packed": packed}
    import torch

    from lstm_fused.bench import cases as grids
    from lstm_fused.bench import peers, run

    try:
        usual_grid = Grid.cuda if device is DeviceChoice.cuda else Grid.quick
        cases, usual_budget = select_cases(grid or usual_grid, cell, shape, options, case or [])
        settings = run.Settings(
            cases=cases,
            modes=grids.MODES if mode is Mode.both else (mode.value,),
            threads=threads or min(2, torch.get_num_threads()),
            dtype=dtype.value,
            isa=isa,
            peers=tuple(p.value for p in peer or []),
            budget=budget or usual_budget,
            contended=contended,
            variants=variants,
            device=device.value,
            graphs=graphs,
        )
        check_folders(json, csv, plot)
        with run.environment(settings):
            report = run_with_progress(settings, console)
    except (ValueError, peers.MissingPeerError, RuntimeError, ImportError) as error:
        fail(console, str(error))
    show(report, console)
    save(report, console, json, csv, plot)
    if report.failures or not report.complete:
        raise typer.Exit(1)


def check_folders(*paths: Path | None) -> None:
    """Raises ValueError for a file that could not be written after the run."""
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{path}: no such folder")


def run_with_progress(settings: Settings, console: Console) -> Report:
    """Measures the floor and every row under a progress bar; Ctrl-C keeps the rows that are done."""
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    from lstm_fused.bench import run
    from lstm_fused.bench.contended import contended_cases
    from lstm_fused.bench.report import Row
    from lstm_fused.bench.table import floor_table, row_line
    from lstm_fused.bench.variants import variant_cases, variant_rows

    with console.status("measuring this machine's floor") if console.is_terminal else nullcontext():
        report = run.start(settings)
    console.print(floor_table(report))
    extra = len(contended_cases(tuple({c.cell for c in settings.cases}), settings.modes)) * settings.contended
    extra += len(variant_cases(settings)) * settings.variants
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("warming up", total=settings.total + extra)
        try:
            for found in run.rows(settings, report.floor):
                if isinstance(found, Row):
                    report.rows.append(found)
                    line = row_line(found)
                else:
                    report.failures.append(found)
                    line = f"{found.case.name}, {found.mode}: {found.error}"
                if not console.is_terminal:
                    console.print(line, highlight=False, markup=False)
                progress.update(task, advance=1, description=line)
            if settings.contended:
                for row in run.contended_rows(settings):
                    report.contended.append(row)
                    progress.update(task, advance=1, description=f"contended: {row.case.name}")
            for several in variant_rows(settings) if settings.variants else ():
                if isinstance(several, list):
                    report.variants += several
                else:
                    report.failures.append(several)
                progress.update(task, advance=1, description="variants")
        except KeyboardInterrupt:
            report.complete = False
    return report


def show(report: Report, console: Console) -> None:
    """Prints rows, contended rows, variants, failures and targets."""
    from lstm_fused.bench import table

    if report.rows:
        console.print(table.rows_table(report))
    for remark in table.peer_remarks(report):
        console.print(remark, highlight=False, markup=False)
    if report.contended:
        console.print(table.contended_table(report))
    if report.variants:
        console.print(table.variants_table(report))
    for failure in report.failures:
        text = f"failed: {failure.case.name}, {failure.mode}: {failure.error}"
        console.print(text, style="red", highlight=False, markup=False)
    if not report.complete:
        console.print("interrupted: some rows are missing", style="red")
    if report.card is None:
        console.print(table.targets_table(report))


def save(report: Report, console: Console, json: Path | None, csv: Path | None, plot: Path | None) -> None:
    """Writes the files asked for and names them."""
    from lstm_fused.bench.plot import plot as draw
    from lstm_fused.bench.report import save_csv, save_json

    for path, write in ((json, save_json), (csv, save_csv), (plot, draw)):
        if path is not None:
            try:
                write(report, path)
            except (ImportError, ValueError) as error:
                fail(console, str(error))
            console.print(f"wrote {path}")


@app.command("report")
def report_command(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="JSON files of bench.")],
    json: Annotated[Path | None, typer.Option(help="Write the medians to this file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write one line a row to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the speed-ups to this file.")] = None,
) -> None:
    """Show a saved run again, or the medians of several runs of the same rows."""
    from lstm_fused.bench.report import load_json, merge
    from lstm_fused.bench.table import floor_table

    console = make_console()
    try:
        report = merge(load_json(path) for path in files)
    except (ValueError, KeyError, TypeError) as error:
        fail(console, f"not a report of this version: {error}")
    console.print(floor_table(report))
    show(report, console)
    save(report, console, json, csv, plot)


if __name__ == "__main__":
    app()
