"""Libraries with one mutant each: only kernels whose PTX has changed are compiled, those of one layer at a time.

All host code, the runtime of ``ptx`` and the kernels as they are come once. A module has the kernels that one cell uses
in one type, which are most of the way to the first test that fails.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import emulated
import ptx
from ptx.build import GXX, KERNEL_FLAGS, RUNTIME, BuildError, Cache, digest, with_headers
from ptx.translate import translate

from .operators import Mutant

STORAGES = ("float", "BFloat16", "double", "Float16")
# What a layer may calculate in, in the order in which mutants are tried: its storage, and whether by tensor cores.
TYPES = {
    "float": ("float", False),
    "BFloat16": ("BFloat16", True),
    "tf32": ("float", True),
    "double": ("double", False),
    "Float16": ("Float16", True),
}
LATE = ("double", "Float16")  # for mutants that change nothing of the others
CELLS = ("lstm", "gru")
ARCH = "compute_80"
Module = tuple[str, str, str]  # a source beneath csrc/, a type, a cell
KERNEL = re.compile(r"^\.visible \.entry (\w+)\(.*?^}\n", re.M | re.S)
TENSOR_ROWS = ("0", "n1")  # what stands in the place of a product's rows in the names of such kernels


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    return done.stdout


def reduced(text: str, storage: str) -> str:
    """A source with explicit instantiations for one storage type alone."""
    others = "|".join(t for t in STORAGES if t != storage)
    return re.sub(rf"^template [^<;{{]*<(?:{others})>[^;]*;", "", text, flags=re.M)


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


def kernel_names(text: str) -> list[str]:
    return re.findall(r"\.entry (\w+)", text)


def modules(source: str, storage: str, text: str) -> dict[Module, str]:
    """The PTX of a source for one storage type, apart. Kernels that no layer uses here are left out."""
    rest, found = KERNEL.sub("", text), dict[Module, str]()
    for kernel in KERNEL.finditer(text):
        called = re.search(r"\d(Lstm|Gru)E.*?Li(n?\d+)E", kernel[1])
        assert called is not None, kernel[1]
        for name, used in TYPES.items():
            if used == (storage, called[2] in TENSOR_ROWS):
                module = (source, name, called[1].lower())
                found[module] = found.get(module, rest) + kernel[0]
    return found


@dataclass
class Base:
    """The library without a mutant, in its parts."""

    folder: Path
    csrc: Path
    sources: list[str]
    fixed: list[Path] = field(default_factory=list)  # host code that no mutant changes, and the runtime
    host: dict[str, Path] = field(default_factory=dict)  # of each source: what starts its kernels
    ptx: dict[Module, str] = field(default_factory=dict)
    objects: dict[Module, Path] = field(default_factory=dict)

    @property
    def library(self) -> Path:
        return self.folder / "base.so"


class Bench:
    """A copy of the sources, in which one thing is changed at a time, and what is compiled of it."""

    def __init__(self, folder: Path, csrc: Path) -> None:
        self.folder, self.csrc = folder, folder / "csrc"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(csrc, self.csrc)

    def ptx(self, source: str, storage: str) -> dict[Module, str]:
        path = Path(source)
        name = path.with_name(f"{path.stem}-{storage}.cu")  # beside the source: the same relative includes
        (self.csrc / name).write_text(reduced((self.csrc / source).read_text(), storage))
        run([nvcc(), "-std=c++20", f"-arch={ARCH}", "-ptx", str(name), "-o", "../kernels.ptx"], self.csrc)
        return modules(source, storage, (self.folder / "kernels.ptx").read_text())

    def kernels(self, module: Module, text: str) -> Path:
        """The object of translated kernels, compiled in the least time."""
        code = self.folder / file_name(module)
        code.write_text(translate(text, int(ARCH[-2:])).code)
        target = code.with_suffix(".o")
        run([*compiler(0), code.name, "-o", target.name], self.folder)
        return target

    def host(self, source: str) -> Path:
        """The object of what starts a source's kernels, for all storage types."""
        target = self.folder / f"{Path(source).stem}-host.o"
        command = [nvcc(), "-std=c++20", f"-arch={ARCH}", "-cudart", "none", "-Xcompiler", "-fPIC,-w"]
        run([*command, "-c", source, "-o", str(target)], self.csrc)
        return target

    def link(self, base: Base, host: dict[str, Path], objects: dict[Module, Path], target: Path) -> Path:
        """A library, of the base's parts where there are no others."""
        parts = [*base.fixed, *(base.host | host).values(), *(base.objects | objects).values()]
        run([*GXX, "-shared", "-Wl,-Bsymbolic", *map(str, parts), "-ldl", "-o", str(target)], self.folder)
        return target


def compiler(optimize: int) -> list[str]:
    return [*GXX, f"-O{optimize}", *KERNEL_FLAGS, f"-I{RUNTIME}", "-c"]


def nvcc() -> str:
    found = ptx.find_nvcc()
    assert found is not None
    return str(found)


def file_name(module: Module) -> str:
    return "-".join([Path(module[0]).stem, *module[1:]]) + ".cpp"


def base(folder: Path, csrc: Path = emulated.CSRC, types: Sequence[str] = tuple(TYPES)) -> Base:
    """Compiles everything as it is; what has not changed since the last time is there already."""
    emulation = emulated.ROOT / "build" / "emulated"  # whose host code and runtime are the same
    cache, bench = Cache(emulation / "ptx-cache", Path(nvcc())), Bench(folder / "base", csrc)
    runtime = [cache.runtime(path) for path in sorted(RUNTIME.glob("*.cpp")) if path.stem != "program"]
    sources = sorted(str(path.relative_to(csrc)) for path in (csrc / "cuda").glob("*.cu"))
    made = Base(folder, csrc, sources, [*emulated.host_objects(emulation), *runtime])
    for source in sources:
        contents = [(csrc / file).read_bytes() for file in sorted(includes(csrc, source))]
        made.host[source] = cache.folder / f"{Path(source).stem}-{digest([source], *contents)}-host.o"
        if not made.host[source].exists():
            bench.host(source).rename(made.host[source])
        for storage in {TYPES[name][0]: None for name in types}:
            made.ptx |= {module: text for module, text in bench.ptx(source, storage).items() if module[1] in types}

    def compiled(module: Module) -> Path:
        code = bench.folder / file_name(module)
        code.write_text(translate(made.ptx[module], int(ARCH[-2:])).code)
        key = digest(compiler(1), *with_headers(code))
        return cache.made(code.stem, ".o", key, [*compiler(1), str(code)])

    with ThreadPoolExecutor(2) as pool:
        made.objects = dict(zip(made.ptx, pool.map(compiled, made.ptx), strict=True))
    bench.link(made, {}, {}, made.library)
    return made


def affected(base: Base, mutant: Mutant) -> list[str]:
    """The sources that the mutant is compiled in."""
    return [source for source in base.sources if mutant.file in includes(base.csrc, source)]


def code_of(object_file: Path) -> str:
    """What the host code of an object does, without addresses and names that differ at every compilation."""
    said = run(["objdump", "-d", "-r", "-C", "--no-show-raw-insn", str(object_file)], object_file.parent)
    return re.sub(r"tmpxft\w*|_nv_\w+|__nv\w+|file format.*|^.*\.o:.*$", "", said, flags=re.M)
