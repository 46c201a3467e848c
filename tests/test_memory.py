"""The memory that a layer's tensors lie in: kept from call to call, up to a limit, and otherwise like any other."""

from __future__ import annotations

import copy
import ctypes
import gc
import io
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import children
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import lstm_fused
from lstm_fused import runtime

MIB = 1 << 20
LAYER = lstm_fused.LSTM(4, 64)

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to count memory")


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """Begins with nothing kept, by malloc neither, and puts the limit back."""
    gc.collect()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
    limit = runtime.keep_memory(0)
    runtime.keep_memory(limit)
    yield
    runtime.keep_memory(limit)


def kibibytes(size: int, seed: int = 0) -> Tensor:
    """An output of so many KiB, a multiple of 4."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return LAYER(torch.randn(size // 4, 16, 4, generator=generator))[0]


def output(mebibytes: int, seed: int = 0) -> Tensor:
    """An output of so many MiB."""
    return kibibytes(1024 * mebibytes, seed)


def resident() -> int:
    """Bytes of memory that this process has."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def test_what_is_freed_serves_the_next_call() -> None:
    """The next output, a little shorter, lies where the last one lay; while that is used, it lies elsewhere."""
    first = output(9)
    place = first.data_ptr()
    second = output(9)
    assert second.data_ptr() != place
    del first
    with torch.no_grad():
        assert LAYER(torch.randn(9 * 256 - 1, 16, 4))[0].data_ptr() == place


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(st.integers(2, 700), min_size=1, max_size=20),  # 4 KiB of output each
    freed=st.lists(st.integers(0, 19), max_size=20),
    limit=st.sampled_from([0, 3 * MIB, 100 * MIB]),
)
def test_outputs_keep_their_values(steps: list[int], freed: list[int], limit: int) -> None:
    """Outputs of many sizes, some freed as others are made, against the same computed one at a time."""
    runtime.keep_memory(limit)
    alone = [kibibytes(4 * T, T).clone() for T in steps]
    held: dict[int, Tensor] = {}
    for k, T in enumerate(steps):
        held[k] = kibibytes(4 * T, T)
        for j in freed[k : k + 1]:
            held.pop(j, None)
    assert all(torch.equal(held[k], alone[k]) for k in held)
    begins_and_ends = sorted((x.data_ptr(), x.data_ptr() + x.nbytes) for x in held.values())
    assert all(end <= begin for (_, end), (begin, _) in pairwise(begins_and_ends))


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("order", [1, -1])
def test_small_ones_share_pages(count: int, order: int) -> None:
    """Outputs of 300 KiB take no more than they need; freed in either order, their pages are whole again and go."""
    kibibytes(300)
    before = resident()
    held = [kibibytes(300) for _ in range(count)]
    assert resident() - before < count * 300 * 1024 * 1.25 + 4 * MIB
    while held:
        held.pop(-1 if order < 0 else 0)
    runtime.keep_memory(0)
    assert abs(resident() - before) < 4 * MIB


@pytest.mark.parametrize("limit", [0, 20, 100])
def test_limit(limit: int) -> None:
    """Of two outputs of 16 MiB as many stay resident when they are freed as the limit allows."""
    output(1)  # what is loaded once
    runtime.keep_memory(limit * MIB)
    before = resident()
    outputs = [output(16), output(16)]
    used = resident() - before
    assert used > 31 * MIB
    del outputs
    kept = min(limit // 16, 2) * 16 * MIB
    assert abs(resident() - before - kept) < 6 * MIB
    assert runtime.keep_memory(0) == limit * MIB
    assert abs(resident() - before) < 6 * MIB


def test_a_negative_limit() -> None:
    """An error that names the argument; the limit stays."""
    limit = runtime.keep_memory(5 * MIB)
    with pytest.raises(ValueError, match="limit: expected a number of bytes that is not negative, got -1"):
        runtime.keep_memory(-1)
    assert runtime.keep_memory(limit) == 5 * MIB


def test_an_output_is_a_tensor_like_any_other() -> None:
    """It can be resized, copied, pickled, shared between processes and given to numpy."""
    value = output(3)
    wanted = value.clone()
    assert torch.equal(copy.deepcopy(value), wanted)
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    assert torch.equal(torch.load(file), wanted)
    array = value.numpy()
    grown = output(3).resize_(5 * 256, 16, 64)
    assert torch.equal(grown[: 3 * 256], wanted)
    assert torch.equal(output(3).share_memory_(), wanted)
    del value
    assert torch.equal(torch.from_numpy(array), wanted), "numpy's array lost its memory"


def test_the_profiler_sees_it() -> None:
    """torch.profiler counts the output's memory when it is made, and when it is freed."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as made:
        value = output(8)
    assert sum(event.self_cpu_memory_usage for event in made.key_averages()) >= 8 * MIB
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as freed:
        del value
    assert sum(event.self_cpu_memory_usage for event in freed.key_averages()) <= -8 * MIB


def test_many_threads_at_once() -> None:
    """Calls of several Python threads do not get one another's memory."""
    seeds = [seed % 4 for seed in range(64)]
    wanted = [output(1 + seed, seed).clone() for seed in range(4)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda seed: torch.equal(output(1 + seed, seed), wanted[seed]), seeds))
    assert all(found)


def child_without_huge_pages() -> None:
    """A training step where the system gives no huge pages, against one where it may."""

    def gradients() -> list[Tensor]:
        data = torch.randn(512, 16, 4, generator=torch.Generator().manual_seed(0))
        return list(torch.autograd.grad(LAYER(data)[0].sum(), list(LAYER.parameters())))

    wanted = gradients()
    pr_set_thp_disable = 41
    assert ctypes.CDLL(None).prctl(pr_set_thp_disable, 1, 0, 0, 0) == 0
    runtime.keep_memory(0)
    assert all(torch.equal(x, y) for x, y in zip(gradients(), wanted, strict=True))


def test_without_huge_pages() -> None:
    """They are an advice."""
    children.check(__file__, "child_without_huge_pages")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
