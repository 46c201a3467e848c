"""The CUDA backend with no GPU (``emulated``): parts of the suite again, in processes where it has the CPU's place."""

from __future__ import annotations

from pathlib import Path

import children
import emulated
import pytest

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.skipif(bool(emulated.why_not()), reason=f"no emulation: {emulated.why_not()}"),
    pytest.mark.skipif(emulated.running(), reason="this is it"),
    pytest.mark.timeout(3600),
]


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Of a child whose threads would only wait for each other, and which keeps the memory of blocks for the next."""
    kept = str(1 << 30)
    allocator = {"MALLOC_MMAP_THRESHOLD_": kept, "MALLOC_TRIM_THRESHOLD_": kept}  # or each launch fetches it anew
    return {"LSTM_FUSED_LIBRARY": str(emulated.library()), "OMP_NUM_THREADS": "1", **allocator}


# On a device of 24 multiprocessors: blocks of a row group still meet, and are not as many as layers this small have
# units. That a device's size changes no bit is tested below.
SMS = {"PTX_SMS": "24"}


# In parts of a minute or so, which two workers share evenly.
@pytest.mark.parametrize(
    ("file", "chosen"),
    [
        ("test_values.py", "test_layer and lstm and f64"),
        ("test_values.py", "test_layer and lstm and bf16"),
        ("test_values.py", "test_layer and gru and f64"),
        ("test_values.py", "test_layer and gru and bf16"),
        ("test_gradcheck.py", "every_element or cotangents"),
        ("test_gradcheck.py", "layer_wide and lstm"),
        ("test_gradcheck.py", "layer_wide and gru"),
        ("test_higher_derivatives.py", "test_second_derivatives"),
        ("test_tracing.py", "opcheck"),
        ("test_segments.py", "parts_run_apart"),
        ("test_resets.py", "gradients_of or tangents or opcheck"),
        ("test_vmap.py", "per_sample"),
        ("test_cuda_lengths.py", "test"),
        ("test_cuda.py", "gradcheck"),
        ("test_cuda.py", "not gradcheck"),
        ("test_cuda_device.py", "test"),
    ],
)
def test_suite(environment: dict[str, str], file: str, chosen: str) -> None:
    """Values, gradients, higher derivatives, operators, ragged rows and resets: every plan, cell, type and option."""
    arguments = ["-q", "-x", "-p", "no:cacheprovider", str(HERE / file), "-k", chosen]
    said = children.check("-m", "pytest", *arguments, timeout=3000, environment=environment | SMS)
    assert " passed" in said or "100%" in said, said


@pytest.fixture(scope="module")
def bits_unforced(environment: dict[str, str]) -> str:
    """Of the plans that are chosen for an H100, in the plain order, without checks."""
    return children.check(str(HERE / "emulated_bits.py"), timeout=600, environment=environment)


@pytest.mark.parametrize(
    ("plan", "device", "seed"),
    [
        *((plan, *order) for plan in ("block", "grid", "step") for order in (("H100", 0), ("H100", 1), ("small", 2))),
        ("pieces", "H100", 3),
    ],
)
def test_the_same_bits_under_every_plan_and_schedule(
    environment: dict[str, str], bits_unforced: str, plan: str, device: str, seed: int
) -> None:
    """Warps and blocks in three orders, stores of a block seen by others only after a fence, and no data race.

    On the small device no weights stay in shared memory, source rows come in pieces, and a block has many units.
    """
    settings = {**environment, "LSTM_FUSED_CUDA_PLAN": plan, "PTX_SEED": str(seed), "PTX_CHECK": "all"}
    if device == "small":
        settings |= {"PTX_SMS": "6", "PTX_SHARED": "40960"}
    bits = children.check(str(HERE / "emulated_bits.py"), timeout=600, environment=settings)
    assert bits == bits_unforced


def test_errors_name_the_plan(environment: dict[str, str]) -> None:
    status, said = children.run(
        str(HERE / "emulated_bits.py"), environment={**environment, "LSTM_FUSED_CUDA_PLAN": "fast"}
    )
    assert status != 0 and "LSTM_FUSED_CUDA_PLAN: expected block, grid, pieces or step, got fast" in said, said
