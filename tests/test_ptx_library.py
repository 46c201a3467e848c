"""Kernels in a shared library, called from Python on NumPy's memory: faults are errors of the launch."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray
from ptx.testing import Builder, built, needs_nvcc

pytestmark = needs_nvcc
__all__ = ["built"]

ILLEGAL_ADDRESS, LAUNCH_FAILURE = 700, 719


class Kernels:
    """The library, and its memory: arrays are the device's while they are registered."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.ptx_last_fault.restype = ctypes.c_char_p
        library.ptx_clear_fault()

    def register(self, array: NDArray[np.float32], written: bool = True) -> None:
        self.library.ptx_register(pointer(array), ctypes.c_size_t(array.nbytes), int(written))

    def unregister(self, array: NDArray[np.float32]) -> None:
        self.library.ptx_unregister(pointer(array))

    def axpy(self, a: float, x: NDArray[np.float32], y: NDArray[np.float32], n: int) -> int:
        return int(self.library.run_axpy(ctypes.c_float(a), pointer(x), pointer(y), n))

    def fault(self) -> str:
        return str(self.library.ptx_last_fault().decode())


def pointer(array: NDArray[np.float32]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@pytest.fixture
def kernels(built: Builder, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    for name in ("CHECK", "SEED", "DEVICE", "FOREIGN"):
        monkeypatch.delenv(f"PTX_{name}", raising=False)
    return Kernels(ctypes.CDLL(str(built("library", shared=True))))


@pytest.fixture
def arrays() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return np.arange(100, dtype=np.float32), np.ones(100, dtype=np.float32)


def test_registered_memory(kernels: Kernels, arrays: tuple[NDArray[np.float32], ...]) -> None:
    x, y = arrays
    for array in arrays:
        kernels.register(array)
    assert kernels.axpy(2, x, y, 100) == 0
    np.testing.assert_array_equal(y, 1 + 2 * x)
    assert kernels.fault() == ""
    assert kernels.axpy(2, x, y, 101) == ILLEGAL_ADDRESS
    assert "global access out of bounds" in kernels.fault()
    assert "thread (36,0,0) of warp 1, block (1,0,0), kernel axpy(float, float const*, float*, int)" in kernels.fault()
    for array in arrays:
        kernels.unregister(array)
    assert kernels.axpy(2, x, y, 100) == ILLEGAL_ADDRESS


def test_foreign_memory(
    kernels: Kernels, arrays: tuple[NDArray[np.float32], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = arrays
    monkeypatch.setenv("PTX_FOREIGN", "1")
    for check in ("", "all"):
        monkeypatch.setenv("PTX_CHECK", check)
        assert kernels.axpy(1, x, y, 100) == 0
    np.testing.assert_array_equal(y, 1 + 2 * x)


def test_unwritten_memory(
    kernels: Kernels, arrays: tuple[NDArray[np.float32], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = arrays
    monkeypatch.setenv("PTX_CHECK", "unwritten")
    kernels.register(x)
    kernels.register(y, written=False)
    assert kernels.axpy(1, x, y, 100) == LAUNCH_FAILURE
    assert "read of unwritten global memory" in kernels.fault()
    kernels.register(y)
    assert kernels.axpy(1, x, y, 100) == 0
    for array in arrays:
        kernels.unregister(array)


def test_checks_are_switched_between_launches(
    kernels: Kernels, arrays: tuple[NDArray[np.float32], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    y = arrays[1]
    kernels.register(y)
    assert kernels.library.run_race(pointer(y)) == 0
    monkeypatch.setenv("PTX_CHECK", "race")
    assert kernels.library.run_race(pointer(y)) == LAUNCH_FAILURE
    assert "data race" in kernels.fault()
    monkeypatch.setenv("PTX_CHECK", "")
    assert kernels.library.run_race(pointer(y)) == 0
    kernels.unregister(y)


def test_a_fault_is_also_the_error_of_the_next_synchronisation(kernels: Kernels) -> None:
    assert kernels.library.run_trap() == LAUNCH_FAILURE
    assert "trap, by thread (0,0,0)" in kernels.fault()
    kernels.library.ptx_clear_fault()
    assert kernels.fault() == ""


def test_threads_of_the_host_take_turns(kernels: Kernels) -> None:
    def work(seed: int) -> bool:
        x, y = np.full(1000, seed, dtype=np.float32), np.zeros(1000, dtype=np.float32)
        good = True
        for i in range(1, 20):
            for array in (x, y):
                kernels.register(array)
            good &= kernels.axpy(1, x, y, 1000) == 0 and bool((y == i * seed).all())
            for array in (x, y):
                kernels.unregister(array)
        return good

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))
