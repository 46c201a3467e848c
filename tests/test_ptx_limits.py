"""Launches that a named device refuses, with the error that it gives."""

from __future__ import annotations

import pytest
from ptx.testing import Builder, built, needs_nvcc, run

pytestmark = needs_nvcc
__all__ = ["built"]

OK, VALUE, CONFIGURATION = "cudaSuccess", "cudaErrorInvalidValue", "cudaErrorInvalidConfiguration"
RESOURCES, TOO_LARGE = "cudaErrorLaunchOutOfResources", "cudaErrorCooperativeLaunchTooLarge"
NO_CLUSTERS, CLUSTER = "cudaErrorNotSupported", "cudaErrorInvalidClusterSize"
NO_IMAGE = "cudaErrorNoKernelImageForDevice"
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
}
DEVICES = {
    "A100": (108, {"160 KiB shared": OK, "227 KiB shared": VALUE, "a cluster": NO_CLUSTERS}),
    "RTX4090": (128, {"160 KiB shared": VALUE, "227 KiB shared": VALUE, "a cluster": NO_CLUSTERS}),
    "H100": (132, {"160 KiB shared": OK, "227 KiB shared": OK, "a cluster": OK}),
    "B200": (148, {"160 KiB shared": OK, "227 KiB shared": OK, "a cluster": OK}),
}


CLUSTERS = {
    "pairs of 4 blocks": OK,
    "pairs of 3 blocks": CLUSTER,
    "pairs by an attribute, too": OK,
    "fours of a kernel for pairs": CLUSTER,
    "2 x 3 of 4 x 3 blocks": OK,
    "3 x 2 of 4 x 3 blocks": CLUSTER,
    "four of at most four": OK,
    "eight of at most four": CLUSTER,
    "8 blocks": OK,
    "16 blocks, not allowed": CLUSTER,
    "16 blocks, allowed": OK,
    "17 blocks": CLUSTER,
    "cooperative, a block an SM": OK,
    "cooperative, more": TOO_LARGE,
}


def launches(program: object, device: str) -> dict[str, str]:
    done = run(program, device=device)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr
    return dict(line.rsplit(": ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("device", DEVICES)
def test_limits_of_a_device(built: Builder, device: str) -> None:
    sms, own = DEVICES[device]
    assert launches(built("limits"), device) == {"device": f"{device}, {sms} SMs", **COMMON, **own}


@pytest.mark.parametrize(("device", "clusters"), [("H100", 33), ("B200", 37)])
def test_limits_of_clusters(built: Builder, device: str, clusters: int) -> None:
    head, tail = {"device": f"{device}, clusters 1"}, {"clusters at a time": str(clusters)}
    assert launches(built("limits_cluster"), device) == {**head, **CLUSTERS, **tail}


def test_a_device_too_small_for_a_cluster(built: Builder) -> None:
    said = run(built("limits_cluster"), device="H100", sms=1).stdout  # a cluster with all shared memory of four SMs
    assert said.endswith(
        "cudaOccupancyMaxActiveClusters(&clusters, plain, &full.config): cudaErrorInvalidClusterSize\n"
    )


def test_code_for_a_newer_device_is_refused(built: Builder) -> None:
    errors = launches(built("limits"), "T4")
    assert errors.pop("device") == "T4, 40 SMs"
    assert set(errors.values()) == {NO_IMAGE}


def test_an_unknown_device_is_named(built: Builder) -> None:
    done = run(built("limits"), device="nosuch")
    assert done.returncode == 97
    assert "PTX_DEVICE: expected a device of devices.cpp, got nosuch" in done.stderr
