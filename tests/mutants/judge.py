"""The verdict on mutants: are they the same to the compiler, or does a test tell them from the kernels unchanged?"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ptx.build import BuildError
from ptx.translate import Translation
from ptx.types import Unsupported

from . import build, driver
from .build import CELLS, ROUNDS, SEEDS, SOURCES, TYPES, Base, Bench, Kernel, copy_name
from .driver import Task
from .operators import Mutant

TENSOR = ("cells/approximate.h", "cuda/tensor_product.cuh")  # of tensor cores alone

# Processes are forked from one that has imported torch, but not the library.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["torch", "numpy", "mpmath", "oracles", "mutants.driver"])


@dataclass
class Verdict:
    """``killed``, ``survived``, ``equivalent`` (to the compiler), ``invalid`` (not a program), or still ``open``."""

    outcome: str = "open"
    reason: str = ""
    seconds: float = 0.0
    rounds: int = 0  # that are done
    changed: int = 0  # kernels of these that are not as they were, all of which pass

    def end_round(self, mutant: Mutant) -> None:
        self.rounds += 1
        done = bool(self.changed) and not mutant.file.startswith("cells/")  # whose constants are each type's own
        if self.outcome == "open" and self.rounds >= len(ROUNDS) - done:
            self.outcome = "survived" if self.changed else "equivalent"


class Library:
    """A process that has loaded a library, and does each task in a copy of itself.

    Args:
        library: of which kernels may be replaced.
        of_mutant: whether its host code is a mutant's, so that the process itself may end by it.
    """

    def __init__(self, library: Path, of_mutant: bool = False) -> None:
        self.of_mutant = of_mutant
        self.ours, theirs = processes.Pipe()
        self.process = processes.Process(target=driver.serve, args=(str(library), theirs), daemon=True)
        self.process.start()
        theirs.close()

    def says(self, task: Task) -> str:
        """How the library fails; empty if it passes.

        Raises:
            RuntimeError: the process ended, which is no mutant's doing.
        """
        try:
            self.ours.send(task)
            return str(self.ours.recv())
        except (EOFError, OSError) as error:
            self.process.join()
            said = f"the process ended with {self.process.exitcode}"
            if self.of_mutant:
                return said
            raise RuntimeError(f"{said}, that of a library without a mutant") from error

    def close(self) -> None:
        self.ours.close()
        self.process.kill()
        self.process.join()


def record(base: Base, table: Path, types: Sequence[str] = tuple(TYPES)) -> None:
    """The driver's table, by the kernels as they are; which must pass it.

    Raises:
        RuntimeError: they do not.
    """
    if table.exists():
        return
    library, new = Library(base.library), table.with_suffix(".new")
    layers = [(name, cell) for name in types for cell in CELLS]
    for recording in (True, False):
        if said := library.says(Task(new, layers, seeds=sorted(set(SEEDS)), recording=recording)):
            raise RuntimeError(f"the kernels without a mutant fail: {said}")
    library.close()
    new.rename(table)


@dataclass
class Trial:
    """A mutant in a round."""

    mutant: Mutant
    verdict: Verdict
    uses: list[tuple[str, str]] = field(default_factory=list)  # kernels that it has changed so far, and passed with

    def concerns(self, base: Base, kernel: Kernel) -> bool:
        """Whether it may change the kernel."""
        if self.mutant.file not in base.files[kernel.source] or (self.mutant.file in TENSOR and not kernel.tensor):
            return False
        return self.mutant.file not in (f"cells/{cell}.h" for cell in CELLS if cell != kernel.cell)

    def fails(self, library: Library, table: Path, kernel: Kernel, seed: int) -> str:
        """How it fails the kernel's tests."""
        begun = time.monotonic()
        rows = 0 if kernel.even else kernel.rows  # as driver.reaches has it: in plan grid
        said = library.says(Task(table, [(kernel.type, kernel.cell)], rows, self.uses, [seed]))
        self.verdict.seconds += time.monotonic() - begun
        return said

    def end(self, outcome: str, reason: str) -> None:
        self.verdict.outcome, self.verdict.reason = outcome, reason


Judged = tuple[Mutant, Verdict]
Trials = dict[int, Trial]  # by the number of the copy


def judge(base: Base, bench: Bench, library: Library, table: Path, number: int, batch: Sequence[Judged]) -> None:
    """A round of as many mutants as the bench has copies: kernel by kernel, each mutant until one fails."""
    host = [judged for judged in batch if judged[0].file not in base.files_of_kernels]
    of_kernels = [judged for judged in batch if judged not in host]
    trials: Trials = {copy: Trial(*judged) for copy, judged in enumerate(of_kernels)}
    for copy, (mutant, _) in enumerate(of_kernels):
        bench.put(copy, mutant.file, mutant.applied((base.csrc / mutant.file).read_text()))
    for kernel in build.kernels(number):
        if kernel in base.ptx:
            try_kernel(base, bench, library, table, kernel, SEEDS[number], trials)
    for copy, (mutant, _) in enumerate(of_kernels):
        bench.put(copy, mutant.file, (base.csrc / mutant.file).read_text())
    for mutant, verdict in host:
        judge_host(base, bench, table, mutant, verdict)
    for mutant, verdict in batch:
        verdict.end_round(mutant)
        verdict.seconds = round(verdict.seconds, 1)


def try_kernel(
    base: Base, bench: Bench, library: Library, table: Path, kernel: Kernel, seed: int, trials: Trials
) -> None:
    """Tries a kernel of every mutant that changes it. Those that it decides are taken from ``trials``."""
    begun, numbers = time.monotonic(), [number for number, trial in trials.items() if trial.concerns(base, kernel)]
    changed, invalid = dict[int, Translation](), dict[int, str]()
    for number, text in compiled(bench, kernel, numbers):
        try:
            if isinstance(text, BuildError):
                raise text
            if text != base.ptx[kernel]:
                changed[number] = build.translated(text, copy_name(number))
        except BuildError as error:
            invalid[number] = first_error(error, bench)
        except Unsupported as error:  # calls itself without end, say
            invalid[number] = str(error)
    path = bench.kernels(base, kernel.stem, changed) if changed else None
    for number in numbers:
        trials[number].verdict.seconds += (time.monotonic() - begun) / len(numbers)
    for number, reason in invalid.items():
        trials.pop(number).end("invalid", reason)
    for number in changed:
        trials[number].verdict.changed += 1
        trials[number].uses.append((str(path), copy_name(number)))
        if said := trials[number].fails(library, table, kernel, seed):
            trials.pop(number).end("killed", said)


def first_error(error: BuildError, bench: Bench) -> str:
    return next((line for line in str(error).split("\n") if "error" in line), "").replace(str(bench.folder), "")


def compiled(bench: Bench, kernel: Kernel, numbers: Sequence[int]) -> Iterator[tuple[int, str | BuildError]]:
    """The kernel's PTX of these copies. A copy that does not compile is found by leaving out those that are named."""
    if not numbers:
        return
    try:
        yield from bench.ptx(kernel, numbers).items()
    except BuildError as error:
        if len(numbers) == 1:
            yield numbers[0], error
            return
        lines = [line for line in str(error).split("\n") if "error" in line]
        named = [number for number in numbers if any(f"{copy_name(number)}/" in line for line in lines)]
        if len(named) in (0, len(numbers)):
            named = list(numbers[: len(numbers) // 2])
        yield from compiled(bench, kernel, named)
        yield from compiled(bench, kernel, [number for number in numbers if number not in named])


def judge_host(base: Base, bench: Bench, table: Path, mutant: Mutant, verdict: Verdict) -> None:
    """Of what starts the kernels, in one round."""
    file, begun = bench.host_csrc / mutant.file, time.monotonic()
    original = file.read_text()
    file.write_text(mutant.applied(original))
    verdict.rounds, verdict.outcome = len(ROUNDS) - 1, "equivalent"
    sources = [source for source in SOURCES if mutant.file in build.includes(base.csrc, f"cuda/{source}.cu")]
    try:
        host = {
            source: made
            for source in sources
            if build.code_of(made := bench.host(source)) != build.code_of(base.host[source])
        }
        if host:
            library = Library(build.link(base, host, bench.folder / "mutant.so"), of_mutant=True)
            types = list(dict.fromkeys(kernel.type for kernel in base.ptx))[:3]  # without tensor cores, and with them
            layers = [(name, cell) for name in types for cell in CELLS]
            verdict.reason = library.says(Task(table, layers, seeds=SEEDS[:1]))
            verdict.outcome = "killed" if verdict.reason else "survived"
            library.close()
    except BuildError as error:
        verdict.outcome, verdict.reason = "invalid", first_error(error, bench)
    finally:
        file.write_text(original)
    verdict.seconds = time.monotonic() - begun
