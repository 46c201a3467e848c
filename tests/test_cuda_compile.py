"""Evidence from the compiler: every CUDA kernel for every architecture, without spills, in registers that suffice, and
tensor cores where they are meant."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import emulated
import ptx
import pytest

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
THREADS, REGISTERS = 256, 65536  # of a block, as plan.h has it; of a multiprocessor, the same on all of these
TENSOR = ("0", "n1")  # what names kernels of tensor cores, in the place of a number of rows: split, and not

#: 2 cells; 1 or 8 rows of 4 types, or two by tensor cores of 3, or two of even steps, and of float two of wide plans;
#: and what makes their rows.
KERNELS = {"forward": 2 * (2 * 4 + 2 * 3 + 2 * 4), "backward": 2 * (2 * 4 + 2 * 3 + 2 * 4), "exchange": 3}

pytestmark = pytest.mark.skipif(ptx.find_nvcc() is None, reason="nvcc was not found")


def nvdisasm() -> str | None:
    """The disassembler, on PATH or as pip installs it."""
    if found := shutil.which("nvdisasm"):
        return found
    return next((str(path) for folder in sys.path for path in Path(folder).glob("nvidia/cu*/bin/nvdisasm")), None)


@dataclass(frozen=True)
class Compiled:
    """A source's kernels for one architecture."""

    stem: str
    architecture: int
    cubin: Path
    said: str  # by ptxas


SOURCES = [(source, architecture) for source in emulated.KERNELS for architecture in ARCHITECTURES]


@pytest.fixture(scope="module", params=SOURCES, ids=lambda p: f"{p[0].stem}-sm_{p[1]}")
def compiled(request: pytest.FixtureRequest) -> Compiled:
    source, architecture = request.param
    return Compiled(source.stem, architecture, *emulated.machine_code(source, architecture))


def test_registers_and_spills(compiled: Compiled) -> None:
    """Nothing of a kernel lies in local memory, and a block fits on a multiprocessor: plans assume no more."""
    kernels = re.findall(
        r"entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
        r"Used (\d+) registers",
        compiled.said,
        re.S,
    )
    assert len(kernels) == KERNELS[compiled.stem]
    for name, stack, stores, loads, registers in kernels:
        assert (stack, stores, loads) == ("0", "0", "0"), f"{name}: {stack} bytes of stack, spills {stores} + {loads}"
        assert int(registers) * THREADS <= REGISTERS, f"{name}: {registers} registers"
    used = sorted(int(kernel[4]) for kernel in kernels)
    print(f"sm_{compiled.architecture} {compiled.stem}: {used[0]} to {used[-1]} registers")


@pytest.mark.skipif(nvdisasm() is None, reason="nvdisasm was not found")
def test_tensor_cores(compiled: Compiled) -> None:
    """Of the machine code: each kernel's products are by the instruction that its numbers call for, or by none."""
    if compiled.architecture < 80:
        pytest.skip("products by tensor cores are for 8.0 and up")
    listing = subprocess.run([str(nvdisasm()), "-c", compiled.cubin], capture_output=True, text=True, check=True).stdout
    bodies = re.split(r"^\.text\.(\S+):$", listing, flags=re.M)
    assert len(bodies) == 1 + 2 * KERNELS[compiled.stem]
    wanted = {"8BFloat16": "16816.F32.BF16", "7Float16": "16816.F32", "f": "1688.F32.TF32"}
    for name, body in zip(bodies[1::2], bodies[2::2], strict=True):
        used = set(re.findall(r"\bHMMA\.([\w.]+)", body))
        if "untile" in name:
            assert not used and "LDG.E.128" in body and "STG.E.128" in body, name
            continue
        storage, rows = re.search(r"(8BFloat16|7Float16|[fd])E?Li(n?\d+)E", name).groups()  # type: ignore[union-attr]
        even = "even_" in name
        if even or rows in TENSOR:
            assert used == {wanted[storage]}, (name, used)
            wide = ("LDG.E.128.STRONG.GPU",) if even or rows == "0" else ("LD.E.128", "LDS.128")
            assert all(access in body for access in wide), f"{name}: wide reads"
        else:
            assert not used, (name, used)
