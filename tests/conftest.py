"""Fixtures that test files share: ISA, plan, CUDA device, and the process-wide settings put back after each test."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Before torch loads OpenMP: a suite that shares its cores must not have threads spin for others that are not running.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import cases
import devices
import emulated
import pytest
import torch

from lstm_fused import runtime
from lstm_fused.bench.card import precision

# What of the suite runs through the CUDA backend compares float32 results; those of tf32 have tests of their own.
if emulated.running():
    torch.backends.cudnn.rnn.fp32_precision = "ieee"

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # a machine with a card may have just what the tests of the CUDA backend need
    pass
else:
    # "suite" draws the same examples every time, so that red is red again; HYPOTHESIS_PROFILE=explore draws new ones.
    quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    settings.register_profile("suite", deadline=None, derandomize=True, max_examples=60, suppress_health_check=quiet)
    settings.register_profile("explore", deadline=None, max_examples=1000, suppress_health_check=quiet)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


@pytest.fixture(params=[runtime.isa()] if emulated.running() else runtime.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set this machine runs, in force during the test."""
    with runtime.use_isa(request.param):
        assert runtime.isa() == request.param
        yield request.param


@pytest.fixture(params=cases.PLANS)
def plan(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each way to split the work, forced during the test."""
    with cases.use_plan(request.param):
        yield request.param


@pytest.fixture
def device() -> Iterator[str]:
    """Where tensors of the CUDA backend are, with float32 products as float32 has them."""
    if devices.why_none():
        pytest.skip(devices.why_none())
    with precision("float32"):
        yield "cpu" if emulated.running() else "cuda"


@pytest.fixture
def card(device: str) -> str:
    """A device of its own, with a clock, streams and memory."""
    if device == "cpu":
        pytest.skip(devices.NO_CARD)
    return device


@pytest.fixture(params=devices.PLANS)
def cuda_plan(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each plan of the CUDA backend, forced during the test."""
    monkeypatch.setenv("LSTM_FUSED_CUDA_PLAN", request.param)
    return str(request.param)


@pytest.fixture(params=(*devices.PLANS, "pieces"))
def cuda_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each plan, and the one that uses a stream of its own."""
    monkeypatch.setenv("LSTM_FUSED_CUDA_PLAN", request.param)
    return str(request.param)


@pytest.fixture(autouse=True)
def process_settings() -> Iterator[None]:
    """Puts back the thread count, the determinism switch and the default dtype, which tests change; draws the same."""
    torch.manual_seed(0)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    dtype = torch.get_default_dtype()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.set_default_dtype(dtype)
