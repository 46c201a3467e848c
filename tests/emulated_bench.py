"""``lstm-fused bench --device cuda`` with no card: its own code on the emulated device, by the wall clock.

The times are those of an interpreter of kernels and say nothing of any GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import emulated
import torch

from lstm_fused import cli
from lstm_fused.bench import cuda, measure
from lstm_fused.bench.card import Card

NAME = "emulated: not a speed"


class Emulated(cuda.Device):
    """Tensors in the host's memory, and an H100's limits for plans."""

    kind, clock = "cpu", "wall clock"
    gemm_sizes = (128,)
    copy_bytes = 1 << 20

    def describe(self) -> Card:
        return Card(NAME, (9, 0), 132, 227 * 1024, 1 << 12, 1 << 30, str(torch.version.cuda), "none")

    def sample(self, call: Callable[[], object], calls: int, _clock: Callable[[], float]) -> float:
        return measure.sample(call, calls, time.perf_counter)

    def captured(self, call: Callable[[], object], calls: int) -> Callable[[], object]:
        raise RuntimeError("the emulated device has no graphs")


if __name__ == "__main__":
    assert emulated.running()
    cuda.instrument = Emulated
    cli.app()
