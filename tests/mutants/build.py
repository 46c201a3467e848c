"""Libraries with mutants of the kernels: many at a time, of one kernel at a time, and only where its PTX has changed.

nvcc takes as long for its headers as for a kernel, so it gets a kernel of many copies of the sources at once, each in a
namespace of its own, with a mutant each. The basic blocks that a mutant leaves as they are come from the library that
has none. All host code and the runtime of ``ptx`` come once.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import emulated
import ptx
from ptx.build import GXX, KERNEL_FLAGS, RUNTIME, BuildError, Cache, digest, replace, with_headers
from ptx.translate import Translation, file_of, translate

# What a layer may calculate in, and its storage.
TYPES = {"float": "float", "BFloat16": "BFloat16", "tf32": "float", "double": "double", "Float16": "Float16"}
# The products in the order in which mutants are tried with them: a type, and how many rows at once, as plan.h names
# them, by tensor cores split (0) or not (-1). Those that pass a round are in the next one, together; so most are found
# by the first, and few are left for many kernels. The last round is for mutants of the cells, and for those that change
# nothing of the others.
ROUNDS = (
    (("float", 8),),
    (("BFloat16", 0),),
    (("BFloat16", -1),),
    (("float", 1), ("tf32", 0), ("tf32", -1)),
    (("double", 8), ("double", 1), ("Float16", 0), ("Float16", -1)),
)
# The kernels of even steps, which are tried together with these: a type, how many items a lane has, whether the plan is
# wide.
EVEN = (
    (),
    (("BFloat16", 1, False),),
    (("BFloat16", 4, False),),
    (("tf32", 1, False), ("tf32", 4, False), ("tf32", 1, True), ("tf32", 4, True)),
    (("Float16", 1, False), ("Float16", 4, False)),
)
SEEDS = (1, 1, 2, 0, 2)  # of the order of warps and blocks, in each round
CELLS = ("lstm", "gru")
#: What starts kernels, and the kernels of each cell.
SOURCES = ("forward", "backward", "exchange")
OF_CELLS = ("forward", "backward", "even_forward", "even_backward")
ARCH = "compute_80"
ENTRY = re.compile(r"^\.visible \.entry (\w+)\(.*?^}\n", re.M | re.S)
REGISTERED = "const RegisterKernel registered(kernel);"  # in what translate makes
COPIES = 16  # of the sources, and so mutants at a time
SECONDS = 300  # of a processor, that a compiler may take


@dataclass(frozen=True)
class Kernel:
    """An instance of one of the kernels."""

    source: str  # of OF_CELLS, or exchange, whose kernel has nothing to do with a cell
    type: str
    rows: int
    cell: str
    wide: bool = False

    @property
    def file(self) -> str:
        return f"cuda/{self.source}.cuh"

    @property
    def even(self) -> bool:
        """Whether it is of even steps; ``rows`` is how many items a lane has then."""
        return self.source.startswith("even_")

    @property
    def tensor(self) -> bool:
        """Whether its products go through tensor cores."""
        return self.even or self.rows <= 0

    @property
    def stem(self) -> str:
        return f"{self.source}-{self.type}-{self.cell}-{self.rows}{'-wide' * self.wide}"


def kernels(number: int) -> list[Kernel]:
    """Those of a round."""
    found = [Kernel(source, *product, cell) for product in ROUNDS[number] for cell in CELLS for source in OF_CELLS[:2]]
    for storage, items, wide in EVEN[number]:
        found += [Kernel(source, storage, items, cell, wide) for cell in CELLS for source in OF_CELLS[2:]]
    types = dict.fromkeys(storage for storage, *_ in EVEN[number] if number == first_round(storage))
    return found + [Kernel("exchange", storage, 0, CELLS[0]) for storage in types]


def first_round(storage: str) -> int:
    """In which kernels of even steps have this type."""
    return next(number for number, products in enumerate(EVEN) if any(storage == kind for kind, *_ in products))


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, preexec_fn=limited)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr[-20000:]}")
    return done.stdout


def includes(csrc: Path, file: str) -> set[str]:
    """The files beneath csrc/ that a source is made of, itself among them."""
    found, left = set[str](), [file]
    while left:
        at = left.pop()
        if at in found or not (csrc / at).is_file():
            continue
        found.add(at)
        names = re.findall(r'^#include "([^"]+)"', (csrc / at).read_text(), re.M)
        left += [os.path.normpath(Path(at).parent / name) for name in names]
    return found


def copy_name(number: int) -> str:
    """The namespace of a copy of the sources, and its folder."""
    return f"m{number:02}"


def instance(kernel: Kernel, number: int) -> str:
    """What makes nvcc compile a copy's kernel."""
    name, storage = copy_name(number), TYPES[kernel.type]
    storage = storage if storage in ("float", "double") else f"{name}::{storage}"
    rows = f"{kernel.rows}, {str(kernel.wide).lower()}" if kernel.even else kernel.rows
    function = f"{kernel.source}_kernel<{name}::host::{kernel.cell.capitalize()}, {storage}, {rows}>"
    direction = kernel.source.removeprefix("even_")
    arguments = f"const {name}::cuda::{direction.capitalize()}Args<{storage}>, const {name}::cuda::Plan"
    if kernel.source == direction:
        arguments += ", std::int64_t, std::int64_t"
    if kernel.source == "exchange":
        function, arguments = f"untile_kernel<{storage}>", f"const {name}::cuda::TilesArgs<{storage}>"
    return (
        f'#define lstm_fused {name}\n#include "{name}/{kernel.file}"\n#undef lstm_fused\n'
        f"template __global__ void {name}::cuda::{function}({arguments});\n"
    )


def of_copies(text: str) -> dict[int, str]:
    """Each copy's part of the PTX, under the names that the sources give."""
    rest, found = ENTRY.sub("", re.sub(r"^\s*(//.*)?\n", "", text, flags=re.M)), dict[int, str]()
    copies = [int(kernel[1][5:7]) for kernel in ENTRY.finditer(text)]
    if len(copies) > 1 and ".func" in rest:
        raise BuildError("a function that was not inlined: which copy's?")
    for number, kernel in zip(copies, ENTRY.finditer(text), strict=True):
        name = f"3{copy_name(number)}"
        common = [line for line in rest.split("\n") if name in line or not re.search(r"3m\d\d", line)]
        own = "\n".join([*common, kernel[0]]).replace(name, "10lstm_fused")
        found[number] = re.sub(r"(?<=__BB)\d+(?=_)|(?<=__local_depot)\d+", "0", own)
    return found


@dataclass
class Base:
    """The library without a mutant, in its parts."""

    folder: Path
    csrc: Path
    fixed: list[Path]  # host code that no mutant changes, the runtime, and the kernels
    host: dict[str, Path] = field(default_factory=dict)  # of each source: what starts its kernels
    ptx: dict[Kernel, str] = field(default_factory=dict)
    steps: set[str] = field(default_factory=set)  # names of basic blocks
    files: dict[str, set[str]] = field(default_factory=dict)  # that a source's kernels are made of

    @property
    def library(self) -> Path:
        return self.folder / "base.so"

    @property
    def files_of_kernels(self) -> set[str]:
        """Others beneath cuda/ are host code."""
        return set[str]().union(*self.files.values())


class Bench:
    """Copies of the sources, in each of which one thing is changed at a time, and what is compiled of them."""

    def __init__(self, folder: Path, csrc: Path, copies: int = COPIES) -> None:
        self.folder, self.csrc, self.host_csrc = folder, csrc, folder / "host"
        shutil.rmtree(folder, ignore_errors=True)
        for place in (*(folder / copy_name(number) for number in range(copies)), self.host_csrc):
            shutil.copytree(csrc, place, ignore=shutil.ignore_patterns("cpu", "*.cpp"))
        for number in range(copies):
            for path in (folder / copy_name(number)).rglob("*h"):  # else all copies are one to ``#pragma once``
                os.utime(path, (number, number))
        for source in OF_CELLS:  # kernels that do nothing: the compiler has less to do
            path = self.host_csrc / "cuda" / f"{source}.cuh"
            body = re.compile(rf"({source}_kernel\([^)]*\) ){{\n.*?^}}", re.M | re.S)
            path.write_text(body.sub(r"\1{}", path.read_text()))

    def put(self, number: int, file: str, text: str) -> None:
        """Writes a file of a copy."""
        path = self.folder / copy_name(number) / file
        path.write_text(text)
        os.utime(path, (number, number))

    def ptx(self, kernel: Kernel, copies: Sequence[int]) -> dict[int, str]:
        """A kernel of each of these copies."""
        (self.folder / "kernels.cu").write_text("".join(instance(kernel, number) for number in copies))
        command = [nvcc(), "-std=c++20", f"-arch={ARCH}", "-ptx", "kernels.cu", "-o", "kernels.ptx"]
        run(command, self.folder)
        return of_copies((self.folder / "kernels.ptx").read_text())

    def kernels(self, base: Base, name: str, translated: Mapping[int, Translation]) -> Path:
        """A library of translated kernels, which puts one in the place of the base's when its copy's name is called."""
        code, target = self.folder / f"{name}.cpp", self.folder / f"{name}.so"
        code.write_text(file_of(translated.values(), base.steps))
        run([*compiler(0), code.name, "-o", "kernels.o"], self.folder)
        run([*GXX, "-shared", "-Wl,-Bsymbolic", "kernels.o", str(base.library), "-o", target.name], self.folder)
        return target

    def host(self, source: str) -> Path:
        """The object of what starts a source's kernels, for all storage types."""
        target = self.folder / f"{source}-host.o"
        command = [nvcc(), "-std=c++20", f"-arch={ARCH}", "-cudart", "none", "-Xcompiler", "-fPIC,-w"]
        run([*command, "-c", f"cuda/{source}.cu", "-o", str(target)], self.host_csrc)
        return target


def link(base: Base, host: Mapping[str, Path], target: Path) -> Path:
    """A library, of the base's parts where there are no others."""
    parts = [*base.fixed, *(base.host | dict(host)).values()]
    run([*GXX, "-shared", "-Wl,-Bsymbolic", *map(str, parts), "-ldl", "-o", str(target)], target.parent)
    return target


def translated(text: str, use: str = "") -> Translation:
    """A module of one kernel. ``use``: a function of this name puts it in the place of another of the kernel's name."""
    made = translate(text, int(ARCH[-2:]))
    if use:
        code = "\n".join([*made.variables, *made.kernels])
        code = code.replace(REGISTERED, f'extern "C" void {use}() {{ RegisterKernel{{kernel}}; }}')
        made.variables, made.kernels = [], [f"namespace {use} {{\n{code}\n}}"]
    return made


def compiler(optimize: int) -> list[str]:
    return [*GXX, f"-O{optimize}", *KERNEL_FLAGS, f"-I{RUNTIME}", "-c"]


def nvcc() -> str:
    found = ptx.find_nvcc()
    assert found is not None
    return str(found)


def base(folder: Path, csrc: Path = emulated.CSRC, types: Sequence[str] = tuple(TYPES)) -> Base:
    """Compiles everything as it is; what has not changed since the last time is there already."""
    emulation = emulated.ROOT / "build" / "emulated"  # whose host code and runtime are the same
    cache, bench = Cache(emulation / "ptx-cache"), Bench(folder / "base", csrc, 1)
    runtime = [cache.runtime(path) for path in sorted(RUNTIME.glob("*.cpp")) if path.stem != "program"]
    made = Base(folder, csrc, [*emulated.host_objects(emulation), *runtime])

    def key(name: str, file: str) -> str:
        contents = [(csrc / part).read_bytes() for part in sorted(includes(csrc, file))]
        return f"{name}-{digest([name, ARCH], *contents)}"

    for source in (*OF_CELLS, "exchange"):
        made.files[source] = includes(csrc, f"cuda/{source}.cuh")
    for source in SOURCES:
        made.host[source] = cache.folder / f"{key(source, f'cuda/{source}.cu')}-host.o"
        if not made.host[source].exists():
            bench.host(source).rename(made.host[source])
    of_rounds = [kernel for number in range(len(ROUNDS)) for kernel in kernels(number)]
    for kernel in filter(lambda kernel: kernel.type in types, of_rounds):
        kept = cache.folder / f"{key(kernel.stem, kernel.file)}.ptx"
        if not kept.exists():
            replace(kept, bench.ptx(kernel, [0])[0])
        made.ptx[kernel] = kept.read_text()
        one = translated(made.ptx[kernel])
        code = bench.folder / f"{kernel.stem}.cpp"
        code.write_text(file_of([one], made.steps))
        made.steps |= one.steps.keys()
        name = digest(compiler(1), *with_headers(code))
        made.fixed.append(cache.made(code.stem, ".o", name, [*compiler(1), str(code)]))
    link(made, {}, made.library)
    return made


def code_of(object_file: Path) -> str:
    """What the host code of an object does, without addresses and names that differ at every compilation."""
    said = run(["objdump", "-d", "-r", "-C", "--no-show-raw-insn", str(object_file)], object_file.parent)
    return re.sub(r"tmpxft\w*|_nv_\w+|__nv\w+|file format.*|^.*\.o:.*$", "", said, flags=re.M)
