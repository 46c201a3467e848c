"""The CUDA backend's choice of plan: a pure function, on a table of real devices."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch


@dataclass(frozen=True)
class Device:
    name: str
    multiprocessors: int
    shared: int  # bytes a block may have


KIB = 1024
DEVICES = [
    Device("T4", 40, 64 * KIB),
    Device("A100", 108, 163 * KIB),
    Device("RTX 3090", 82, 99 * KIB),
    Device("L4", 58, 99 * KIB),
    Device("H100", 132, 227 * KIB),
    Device("B200", 148, 227 * KIB),
    Device("RTX 5090", 170, 99 * KIB),
]
A100, H100 = DEVICES[1], DEVICES[4]
each_device = pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)


@dataclass(frozen=True)
class Plan:
    kind: str
    units: int
    rows: int
    shared: int
    resident: bool


def plan(
    device: Device, T: int, B: int, H: int, gates: int = 4, storage: int = 4, backward: bool = False, forced: str = ""
) -> Plan:
    compute = max(storage, 4)
    said = torch.ops.lstm_fused.cuda_plan(
        T, B, H, gates, storage, compute, device.multiprocessors, device.shared, backward, forced
    )
    found = re.fullmatch(
        r"(\w+), (\d+) units a block, (\d) rows? at once, (\d+) bytes shared(, weights among them)?", said
    )
    assert found, said
    return Plan(found[1], int(found[2]), int(found[3]), int(found[4]), bool(found[5]))


@each_device
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("forced", ["", "block", "grid", "step"])
@pytest.mark.parametrize("storage", [2, 4, 8])
def test_every_plan_fits_its_device(device: Device, storage: int, forced: str, backward: bool) -> None:
    for H in (1, 7, 33, 64, 100, 256, 512, 768, 1024, 4096, 50_000):
        for B in (1, 3, 17, 128):
            for T in (1, 100):
                for gates in (3, 4):
                    p = plan(device, T, B, H, gates, storage, backward, forced)
                    assert forced in ("", p.kind)
                    assert 0 < p.shared <= device.shared, (H, B, T, p)
                    assert p.units >= 1
                    if p.kind == "block":
                        assert p.units == H
                    if p.kind == "grid":
                        assert -(-H // p.units) <= device.multiprocessors, "one block on each multiprocessor"


@pytest.mark.parametrize(
    ("device", "shape", "storage", "kind"),
    [
        (H100, (100, 16, 64), 4, "block"),  # U is 64 KiB
        (H100, (1024, 16, 768), 2, "grid"),  # 36 KiB of U on each multiprocessor
        (A100, (1024, 16, 768), 2, "grid"),
        (H100, (100, 16, 1024), 4, "grid"),  # 128 KiB
        (A100, (100, 16, 1024), 4, "grid"),  # 160 KiB, and 96 columns of the source at a time
        (DEVICES[0], (100, 16, 1024), 4, "step"),  # 26 units would take 416 KiB
        (H100, (1, 16, 64), 4, "step"),  # one step has nothing to keep
    ],
)
def test_choices(device: Device, shape: tuple[int, int, int], storage: int, kind: str) -> None:
    chosen = plan(device, *shape, storage=storage)
    assert chosen.kind == kind
    assert chosen.resident == (kind != "step")


def test_unknown_plans_are_named() -> None:
    with pytest.raises(ValueError, match="expected block, grid or step, got fast"):
        plan(H100, 10, 3, 64, forced="fast")
