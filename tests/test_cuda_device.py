"""What the CUDA backend asks of a device beside results: streams, graphs, no waiting, memory, long sequences.

What needs a device of its own is skipped on the emulated one.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cases
import devices
import emulated
import oracles
import pytest
import raw
import test_limits
import tolerances
import torch
from cases import Case
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import lstm_fused

pytestmark = pytest.mark.cuda
CELLS = pytest.mark.parametrize("cell", cases.CELLS)

# One case for each plan that a card may choose, and both directions; even steps come in pieces, too.
SHAPES = [
    Case(T=20, B=8, I=16, H=32, bidirectional=True),
    Case(T=20, B=16, I=16, H=256, dtype=torch.bfloat16),
    Case(T=20, B=4, I=16, H=512),
    Case(T=20, B=9, I=16, H=64, bidirectional=True, dtype=torch.float16),
]
each_case = pytest.mark.parametrize(
    "case", [replace(c, cell=k) for k in cases.CELLS for c in SHAPES], ids=lambda c: c.id
)


def module_and_input(case: Case, device: str) -> tuple[nn.Module, Tensor]:
    module = cases.build(case, lstm_fused, case.dtype).to(device)
    return module, torch.randn(case.T, case.B, case.I, dtype=case.dtype, device=device)


def training_step(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and every gradient, which are left in place."""
    output = module(x)[0]
    output.float().square().sum().backward()
    return [output.detach(), *(p.grad for p in module.parameters())]


def assert_equal(found: list[Tensor], wanted: list[Tensor]) -> None:
    for k, (x, y) in enumerate(zip(found, wanted, strict=True)):
        assert y.isfinite().all() and y.any()
        assert torch.equal(x, y), f"result {k}: {int((x != y).sum())} of {x.numel()} elements differ"


def on_side_stream(call: Callable[[], Any], times: int = 3) -> None:
    """Warm-up before a capture, as torch's manual has it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(times):
            call()
    torch.cuda.current_stream().wait_stream(side)


# ---- streams -----------------------------------------------------------------------------------------------------


@each_case
def test_work_goes_to_the_current_stream(case: Case, card: str, cuda_way: str) -> None:
    """On a stream whose input is late by a long kernel, the layer is late as well, and reads the input in time."""
    module, x = module_and_input(case, card)
    wanted = [t.clone() for t in training_step(module, x)]
    side = torch.cuda.Stream()

    def goes_on(cycles: int) -> bool:
        """Whether the host is done with its part while the stream still waits for the input."""
        module.zero_grad()
        late = torch.zeros_like(x)
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            torch.cuda._sleep(cycles)
            late.copy_(x)
            found = training_step(module, late)
            waiting = not side.query()
        side.synchronize()
        assert_equal(found, wanted)
        return waiting

    # From tens of milliseconds to seconds: a busy host may take longer than the first, one that waits than any.
    assert any(goes_on(50_000_000 * 4**k) for k in range(4)), "the kernels were waited for"


@each_case
def test_two_streams_at_once(case: Case, card: str, cuda_way: str) -> None:
    """Layers on two streams share nothing that one could take from the other."""
    pairs = [module_and_input(case, card) for _ in range(2)]
    wanted = [module(x)[0].detach().clone() for module, x in pairs]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    found: list[list[Tensor]] = [[], []]
    for _ in range(10):
        for k, (module, x) in enumerate(pairs):
            with torch.cuda.stream(streams[k]):
                found[k].append(module(x)[0].detach())
    torch.cuda.synchronize()
    for k in range(2):
        assert_equal(found[k], [wanted[k]] * 10)


# ---- graphs ------------------------------------------------------------------------------------------------------


@each_case
def test_graph_of_inference(case: Case, card: str, cuda_way: str) -> None:
    """Captured once, replayed on other inputs."""
    module, x = module_and_input(case, card)
    inputs = [x.clone(), torch.randn_like(x)]
    with torch.inference_mode():
        wanted = [module(x)[0].clone() for x in inputs]
        static = x.clone()
        on_side_stream(lambda: module(static))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = module(static)[0]
        for given, result in zip(inputs * 2, wanted * 2, strict=True):
            static.copy_(given)
            graph.replay()
            assert_equal([output], [result])


@each_case
def test_graph_of_a_training_step(case: Case, card: str, cuda_way: str) -> None:
    """Forward, backward and the optimizer's step in one graph: five replays are five steps."""
    ours, x = module_and_input(case, card)
    eager = cases.build(case, lstm_fused, case.dtype).to(card)
    eager.load_state_dict(ours.state_dict())
    start = {name: value.clone() for name, value in ours.state_dict().items()}
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        training_step(ours, x)
        optimizer.step()

    on_side_stream(step)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        step()
    with torch.no_grad():
        for name, value in ours.state_dict().items():
            value.copy_(start[name])
    other = torch.optim.SGD(eager.parameters(), lr=0.01)
    for _ in range(5):
        graph.replay()
        other.zero_grad()
        training_step(eager, x)
        other.step()
    assert_equal([p.detach() for p in ours.parameters()], [p.detach() for p in eager.parameters()])


# ---- no waiting --------------------------------------------------------------------------------------------------


@each_case
def test_nothing_waits_for_the_device(case: Case, card: str, cuda_way: str) -> None:
    """Neither forward nor backward of a padded batch makes the host wait."""
    module, x = module_and_input(case, card)
    training_step(module, x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        training_step(module, x)
        with torch.inference_mode():
            module(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@CELLS
def test_a_packed_batch_does_not_wait(cell: str, card: str) -> None:
    """Its batch sizes are on the host already."""
    module, x = module_and_input(Case(cell, T=9, B=4, I=5, H=33), card)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([9, 7, 7, 1]))
    module(packed)[0].data.sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        module(packed)[0].data.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- memory ------------------------------------------------------------------------------------------------------

MEMORY = [case for case in test_limits.MEMORY if not case.proj]


@pytest.mark.parametrize("case", MEMORY, ids=lambda c: c.id)
def test_saved_tensors(case: Case, device: str) -> None:
    """Autograd holds the inputs, the output, gates and cells, and no other storage: as on the CPU."""
    test_limits.check_saved_tensors(raw.arguments(case, device=device), case)


@each_case
def test_memory_does_not_grow(case: Case, card: str, cuda_way: str) -> None:
    """After some steps the allocator holds what it held after the first; inference leaves its results alone."""
    module, x = module_and_input(case, card)

    def held(call: Callable[[], Any], times: int) -> int:
        for _ in range(times):
            call()
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    def train() -> None:
        module.zero_grad()
        training_step(module, x)

    assert held(train, 2) == held(train, 20)
    with torch.inference_mode():
        before, output = held(lambda: module(x), 2), module(x)
        size = sum(t.numel() * t.element_size() for t in (output[0], *output[1]))
        assert torch.cuda.memory_allocated() - before <= size + 4 * 512  # the allocator rounds to 512 bytes


@CELLS
def test_peak_of_inference(cell: str, card: str) -> None:
    """Without a graph, beside the output there is room for what one direction would save and its h, and little else."""
    case = Case(cell, T=400, B=64, I=64, H=128, bidirectional=True)
    module, x = module_and_input(case, card)
    with torch.inference_mode():
        module(x)
        gc.collect()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        module(x)
        peak = torch.cuda.max_memory_allocated() - before
    unit = case.T * case.B * case.H * case.dtype.itemsize
    assert peak <= (case.D + 5) * unit * 1.1 + 2**20, (peak, unit)


# ---- long sequences ----------------------------------------------------------------------------------------------


@CELLS
def test_seventy_thousand_steps(cell: str, device: str, cuda_plan: str) -> None:
    """T past 65,535, which no dimension of a grid may be; on the emulated device fewer, since each takes its time."""
    case = Case(cell, T=2_000 if device == "cpu" else 70_000, B=1, I=1, H=3, dtype=torch.float64)
    ours = cases.run_module(case, 0, lstm_fused, device=device)
    wanted = long_reference(case)
    for name, value in wanted.items():
        terms = case.T if name.startswith(("d_weight", "d_bias")) else 1
        assert tolerances.close(ours[name], value, torch.float64, terms=terms), name


LONG: dict[Case, cases.Results] = {}


def long_reference(case: Case) -> cases.Results:
    """The oracle takes a while: once for all plans."""
    if case not in LONG:
        LONG[case] = cases.run_oracle(case, 0, oracles.FLOAT64)
    return LONG[case]


@CELLS
def test_seventy_thousand_rows(cell: str, card: str, cuda_way: str) -> None:
    """And B past 65,535: rows far apart give what they give in a small batch."""
    module, x = module_and_input(Case(cell, T=3, B=70_000, I=4, H=5, dtype=torch.float64), card)
    output = module(x)[0]
    for part in (slice(0, 40), slice(65_500, 65_600), slice(69_990, 70_000)):
        assert (module(x[:, part])[0] - output[:, part]).abs().max() < 1e-13


# ---- other devices -----------------------------------------------------------------------------------------------


@each_case
def test_a_second_device(case: Case, card: str, cuda_way: str) -> None:
    """A layer runs where its tensors are, not on the device that is current."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    module, x = module_and_input(case, card)
    wanted = [t.clone() for t in training_step(module, x)]
    module.zero_grad()
    found = training_step(module.to("cuda:1"), x.to("cuda:1"))
    assert torch.cuda.current_device() == 0 and all(t.device.index == 1 for t in found)
    for a, b in zip(found, wanted, strict=True):
        assert (a.to(card) - b).abs().max() <= 8 * tolerances.eps(case.dtype) * b.abs().max()


@CELLS
def test_kernels_are_the_packages_own(cell: str, card: str) -> None:
    """The recurrence runs in this package's kernels, and not in cuDNN's."""
    module, x = module_and_input(Case(cell, T=9, B=4, I=5, H=33), card)
    training_step(module, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            training_step(module, x)
            torch.cuda.synchronize()
    names = [event.key for event in profiler.key_averages()]
    assert any("lstm_fused" in name for name in names), names
    assert not any("cudnn" in name.lower() or "rnn" in name.lower() for name in names), names


def test_there_is_a_device_where_the_package_has_kernels() -> None:
    """Says in a log what all of this ran on."""
    if devices.why_none():
        pytest.skip(devices.why_none())
    print(devices.describe())
    assert emulated.running() or torch.cuda.is_available()
