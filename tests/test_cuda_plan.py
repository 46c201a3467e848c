"""The CUDA backend's choice of plan: a pure function, on a table of real devices."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace

import pytest
import torch


@dataclass(frozen=True)
class Device:
    name: str
    multiprocessors: int
    shared: int  # bytes a block may have
    tensor_cores: bool = True


KIB = 1024
DEVICES = [
    Device("T4", 40, 64 * KIB, tensor_cores=False),
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
    held: bool  # in registers
    tensor: bool
    even: bool
    wide: bool
    first_steps: int  # before the others' input; 0: all have theirs


@dataclass(frozen=True)
class Shape:
    T: int
    B: int
    H: int
    gates: int = 4
    storage: int = 4
    tf32: bool = False
    even: bool = True
    I: int = 0

    @property
    def compute(self) -> int:
        return max(self.storage, 4)


def plan(device: Device, shape: Shape, backward: bool = False, forced: str = "") -> Plan:
    about_shape = (shape.T, shape.B, shape.H, shape.gates, shape.storage, shape.compute)
    about_device = (device.multiprocessors, device.shared, device.tensor_cores)
    how = (shape.tf32, backward, forced, shape.even, shape.I)
    said = torch.ops.lstm_fused.cuda_plan(*about_shape, *about_device, *how)
    found = re.fullmatch(
        r"(\w+), (\d+) units and (\d+) rows? a block, (\d+) bytes shared(, weights among them|, weights in registers)?"
        r"(, tensor cores)?(, even steps)?( of few units)?(?:, the first (\d+) before the others' input)?"
        r", about \d+ cycles a step",
        said,
    )
    assert found, said
    return Plan(
        found[1],
        int(found[2]),
        int(found[3]),
        int(found[4]),
        bool(found[5]),
        "registers" in (found[5] or ""),
        bool(found[6]),
        bool(found[7]),
        bool(found[8]),
        int(found[9] or 0),
    )


@each_device
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("forced", ["", "block", "grid", "pieces", "step"])
@pytest.mark.parametrize(("storage", "tf32"), [(2, False), (4, False), (4, True), (8, True)])
def test_every_plan_fits_its_device(device: Device, storage: int, tf32: bool, forced: str, backward: bool) -> None:
    for H, B, T, gates in itertools.product(
        (1, 7, 33, 64, 100, 256, 512, 768, 1024, 4096, 50_000), (1, 3, 17, 128, 5000), (1, 100), (3, 4)
    ):
        shape = Shape(T, B, H, gates, storage, tf32)
        p = plan(device, shape, backward, forced)
        assert forced in ("", p.kind) or (forced, p.kind) == ("pieces", "grid")
        assert 0 <= p.shared <= device.shared, (shape, p)
        assert p.units >= 1
        assert p.tensor == (device.tensor_cores and (storage == 2 or (storage == 4 and tf32)))
        if p.kind == "block":
            assert p.units == H
        if p.kind == "grid":
            assert -(-H // p.units) * -(-B // p.rows) <= device.multiprocessors, "one block on each multiprocessor"


FLASH = Shape(1024, 16, 768, storage=2)  # the shape of the published figures


@pytest.mark.parametrize(
    ("device", "shape", "backward", "expected"),
    [
        (H100, Shape(100, 4096, 64), False, ("block", 64, 8)),  # U is 64 KiB
        (H100, Shape(100, 4096, 64, storage=2), False, ("block", 64, 8)),
        (H100, Shape(100, 512, 64, storage=2), False, ("grid", 16, 16)),
        (H100, Shape(100, 64, 64, storage=2), False, ("grid", 8, 8)),  # to meet costs less than to update 64 units
        (H100, FLASH, False, ("grid", 16, 8)),  # two groups of rows; of fewer units, more blocks would ask for h
        (H100, replace(FLASH, even=False), False, ("grid", 12, 8)),
        (A100, FLASH, False, ("grid", 16, 8)),
        (H100, FLASH, True, ("grid", 16, 8)),
        (H100, Shape(100, 16, 1024, tf32=True), False, ("grid", 8, 16)),  # 128 KiB
        (A100, Shape(100, 16, 1024), False, ("grid", 10, 16)),  # 160 KiB, and 96 columns of the source at a time
        (H100, Shape(1, 16, 64), False, ("step", 8, 8)),  # one step has nothing to keep
    ],
)
def test_choices(device: Device, shape: Shape, backward: bool, expected: tuple[str, int, int]) -> None:
    chosen = plan(device, shape, backward)
    assert (chosen.kind, chosen.units, chosen.rows) == expected
    assert chosen.resident == (chosen.kind != "step")


def test_weights_in_registers() -> None:
    """As far as four tiles of four slabs go, or backward one of as many as there are gates."""
    for backward in (False, True):
        assert plan(H100, FLASH, backward).held and plan(H100, Shape(100, 16, 1024, storage=2), backward).held
        assert not plan(H100, Shape(100, 16, 1032, storage=2), backward).held
        assert not plan(H100, Shape(100, 16, 100, storage=2), backward).held, (
            "rows do not begin at multiples of 16 bytes"
        )


@pytest.mark.parametrize("backward", [False, True])
def test_even_steps(backward: bool) -> None:
    """They have kernels of their own, up to 64 rows a block, where weights fit into registers and rows are aligned."""
    assert plan(H100, FLASH, backward).even and plan(H100, Shape(100, 128, 1024, storage=2), backward).even
    assert plan(H100, Shape(100, 128, 1024, storage=2), backward).rows == 64
    assert plan(H100, Shape(100, 16, 512, tf32=True), backward).even
    for shape in (
        replace(FLASH, even=False),
        replace(FLASH, H=1032),
        replace(FLASH, H=100),
        replace(FLASH, storage=4),
        replace(FLASH, B=256, H=1024),
    ):
        assert not plan(H100, shape, backward).even, shape
    tf32 = Shape(100, 128, 1024, tf32=True)
    assert plan(H100, tf32, backward).wide and plan(H100, tf32, backward).rows == 128
    assert not plan(H100, replace(tf32, H=512), backward).wide
    assert not plan(H100, replace(tf32, B=129), backward).even
    assert not plan(DEVICES[0], FLASH, backward).even


def test_the_input_comes_beside_the_steps_where_multiprocessors_are_free() -> None:
    """As many steps come first as the others' product takes on those, which are 36 of 132 here."""
    inputs = replace(FLASH, I=768)
    first = plan(H100, inputs).first_steps
    product = 16 * 4 * 768 * 768 / 1000  # cycles of a step on one multiprocessor
    cycles_of_a_step = first * (132 - 96) / (1024 - first)  # times what a step takes, if both end together
    assert product / cycles_of_a_step == pytest.approx(2400, rel=0.1)
    assert plan(H100, replace(inputs, I=1536)).first_steps > first > plan(H100, replace(inputs, I=512)).first_steps > 0
    for forced, expected in (("grid", 0), ("pieces", 342), ("step", 0)):
        assert plan(H100, inputs, forced=forced).first_steps == expected


def test_the_input_comes_at_once_where_little_would_be_saved() -> None:
    for shape in (
        FLASH,  # nothing of it is the layer's
        replace(FLASH, I=16),
        replace(FLASH, I=768, T=64),
        replace(FLASH, I=768, even=False),
        replace(FLASH, I=1024, H=1024),  # four multiprocessors are free
        replace(FLASH, I=4096, H=1024, B=128),
        Shape(256, 16, 256, storage=2, I=256),
    ):
        assert plan(H100, shape).first_steps == 0, shape
    assert plan(H100, replace(FLASH, I=768), backward=True).first_steps == 0


def test_weights_that_fit_nowhere_are_read_anew_by_blocks_that_stay() -> None:
    chosen = plan(DEVICES[0], Shape(100, 16, 1024))  # 26 units would take 416 KiB
    assert chosen.kind == "grid" and not chosen.resident


def test_unknown_plans_are_named() -> None:
    with pytest.raises(ValueError, match="expected block, grid, pieces or step, got fast"):
        plan(H100, Shape(10, 3, 64), forced="fast")
