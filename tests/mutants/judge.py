"""The verdict on a mutant: is it the same to the compiler, or does a test tell it from the kernels as they are?"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ptx.build import BuildError
from ptx.types import Unsupported

from . import driver
from .build import CELLS, LATE, TYPES, Base, Bench, Module, affected, code_of, kernel_names
from .operators import Mutant

SECONDS = 600  # that a mutant's tests may take; the unchanged kernels take a few dozen

# Children are forked from a process that has imported torch, but not the library.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["torch", "numpy", "mpmath", "oracles", "mutants.driver"])


@dataclass(frozen=True)
class Verdict:
    """``killed``, ``survived``, ``equivalent`` (to the compiler) or ``invalid`` (not a program)."""

    outcome: str
    reason: str = ""
    seconds: float = 0.0


Layers = Sequence[tuple[str, str]]  # types and cells


def in_child(library: Path, table: Path, layers: Layers, recording: bool = False) -> str:
    """How the library fails the driver's tests of these layers; empty if it passes."""
    ours, theirs = processes.Pipe(duplex=False)
    child = processes.Process(target=driver.run, args=(str(library), str(table), layers, recording, theirs))
    child.start()
    theirs.close()
    try:
        said = str(ours.recv()) if ours.poll(SECONDS) else f"no end after {SECONDS} s"
    except EOFError:
        child.join()
        said = f"the process ended with {child.exitcode}"
    child.kill()
    child.join()
    return said


def record(base: Base, table: Path, types: Sequence[str] = tuple(TYPES)) -> None:
    """The driver's table, by the kernels as they are; which must pass it.

    Raises:
        RuntimeError: they do not.
    """
    for recording in (True, False):
        if said := in_child(base.library, table, [(name, cell) for name in types for cell in CELLS], recording):
            raise RuntimeError(f"the kernels without a mutant fail: {said}")


def judge(base: Base, bench: Bench, table: Path, mutant: Mutant) -> Verdict:
    """Applies the mutant in ``bench``, compiles what it changes, runs the tests, and takes it back."""
    file, begun = bench.csrc / mutant.file, time.monotonic()
    original = (base.csrc / mutant.file).read_text()
    file.write_text(mutant.applied(original))
    try:
        outcome, reason = outcome_of(base, bench, table, affected(base, mutant))
    except BuildError as error:
        outcome, reason = "invalid", next((line for line in str(error).split("\n") if "error" in line), "")
    except Unsupported as error:  # calls itself without end, say
        outcome, reason = "invalid", str(error)
    finally:
        file.write_text(original)
    return Verdict(outcome, reason.replace(str(bench.folder), ""), round(time.monotonic() - begun, 1))


def outcome_of(base: Base, bench: Bench, table: Path, sources: Sequence[str]) -> tuple[str, str]:
    """Module by module: most mutants are found in the first that they change, and spare the others."""
    objects: dict[Module, Path] = {}
    host: dict[str, Path] = {}
    ptx: dict[tuple[str, str], dict[Module, str]] = {}
    library = bench.folder / "mutant.so"
    for module in sorted(base.ptx, key=lambda m: (list(TYPES).index(m[1]), CELLS.index(m[2]), len(base.ptx[m]))):
        source, name, cell = module
        if name in LATE and any(changed not in LATE for _, changed, _ in objects):
            break
        if source not in sources:
            continue
        compiled = source, TYPES[name][0]
        if compiled not in ptx:
            ptx[compiled] = bench.ptx(*compiled)
        if (text := ptx[compiled].get(module, "")) == base.ptx[module]:
            continue
        if source not in host and kernel_names(text) != kernel_names(base.ptx[module]):
            host[source] = bench.host(source)
        objects[module] = bench.kernels(module, text)
        if said := in_child(bench.link(base, host, objects, library), table, [(name, cell)]):
            return "killed", said
    if objects:
        return "survived", ""
    host = {source: made for source in sources if code_of(made := bench.host(source)) != code_of(base.host[source])}
    if not host:
        return "equivalent", ""
    said = in_child(bench.link(base, host, {}, library), table, [(next(iter(base.ptx))[1], cell) for cell in CELLS])
    return ("killed", said) if said else ("survived", "")
