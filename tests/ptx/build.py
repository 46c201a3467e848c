"""From .cu files to a program or a shared library that runs on the CPU.

Of every source nvcc makes PTX, which is translated to C++, and an object of the host code; both are linked with the
runtime in place of the CUDA runtime library. What an object is made of is hashed into its name, so that only what has
changed is compiled again.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from .translate import UNSUPPORTED, translate

RUNTIME = Path(__file__).parent / "runtime"
GXX = ["g++", "-std=c++20", "-fPIC", "-w"]
# Kernels are compiled as C++ that keeps to the order of operations, and that may alias as PTX does.
KERNEL_FLAGS = ["-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fno-strict-aliasing"]
TRANSLATOR = ["cluster", "conversions", "emit", "floats", "inline", "integers", "mbarrier", "memory", "parse", "steps"]
TRANSLATOR += ["syntax", "text", "translate", "types", "warp"]


class BuildError(RuntimeError):
    """A compiler refused; its output is the message."""


@functools.cache
def find_nvcc() -> Path | None:
    """The CUDA compiler, or None where there is none."""
    for place in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        if place and (nvcc := Path(place, "bin", "nvcc")).is_file():
            return nvcc
    if found := shutil.which("nvcc"):
        return Path(found)
    packages = importlib.util.find_spec("nvidia")  # as pip installs it: nvidia-cuda-nvcc and what it needs
    places = [Path(p) for p in (packages.submodule_search_locations or ())] if packages else []
    return next((nvcc for place in places for nvcc in sorted(place.glob("cu*/bin/nvcc"))), None)


@functools.cache
def toolkit_root(nvcc: Path) -> Path:
    """The toolkit that nvcc belongs to, which may be elsewhere than nvcc itself: nvcc says where."""
    said = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True, check=False).stderr
    found = re.search(r"^#\$ _HERE_=(.*)$", said, re.M)
    if not found:
        raise BuildError(f"{nvcc} --dryrun does not say where it is: {said}")
    return Path(found[1]).parent


def build(
    sources: Sequence[Path],
    output: Path,
    *,
    arch: str = "compute_80",
    includes: Sequence[Path] = (),
    defines: Sequence[str] = (),
    objects: Sequence[Path] = (),
    shared: bool = False,
) -> Path:
    """Builds CUDA sources for the CPU.

    Args:
        sources: .cu files, each with its kernels and its host code.
        output: the program or library; what it is made of is kept beside it, in a folder ``ptx-cache``.
        arch: the virtual architecture that nvcc compiles for.
        includes: folders for ``#include``.
        defines: macros, as ``NAME`` or ``NAME=VALUE``.
        objects: further objects to link, compiled with ``-fPIC``.
        shared: a shared library, in which a fault is an error of the launch and does not end the process.

    Returns:
        ``output``.

    Raises:
        FileNotFoundError: there is no nvcc.
        BuildError: a compiler refused.
    """
    output = output.absolute()
    cache = Cache(output.parent / "ptx-cache")
    options = [f"-I{folder.absolute()}" for folder in includes] + [f"-D{define}" for define in defines]
    with locked(output):
        with ThreadPoolExecutor(2) as pool:
            made = list(pool.map(lambda s: cache.source(s.absolute(), arch, options), sources))
        parts = [part for of_source in made for part in of_source]
        parts += [cache.runtime(path) for path in sorted(RUNTIME.glob("*.cpp")) if path.stem != "program" or not shared]
        link = [*GXX, *(["-shared", "-Wl,-Bsymbolic"] if shared else []), *map(str, [*parts, *objects]), "-ldl"]
        stamp = output.with_name(output.name + ".linked")
        signature = digest(link, *[Path(p).read_bytes() for p in objects])
        if not (output.exists() and stamp.exists() and stamp.read_text() == signature):
            unfinished = output.with_name(f"{os.getpid()}-{output.name}")  # another process may run the old one
            run([*link, "-o", str(unfinished)])
            unfinished.rename(output)
            stamp.write_text(signature)
    return output


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """While one process makes a file, others that want it wait, and then find it made."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed, or the process ends
        yield


class Cache:
    """Objects, named after the hash of all that they are made of."""

    def __init__(self, folder: Path) -> None:
        nvcc = find_nvcc()
        if nvcc is None:
            raise FileNotFoundError("build: nvcc is not on PATH, nor under CUDA_HOME")
        self.folder, self.nvcc, self.root = folder, nvcc, toolkit_root(nvcc)
        folder.mkdir(parents=True, exist_ok=True)
        self.translator = [Path(__file__).with_name(f"{name}.py").read_bytes() for name in TRANSLATOR]

    def runtime(self, path: Path) -> Path:
        """The object of a file of the runtime."""
        command = [*GXX, "-O3", *KERNEL_FLAGS, f"-I{self.root / 'include'}", "-c", str(path)]
        return self.made(path.stem, ".o", digest(command, *with_headers(path)), command)

    def source(self, path: Path, arch: str, options: Sequence[str]) -> list[Path]:
        """The objects of a .cu file: host code and kernels."""
        host, ptx = self.ptx(path, arch, options)
        code = self.folder / f"{path.stem}-{digest([], ptx.read_bytes(), *self.translator)}.cpp"
        if not code.exists():
            said = self.machine_code(ptx, arch.replace("compute", "sm"))[1]
            found = re.findall(r"Compiling entry function '(\S+)'.*?Used (\d+) registers", said, re.S)
            registers = {name: int(count) for name, count in found}
            replace(code, translate(ptx.read_text(), int(re.sub(r"\D", "", arch)), registers).code)
        for line in re.findall(rf"^{UNSUPPORTED}(.*)$", code.read_text(), re.M):
            warnings.warn(f"{path.name}: unsupported: {line}", stacklevel=3)
        flags = [*GXX, "-O1", *KERNEL_FLAGS, f"-I{RUNTIME}", "-c"]
        compiled = self.made(path.stem, ".o", digest(flags, *with_headers(code)), [*flags, str(code)])
        return [host, compiled]

    def ptx(self, path: Path, arch: str, options: Sequence[str] = ()) -> tuple[Path, Path]:
        """Of a .cu file the host code's object, and the kernels."""
        common = [str(self.nvcc), "-std=c++20", f"-arch={arch}", *options]
        text = run([*common, "-E", str(path)])  # has all headers in it
        key = digest(common, text.encode())
        host, ptx = (self.folder / f"{path.stem}-{key}{suffix}" for suffix in ("-host.o", ".ptx"))
        with locked(ptx):
            if not (host.exists() and ptx.exists()):
                with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                    made = [*common, "-lineinfo", "-c", "-cudart", "none", "-Xcompiler", "-fPIC,-w", str(path)]
                    run([*made, "--keep", "--keep-dir", folder, "-o", f"{folder}/host.o"])
                    Path(folder, "host.o").rename(host)
                    Path(folder, path.stem + ".ptx").rename(ptx)
        return host, ptx

    def machine_code(self, ptx: Path, machine: str) -> tuple[Path, str]:
        """What ptxas makes of kernels for a machine such as sm_80, and what it says of them."""
        cubin, said = (ptx.with_suffix(f".{machine}{suffix}") for suffix in (".cubin", ".txt"))
        with locked(cubin):
            if not said.exists():
                ptxas = [str(self.root / "bin" / "ptxas"), f"-arch={machine}", "-v", str(ptx), "-o", str(cubin)]
                done = subprocess.run(ptxas, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise BuildError(done.stderr)
                replace(said, done.stderr)
        return cubin, said.read_text()

    def made(self, stem: str, suffix: str, key: str, command: Sequence[str]) -> Path:
        """The file of this key, made by the command if it is not there yet."""
        path = self.folder / f"{stem}-{key}{suffix}"
        if not path.exists():
            unfinished = path.with_name(f"{os.getpid()}-{path.name}")
            run([*command, "-o", str(unfinished)])
            unfinished.rename(path)
        return path


def with_headers(path: Path) -> list[bytes]:
    """The contents of a C++ file, and of all headers of the runtime that it includes, directly or not."""
    contents, names = [path.read_bytes()], set[str]()
    for content in contents:  # grows while it is read
        for name in re.findall(r'^#include "(\w+\.h)"', content.decode(), re.M):
            if name not in names:
                names.add(name)
                contents.append((RUNTIME / name).read_bytes())
    return contents


def digest(command: Iterable[object], *contents: bytes) -> str:
    """A short name for a command and the contents of its inputs."""
    hashed = hashlib.sha256("\0".join(map(str, command)).encode())
    for content in contents:
        hashed.update(hashlib.sha256(content).digest())
    return hashed.hexdigest()[:16]


def replace(path: Path, text: str) -> None:
    """Writes a file so that it is there whole or not at all."""
    unfinished = path.with_name(f"{os.getpid()}-{path.name}")
    unfinished.write_text(text)
    unfinished.rename(path)


def run(command: Sequence[str]) -> str:
    """Runs a compiler and returns what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout
