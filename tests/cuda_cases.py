"""Tiny layers through every CUDA kernel, for a checker to watch: compute-sanitizer, a profiler, or the PTX runner.

Run as a program; it compares results with the CPU's as far as a wrong one should end a check, and prints what it ran.
"""

from __future__ import annotations

import itertools
import os
import sys
from dataclasses import replace

import cases
import devices
import emulated
import raw
import torch
from cases import Case

from lstm_fused.bench.card import precision

SHAPES = (
    Case(T=3, B=2, I=3, H=5),
    Case(T=3, B=9, I=3, H=33, bidirectional=True),
    Case(T=3, B=4, I=3, H=17, packed=True, bidirectional=True),
    Case(T=2, B=5, I=3, H=70, recompute=True),
    Case(T=3, B=20, I=3, H=24),
)
#: Several rows a lane where steps are even, and a wide plan in tf32: on a card alone, as the emulation is too slow.
LARGE = Case(T=2, B=70, I=3, H=520)
TYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
EPS = {name: 2.0**-10 if name == "tf32" else torch.finfo(dtype).eps for name, dtype in TYPES.items()}


def run(case: Case, device: str) -> list[torch.Tensor]:
    """Results and every gradient, on the CPU."""
    a = raw.arguments(case, device=device)
    outputs = a.call()
    grads = torch.autograd.grad(outputs, a.tensors, [output.detach().cos() for output in outputs])
    with torch.inference_mode():
        a.call()
    return [result.detach().double().cpu() for result in (*outputs, *grads)]


def main() -> int:
    """Runs every shape, cell, type and plan; returns how many are wrong."""
    why = devices.why_none()
    if why:
        print(why)
        return 1
    device = "cpu" if emulated.running() else "cuda"
    few = "--few" in sys.argv
    wrong = 0
    runs = [*itertools.product(devices.PLANS, SHAPES[::2] if few else SHAPES, cases.CELLS, TYPES)]
    if not emulated.running():
        runs += itertools.product(["grid"], [LARGE], cases.CELLS, TYPES)
    for plan, shape, cell, name in runs:
        os.environ["LSTM_FUSED_CUDA_PLAN"] = plan
        case = replace(shape, cell=cell, dtype=TYPES[name])
        with precision(name):
            wrong += not close(run(case, device), reference(case), EPS[name])
    print(f"{len(runs)} layers on {devices.describe()}: {wrong} wrong")
    return wrong


def reference(case: Case) -> list[torch.Tensor]:
    """The same by ATen operations, in float64 on the CPU."""
    a = raw.arguments(replace(case, dtype=torch.float64))
    rounded = raw.arguments(case)
    tensors = [t.detach().double().requires_grad_() for t in rounded.tensors]
    x, *rest = tensors
    states, weights = rest[: len(a.states)], rest[len(a.states) :]
    op = torch.ops.lstm_fused.reference
    outputs = op(a.cell, x, states, weights, a.batch_sizes, a.bidirectional, *a.options)
    grads = torch.autograd.grad(outputs, tensors, [output.detach().cos() for output in outputs])
    return [result.detach() for result in (*outputs, *grads)]


def close(found: list[torch.Tensor], wanted: list[torch.Tensor], eps: float) -> bool:
    """To a few roundings, relative to the largest element: the suite's other tests are the exact ones."""
    return all(bool((a - b).abs().max() <= 64 * eps * b.abs().max()) for a, b in zip(found, wanted, strict=True))


if __name__ == "__main__":
    sys.exit(min(main(), 1))
