"""Long sequences, huge strides, tiny numbers, and the memory held between forward and backward."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cases
import numpy as np
import oracles
import pytest
import raw
import tolerances
import torch
from cases import Case
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import lstm_fused

CELLS = pytest.mark.parametrize("cell", cases.CELLS)

# ---- time --------------------------------------------------------------------------------------------------------


@CELLS
def test_seventy_thousand_steps(cell: str) -> None:
    """T past 65,535, forward and backward, against the oracle."""
    case = Case(cell, T=70_000, B=1, I=1, H=3, dtype=torch.float64)
    ours = cases.run_module(case, 0, lstm_fused)
    wanted = cases.run_oracle(case, 0, oracles.FLOAT64)
    for name, value in wanted.items():
        terms = case.T if name.startswith(("d_weight", "d_bias")) else 1
        assert tolerances.close(ours[name], value, torch.float64, terms=terms), name


@CELLS
@pytest.mark.parametrize(("packed", "plan"), [(False, "units"), (True, "rows")], indirect=["plan"])
def test_seventy_thousand_steps_in_parts(cell: str, packed: bool, plan: str) -> None:
    """The same length in one run and in seven that hand on their state: the same bits, and the same gradients."""
    case = Case(cell, T=70_000, B=2, I=2, H=20, dtype=torch.float64)
    a = raw.arguments(case)
    whole = a if not packed else flat(a)
    outputs, parts, states = whole.call(), [], a.states
    for chunk in a.input.split(10_000):
        part, *states = replace(a, input=chunk, states=states).call()
        parts.append(part)
    joined = [torch.cat(parts), *states]
    outputs[0] = outputs[0].reshape(joined[0].shape)
    assert all(torch.equal(x, y) for x, y in zip(outputs, joined, strict=True))
    generator = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(out.shape, dtype=out.dtype, generator=generator) for out in joined]
    ours = torch.autograd.grad(outputs, a.tensors, cotangents)
    wanted = torch.autograd.grad(joined, a.tensors, cotangents)
    for name, x, y in zip(a.names, ours, wanted, strict=True):
        assert tolerances.close(x.numpy(), y.numpy(), torch.float64, terms=case.T * case.B), name


def flat(a: raw.Arguments) -> raw.Arguments:
    """Padded arguments as packed data in which every row has the full length."""
    T, B, _ = a.input.shape
    return replace(a, input=a.input.flatten(0, 1), batch_sizes=torch.full((T,), B))


# ---- weights -----------------------------------------------------------------------------------------------------


@CELLS
@pytest.mark.parametrize("B", [1, 3, 9])
@pytest.mark.parametrize("plan", ["rows", "units"], indirect=True)
def test_weights_beyond_a_cache(cell: str, B: int, plan: str, isa: str) -> None:
    """Every other step reads their panels backwards, of which the last is not whole: against the oracle."""
    case = Case(cell, T=4, B=B, I=2, H=283, dtype=torch.float64)
    ours = cases.run_module(case, 0, lstm_fused)
    wanted = cases.run_oracle(case, 0, oracles.FLOAT64)
    for name, value in wanted.items():
        terms = case.T * B if name.startswith(("d_weight", "d_bias")) else case.H
        assert tolerances.close(ours[name], value, torch.float64, terms=terms), name


# ---- addresses ---------------------------------------------------------------------------------------------------

FAR = 2**31 + 64  # elements: past what 32 bits can count, signed


def far_apart(values: Tensor) -> Tensor:
    """The same values with more than 2^31 elements between the first and the last along the first dimension.

    The allocation takes 4 GiB of addresses in a 16-bit type, of which only the pages that hold values become memory.
    """
    n, *rest = values.shape
    if n == 1:
        return values
    stride = FAR // (n - 1)
    storage = torch.empty((n - 1) * stride + values[0].numel(), dtype=values.dtype)
    return storage.as_strided((n, *rest), (stride, *torch.empty(rest).stride())).copy_(values)


def results(a: raw.Arguments, tensors: list[Tensor], far: bool) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    outputs = a.call(leaves)
    generator = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(out.shape, generator=generator).to(out.dtype) for out in outputs]
    given = [far_apart(c) for c in cotangents] if far else cotangents
    return [out.detach() for out in outputs], torch.autograd.grad(outputs, leaves, given)


@pytest.mark.skipif(
    os.environ.get("LSTM_FUSED_TEST_LARGE") != "1",
    reason="takes 20 GiB of memory and two minutes; LSTM_FUSED_TEST_LARGE=1 runs it",
)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@CELLS
def test_gates_past_two_to_the_31(cell: str, packed: bool) -> None:
    """Saved gates and their gradients of more than 2^31 elements: a long sequence against parts of itself."""
    H = 16
    T = 2**31 // (4 * H) + 5000
    a = raw.arguments(Case(cell, T=1, B=1, I=1, H=H, dtype=torch.bfloat16))
    for tensor in (*a.states, *a.weights):
        tensor.requires_grad_(False)
    x = (torch.randint(-16, 17, (T, 1, 1), generator=torch.Generator().manual_seed(0)) / 8).bfloat16()
    long = replace(a, input=x.requires_grad_())
    whole = flat(long) if packed else long
    whole = replace(whole, input=whole.input.detach().requires_grad_())
    outputs = whole.call()

    # Forward: parts of 2^20 steps, which hand on their state in float32 precision only through h: 16-bit states would
    # round c, so each part starts from zero states far enough back for them to have been forgotten.
    warm_up, part = 2000, 2**20
    output = outputs[0].detach().view(T, 1, H)
    with torch.no_grad():
        for begin in (0, T // 2, T - part):
            first = max(begin - warm_up, 0)
            states = a.states if first == 0 else [torch.zeros_like(s) for s in a.states]
            wanted = replace(a, input=x.detach()[first : begin + part], states=states).call()[0]
            assert torch.equal(output[begin : begin + part], wanted[begin - first :])

    # Backward: from the last step alone, whose gradient fades within a few hundred steps, and from the first.
    d_output = torch.zeros_like(outputs[0])
    d_output.view(T, H)[[0, -1]] = 1
    (d_x,) = torch.autograd.grad(outputs[0], whole.input, d_output)
    d_x = d_x.view(T)
    tail = x.detach()[-2 * warm_up :].requires_grad_()
    last = replace(a, input=tail, states=[torch.zeros_like(s) for s in a.states]).call()[0]
    d_tail = torch.autograd.grad(last[-1].sum(), tail)[0].view(-1)
    assert d_tail[-1] != 0
    assert torch.equal(d_x[-warm_up:], d_tail[-warm_up:])
    head = x.detach()[:1].requires_grad_()
    (d_head,) = torch.autograd.grad(replace(a, input=head).call()[0].sum(), head)
    assert torch.equal(d_x[:1], d_head.view(-1))
    assert not d_x[1 : T - warm_up].abs().gt(1e-30).any()


# ---- tiny numbers ------------------------------------------------------------------------------------------------


def decaying(cell: str, dtype: torch.dtype) -> Case:
    return Case(cell, T=400 if dtype == torch.float32 else 2400, B=3, I=1, H=9, dtype=dtype, bias=False)


def decaying_arguments(case: Case) -> raw.Arguments:
    """Zero input and weights: f = o = z = 1/2 and g = n = 0, so that states halve at each step, down to nothing."""
    a = raw.arguments(case)
    with torch.no_grad():
        a.input.zero_()
        for w in a.weights:
            w.zero_()
    return a


@CELLS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=cases.short)
@pytest.mark.parametrize("flush", [False, True], ids=["", "flush_denormal"])
def test_decaying_states(cell: str, dtype: torch.dtype, flush: bool, isa: str) -> None:
    """States that decay through the subnormal range are right to the last normal number, and zero or right below it."""
    a = decaying_arguments(decaying(cell, dtype))
    try:
        torch.set_flush_denormal(flush)
        outputs = a.call()
        d_h0 = torch.autograd.grad(outputs[0][-1].sum() + outputs[0][100].sum(), a.states[-1])[0]
    finally:
        torch.set_flush_denormal(False)
    T = a.input.shape[0]
    halved = torch.ldexp(torch.ones(T, dtype=torch.float64), -torch.arange(1, T + 1))[:, None, None]
    state = a.states[-1].detach().double() * halved  # c_t, or h_t of a GRU
    wanted = torch.tanh(state) / 2 if cell == "lstm" else state
    smallest = torch.finfo(dtype).tiny
    error = (outputs[0].detach().double() - wanted).abs()
    # T halvings by a rounded 1/2 are exact; what may differ is tanh, and anything below the smallest normal number.
    assert (error <= 64 * torch.finfo(dtype).eps * wanted.abs() + 2 * smallest).all()
    assert d_h0.isfinite().all()
    assert d_h0.any()


@CELLS
def test_caller_keeps_its_subnormals(cell: str, plan: str) -> None:
    """Kernels may flush subnormals inside; afterwards every thread of the caller computes with them as before."""
    torch.set_num_threads(4)
    a = raw.arguments(Case(cell, T=20, B=16, I=4, H=64))
    for call in (lambda: a.call(), lambda: a.call()[0].sum().backward()):
        call()
        tiny = torch.full((1 << 20,), 1e-40)  # large enough for all of the pool's threads
        assert ((tiny * 0.5).view(torch.int32) == int(torch.tensor(1e-40 * 0.5).view(torch.int32))).all()
        assert (tiny * 0.5).view(torch.int32).all()
        assert float(np.float32(1e-40) * np.float32(0.5)) > 0


# ---- memory ------------------------------------------------------------------------------------------------------

MEMORY = [
    Case("lstm", T=50, B=8, I=16, H=64),
    Case("lstm", T=50, B=8, I=16, H=64, dtype=torch.float64, bidirectional=True),
    Case("lstm", T=50, B=8, I=16, H=64, dtype=torch.bfloat16),
    Case("lstm", T=50, B=8, I=16, H=64, proj=20),
    Case("lstm", T=50, B=8, I=16, H=64, packed=True),
    Case("gru", T=50, B=8, I=16, H=64),
    Case("gru", T=50, B=8, I=16, H=64, dtype=torch.bfloat16, bidirectional=True),
    Case("gru", T=50, B=8, I=16, H=64, packed=True),
]


def allowed_bytes(case: Case, rows: int) -> dict[str, int]:
    """What DESIGN.md lets a layer keep for backward, in bytes: 4 values a unit in the input's dtype, the cells, h."""
    size = case.dtype.itemsize
    cell_size = max(size, 4)  # cells of the 16-bit types stay float32
    return {
        "gates": case.D * rows * 4 * case.H * size,  # i f g o, or r z n and U_n h + b_hn
        "cells": case.D * rows * case.H * cell_size if case.cell == "lstm" else 0,
        "output": case.D * rows * case.P * size,
        "final states": case.D * case.B * (case.P + (case.H if case.cell == "lstm" else 0)) * size,
    }


class Saved:
    """Storages that autograd packs during a forward, by address."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.bytes[storage.data_ptr()] = storage.nbytes()
        return tensor


def check_saved_tensors(a: raw.Arguments, case: Case) -> None:
    """Between forward and backward autograd holds the inputs, the output, gates and cells, and no other storage."""
    saved = Saved()
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        outputs = a.call()
    given = {t.untyped_storage().data_ptr() for t in a.tensors}
    if a.batch_sizes is not None:
        given.add(a.batch_sizes.untyped_storage().data_ptr())
    own = {address: n for address, n in saved.bytes.items() if address not in given}
    allowed = allowed_bytes(case, outputs[0].numel() // (case.D * case.P))
    assert sum(own.values()) == allowed["gates"] + allowed["cells"] + allowed["output"], (own, allowed)


@pytest.mark.parametrize("case", MEMORY, ids=lambda c: c.id)
def test_saved_tensors(case: Case) -> None:
    check_saved_tensors(raw.arguments(case), case)


@pytest.mark.parametrize("case", MEMORY, ids=lambda c: c.id)
def test_held_memory(case: Case) -> None:
    """What a forward leaves allocated, whoever holds it, is its results and what it may save."""
    a = raw.arguments(case)
    allowed = allowed_bytes(case, a.input.numel() // case.I)
    held, outputs = allocated_by(a.call)
    total = sum(allowed.values())
    assert total <= held <= total * 1.01 + 4096, (held, allowed)  # small tensors are rounded up
    del outputs
    with torch.no_grad():
        held, _outputs = allocated_by(a.call)  # results that are not kept would be freed, and not counted
    total = allowed["output"] + allowed["final states"]
    assert total <= held <= total * 1.01 + 4096, (held, allowed)


def allocated_by(call: Any) -> tuple[int, Any]:
    """Bytes that ``call`` allocates and does not free, and what it returns."""
    call()  # whatever is allocated once and for all
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    return sum(e.self_cpu_memory_usage for e in profiler.key_averages()), result


@pytest.mark.parametrize("case", MEMORY[:1] + MEMORY[5:6], ids=lambda c: c.id)
def test_graph_frees_what_it_saved(case: Case) -> None:
    """After backward, or when its outputs are gone, a graph holds nothing."""
    a = raw.arguments(case)

    def train() -> None:
        a.call()[0].sum().backward()

    train()  # the gradients themselves are kept from here on
    held, _ = allocated_by(train)
    assert held <= 4096, held
    held, _ = allocated_by(lambda: a.call() and None)
    assert held <= 4096, held


def test_profiler_counts() -> None:
    """The measure itself: it sees a tensor that is kept, and does not count one that is freed."""

    def kept_and_freed() -> Iterator[Tensor]:
        torch.ones(1000, 1000)
        return iter([torch.ones(1000, 500)])

    held, _ = allocated_by(kept_and_freed)
    assert held == 1000 * 500 * 4
