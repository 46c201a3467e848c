"""The CUDA backend with no GPU: its host code on CPU tensors, its kernels run by ``ptx``, in a library of its own.

A process that is started with ``LSTM_FUSED_LIBRARY`` set to ``library()`` has it in the place of the package's: every
layer then goes through the CUDA backend's plan choice, launches, kernels and backward.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ptx
import torch
from ptx.build import Cache, locked
from torch.utils import cpp_extension

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
#: Compiled anew for the emulation; all other objects are those of the package.
OWN = [
    CSRC / "ops.cpp",
    CSRC / "cuda" / "layer.cpp",
    CSRC / "cuda" / "steps.cpp",
    ROOT / "tests" / "emulated_memory.cpp",
]
FOLDER = ROOT / "build" / "emulated"
KERNELS = [CSRC / "cuda" / f"{name}.cu" for name in ("forward", "backward", "exchange")]
DEFINES = ["LSTM_FUSED_CUDA", "LSTM_FUSED_CUDA_EMULATED"]


def running() -> bool:
    """Whether this process has the emulation in the package's place."""
    return "LSTM_FUSED_LIBRARY" in os.environ


def why_not() -> str:
    """Why it cannot be built here; empty if it can."""
    if ptx.find_nvcc() is None:
        return "nvcc was not found"
    if not (ROOT / "build" / "temp" / "csrc").is_dir():
        return "the package was not built in place"
    return ""


def library() -> Path:
    """Builds it, as far as anything has changed."""
    return ptx.build(KERNELS, FOLDER / "lstm_fused_emulated.so", objects=host_objects(FOLDER), shared=True)


def machine_code(source: Path, machine: int) -> tuple[Path, str]:
    """A source's kernels for a device's architecture, of the PTX that ``setup.py`` makes it of, and ptxas's report."""
    cache = Cache(FOLDER / "ptx-cache")
    made = cache.ptx(source, f"compute_{min(machine, 80)}")[1]
    return cache.machine_code(made, f"sm_{machine}")


def host_objects(folder: Path) -> list[Path]:
    """All of the library but its kernels and what starts them."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "objects"), ThreadPoolExecutor(2) as pool:
        own = list(pool.map(lambda path: compiled(path, folder), OWN))
    shared_with_package = [
        ROOT / "build" / "temp" / path.relative_to(ROOT).with_suffix(".o")
        for path in sorted([*CSRC.glob("*.cpp"), *(CSRC / "cpu").glob("*.cpp"), CSRC / "cuda" / "plan.cpp"])
        if path not in OWN
    ]
    torch_libraries = [Path(torch.__file__).parent / "lib" / f"lib{name}.so" for name in ("c10", "torch", "torch_cpu")]
    return [*own, *shared_with_package, *torch_libraries]


def compiled(source: Path, folder: Path) -> Path:
    """The object of a file of host code."""
    includes = [flag for path in cpp_extension.include_paths() for flag in ("-isystem", path)]
    command = [
        "g++",
        "-std=c++20",
        "-O2",
        "-fPIC",
        "-fvisibility=hidden",
        *(f"-D{name}" for name in DEFINES),
        *includes,
    ]
    command += ["-c", str(source)]
    text = subprocess.run([*command[:-2], "-E", "-P", str(source)], capture_output=True, check=True).stdout
    name = hashlib.sha256(repr(command).encode() + text).hexdigest()[:16]
    target = folder / f"{source.stem}-{name}.o"
    if not target.exists():
        subprocess.run([*command, "-o", str(target)], check=True)
    return target
