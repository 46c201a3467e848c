"""Launches that a named device refuses, with the error that it gives."""

from __future__ import annotations

import pytest
from ptx.testing import Builder, built, needs_nvcc, run

pytestmark = needs_nvcc
__all__ = ["built"]

OK, VALUE, CONFIGURATION = "cudaSuccess", "cudaErrorInvalidValue", "cudaErrorInvalidConfiguration"
RESOURCES, TOO_LARGE = "cudaErrorLaunchOutOfResources", "cudaErrorCooperativeLaunchTooLarge"
COMMON = {
    "1024 threads": OK,
    "1025 threads": CONFIGURATION,
    "65536 blocks in y": CONFIGURATION,
    "launch bounds kept": OK,
    "launch bounds exceeded": RESOURCES,
    "registers of 64 threads": OK,
    "registers of 1024 threads": RESOURCES,
    "48 KiB shared": OK,
    "64 KiB shared, not opted in": VALUE,
    "64 KiB shared": OK,
    "a cooperative block an SM": OK,
    "33 cooperative blocks an SM": TOO_LARGE,
    "two cooperative blocks of half an SM's shared memory": TOO_LARGE,
    "cooperative by an attribute": OK,
    "a cluster": "cudaErrorNotSupported",
}
DEVICES = {
    "A100": (108, {"160 KiB shared": OK, "227 KiB shared": VALUE}),
    "RTX4090": (128, {"160 KiB shared": VALUE, "227 KiB shared": VALUE}),
    "H100": (132, {"160 KiB shared": OK, "227 KiB shared": OK}),
    "B200": (148, {"160 KiB shared": OK, "227 KiB shared": OK}),
}


def launches(program: object, device: str) -> dict[str, str]:
    done = run(program, device=device)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr
    return dict(line.rsplit(": ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("device", DEVICES)
def test_limits_of_a_device(built: Builder, device: str) -> None:
    sms, own = DEVICES[device]
    assert launches(built("limits"), device) == {"device": f"{device}, {sms} SMs", **COMMON, **own}


def test_code_for_a_newer_device_is_refused(built: Builder) -> None:
    errors = launches(built("limits"), "T4")
    assert errors.pop("device") == "T4, 40 SMs"
    assert errors.pop("a cluster") == "cudaErrorNotSupported"
    assert set(errors.values()) == {"cudaErrorNoKernelImageForDevice"}


def test_an_unknown_device_is_named(built: Builder) -> None:
    done = run(built("limits"), device="nosuch")
    assert done.returncode == 97
    assert "PTX_DEVICE: expected a device of devices.cpp, got nosuch" in done.stderr
