"""Where a layer's time goes on a card: each kernel's, by torch's profiler, beside what all of them take.

Kernels may run side by side, so a step takes less than their sum: it is timed by events, as chosen and in one piece.

Part of `make gpu-check`, which runs it in the environment that it has found.
"""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Callable, Iterator

import torch
from torch.profiler import ProfilerActivity, profile

import lstm_fused
from lstm_fused.bench.card import precision

DTYPES = {"float16": torch.float16, "tf32": torch.float32}
#: dtype, T, B, and I = H.
CASES = (
    ("float16", 1024, 16, 768),
    ("float16", 256, 64, 512),
    ("float16", 256, 64, 64),
    ("float16", 256, 128, 1024),
    ("tf32", 1024, 16, 768),
    ("tf32", 256, 128, 1024),
)
RUNS = 5
LEAST = 0.01  # of the whole, that a kernel must take to be named


def modes(dtype: str, T: int, B: int, H: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """An inference and a training step of an LSTM."""
    given = {"device": "cuda", "dtype": DTYPES[dtype]}
    layer = lstm_fused.LSTM(H, H, **given)
    x = torch.randn(T, B, H, **given)  # type: ignore[call-overload]
    gradient = torch.randn_like(x)

    def inference() -> object:
        with torch.inference_mode():
            return layer(x)

    yield "inference", inference
    x.requires_grad_()
    yield "training", lambda: layer(x)[0].backward(gradient)


def kernels(step: Callable[[], object]) -> list[tuple[float, float, str]]:
    """Milliseconds of a step, how often a step starts it, and the name of each kernel, longest first."""
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(RUNS):
            step()
        torch.cuda.synchronize()
    events = [event for event in profiler.key_averages() if event.device_time_total > 0]
    return sorted(((e.device_time_total / 1e3 / RUNS, e.count / RUNS, short(e.key)) for e in events), reverse=True)


def elapsed(step: Callable[[], object], plan: str) -> float:
    """Milliseconds of a step under a plan, as many after each other; "" is the plan that is chosen."""
    os.environ["LSTM_FUSED_CUDA_PLAN"] = plan
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    step()
    begin.record()
    for _ in range(RUNS):
        step()
    end.record()
    del os.environ["LSTM_FUSED_CUDA_PLAN"]
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / RUNS


def chosen_and_whole(step: Callable[[], object]) -> list[float]:
    """Milliseconds of a step as chosen, and by `grid` in one piece: medians, in turn."""
    times = [(elapsed(step, ""), elapsed(step, "grid")) for _ in range(7)]
    return [statistics.median(of_plan) for of_plan in zip(*times, strict=True)]


def short(name: str) -> str:
    """A kernel's name without namespaces, arguments and the like."""
    return re.sub(r"\(.*|^void |\w+::(?!\()", "", name)[:60]


def main() -> None:
    """Prints a line for each kernel that counts."""
    for dtype, *shape in CASES:
        T, B, H = shape
        with precision(dtype):
            for mode, step in modes(dtype, T, B, H):
                found = kernels(step)
                total = sum(ms for ms, _, _ in found)
                chosen, whole = chosen_and_whole(step)
                print(f"LSTM {dtype} {T}x{B} {H}>{H}, {mode}: {chosen:.4g} ms, grid in one piece {whole:.4g}")
                print(f"    {total:8.4f} ms  all kernels", flush=True)
                for ms, count, name in found:
                    if ms >= LEAST * total:
                        print(f"    {ms:8.4f} ms  {count:3g} x  {name}", flush=True)


if __name__ == "__main__":
    main()
