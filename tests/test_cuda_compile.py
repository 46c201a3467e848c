"""Evidence from the compiler: every CUDA kernel for every architecture, without spills, in registers that suffice."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import emulated
import ptx
import pytest

ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
THREADS, REGISTERS = 256, 65536  # of a block, as plan.h has it; of a multiprocessor, the same on all of these

pytestmark = pytest.mark.skipif(ptx.find_nvcc() is None, reason="nvcc was not found")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", emulated.KERNELS, ids=lambda path: path.stem)
def test_registers_and_spills(source: Path, architecture: str, tmp_path: Path) -> None:
    """Nothing of a kernel lies in local memory, and a block fits on a multiprocessor: plans assume no more."""
    command = ["nvcc", "-std=c++20", f"-arch=sm_{architecture}", "-cubin", "-Xptxas", "-v", str(source)]
    done = subprocess.run([*command, "-o", str(tmp_path / "kernels")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kernels = re.findall(
        r"entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
        r"Used (\d+) registers",
        done.stderr,
        re.S,
    )
    assert len(kernels) == 22  # 2 cells; 1 or 8 rows of 4 types, or 16 of 3
    for name, stack, stores, loads, registers in kernels:
        assert (stack, stores, loads) == ("0", "0", "0"), f"{name}: {stack} bytes of stack, spills {stores} + {loads}"
        assert int(registers) * THREADS <= REGISTERS, f"{name}: {registers} registers"
    used = sorted(int(kernel[4]) for kernel in kernels)
    print(f"sm_{architecture} {source.stem}: {used[0]} to {used[-1]} registers")
