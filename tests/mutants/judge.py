"""The verdict on a mutant: is it the same to the compiler, or does a test tell it from the kernels as they are?"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ptx.build import BuildError
from ptx.types import Unsupported

from . import driver
from .build import CELLS, LATE, SOURCES, TYPES, Base, Bench, Kernel, code_of, copy_name, link, translated
from .driver import SEEDS, Task
from .operators import Mutant
from .steps import Translated

TENSOR = ("cells/approximate.h", "cuda/tensor_product.cuh")  # of tensor cores alone

# Processes are forked from one that has imported torch, but not the library.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["torch", "numpy", "mpmath", "oracles", "mutants.driver"])


@dataclass(frozen=True)
class Verdict:
    """``killed``, ``survived``, ``equivalent`` (to the compiler) or ``invalid`` (not a program)."""

    outcome: str
    reason: str = ""
    seconds: float = 0.0


class Library:
    """A process that has loaded a library, and does tasks with it."""

    def __init__(self, library: Path) -> None:
        self.ours, theirs = processes.Pipe()
        self.process = processes.Process(target=driver.serve, args=(str(library), theirs), daemon=True)
        self.process.start()
        theirs.close()

    def says(self, task: Task) -> str:
        """How the library fails; empty if it passes."""
        try:
            self.ours.send(task)
            return str(self.ours.recv())
        except (EOFError, OSError):
            self.process.join()
            return f"the process ended with {self.process.exitcode}"

    def close(self) -> None:
        self.ours.close()
        self.process.kill()
        self.process.join()


def record(base: Base, table: Path, types: Sequence[str] = tuple(TYPES)) -> None:
    """The driver's table, by the kernels as they are; which must pass it.

    Raises:
        RuntimeError: they do not.
    """
    library = Library(base.library)
    for recording in (True, False):
        if said := library.says(Task(table, [(name, cell) for name in types for cell in CELLS], recording=recording)):
            raise RuntimeError(f"the kernels without a mutant fail: {said}")
    library.close()


@dataclass
class Trial:
    """A mutant that is not judged yet."""

    mutant: Mutant
    kernels: list[Kernel] = field(default_factory=list)  # that it has changed so far, and passed with
    uses: list[tuple[str, str]] = field(default_factory=list)  # these
    seconds: float = 0.0

    def concerns(self, base: Base, kernel: Kernel) -> bool:
        """Whether it may change the kernel, and it is worth while to look."""
        if self.mutant.file not in base.files[kernel.source] or (self.mutant.file in TENSOR and kernel.rows > 0):
            return False
        if kernel.type in LATE and any(changed.type not in LATE for changed in self.kernels):
            return False
        return self.mutant.file not in (f"cells/{cell}.h" for cell in CELLS if cell != kernel.cell)

    def fails(self, library: Library, table: Path, kernel: Kernel, seeds: Sequence[int]) -> str:
        """How it fails the kernel's tests."""
        begun = time.monotonic()
        said = library.says(Task(table, [(kernel.type, kernel.cell)], kernel.rows, self.uses, seeds))
        self.seconds += time.monotonic() - begun
        return said

    def verdict(self, outcome: str, reason: str = "") -> Judged:
        return self.mutant, Verdict(outcome, reason, round(self.seconds, 1))


Judged = tuple[Mutant, Verdict]
Trials = dict[int, Trial]  # by the number of the copy


def judge(base: Base, bench: Bench, library: Library, table: Path, mutants: Sequence[Mutant]) -> Iterator[Judged]:
    """Judges as many mutants as the bench has copies; kernel by kernel, each mutant until one fails."""
    host = [mutant for mutant in mutants if mutant.file not in base.files_of_kernels]
    trials: Trials = dict(enumerate(Trial(mutant) for mutant in mutants if mutant not in host))
    for number, trial in trials.items():
        bench.put(number, trial.mutant.file, trial.mutant.applied((base.csrc / trial.mutant.file).read_text()))
    for kernel in base.ptx:
        yield from tried(base, bench, library, table, kernel, trials)
    for trial in trials.values():
        said = next(filter(None, (trial.fails(library, table, kernel, SEEDS[1:]) for kernel in trial.kernels)), "")
        yield trial.verdict("killed" if said else "survived" if trial.kernels else "equivalent", said)
    for number, mutant in enumerate(mutant for mutant in mutants if mutant not in host):
        bench.put(number, mutant.file, (base.csrc / mutant.file).read_text())
    for mutant in host:
        yield judge_host(base, bench, table, mutant)


def tried(base: Base, bench: Bench, library: Library, table: Path, kernel: Kernel, trials: Trials) -> Iterator[Judged]:
    """Tries a kernel of every mutant that changes it. Those that it judges are taken from ``trials``."""
    begun, numbers = time.monotonic(), [number for number, trial in trials.items() if trial.concerns(base, kernel)]
    changed, invalid = dict[int, Translated](), dict[int, str]()
    for number, text in compiled(bench, kernel, numbers):
        try:
            if isinstance(text, BuildError):
                raise text
            if text != base.ptx[kernel]:
                changed[number] = translated(text, copy_name(number))
        except BuildError as error:
            invalid[number] = next((line for line in str(error).split("\n") if "error" in line), "")
        except Unsupported as error:  # calls itself without end, say
            invalid[number] = str(error)
    path = bench.kernels(base, kernel.stem, changed) if changed else None
    for number in numbers:
        trials[number].seconds += (time.monotonic() - begun) / len(numbers)
    for number, reason in invalid.items():
        yield trials.pop(number).verdict("invalid", reason.replace(str(bench.folder), ""))
    for number in changed:
        trials[number].kernels.append(kernel)
        trials[number].uses.append((str(path), copy_name(number)))
        if said := trials[number].fails(library, table, kernel, SEEDS[:1]):
            yield trials.pop(number).verdict("killed", said)


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


def judge_host(base: Base, bench: Bench, table: Path, mutant: Mutant) -> Judged:
    """Of what starts the kernels."""
    file, begun = bench.host_csrc / mutant.file, time.monotonic()
    original = file.read_text()
    file.write_text(mutant.applied(original))
    outcome, reason = "equivalent", ""
    try:
        host = {source: made for source in SOURCES if code_of(made := bench.host(source)) != code_of(base.host[source])}
        if host:
            library = Library(link(base, host, bench.folder / "mutant.so"))
            reason = library.says(Task(table, [(next(iter(base.ptx)).type, cell) for cell in CELLS]))
            outcome = "killed" if reason else "survived"
            library.close()
    except BuildError as error:
        outcome, reason = "invalid", next((line for line in str(error).split("\n") if "error" in line), "")
    finally:
        file.write_text(original)
    return mutant, Verdict(outcome, reason.replace(str(bench.folder), ""), round(time.monotonic() - begun, 1))
