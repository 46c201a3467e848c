"""Fixtures that every test file shares: the ISA, the plan, and the process-wide settings put back after each test."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Before torch loads OpenMP: a suite that shares its cores must not have threads spin for others that are not running.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import cases
import emulated
import pytest
import torch
from hypothesis import HealthCheck, settings

from lstm_fused import runtime

# What of the suite runs through the CUDA backend compares float32 results; those of tf32 have tests of their own.
torch.backends.cudnn.rnn.fp32_precision = "ieee"

# "suite" draws the same examples every time, so that a red run is red again; HYPOTHESIS_PROFILE=explore draws new ones.
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
