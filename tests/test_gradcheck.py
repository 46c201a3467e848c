"""``torch.autograd.gradcheck`` in float64: every cell, ISA, plan and layer option, and every subset of inputs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import cases
import pytest
import raw
import tolerances
import torch
from cases import Case
from torch import Tensor
from torch.autograd import gradcheck

import lstm_fused

F64 = torch.float64
SMALL = Case(T=3, B=2, I=2, H=3, dtype=F64)

# Slow mode compares every element of the Jacobian: small shapes, every option and the pairs that share code.
SLOW = [
    SMALL,
    replace(SMALL, T=1, B=1, I=1, H=1),
    replace(SMALL, hx=False),
    replace(SMALL, bias=False),
    replace(SMALL, bidirectional=True),
    replace(SMALL, bidirectional=True, bias=False, hx=False),
    replace(SMALL, packed=True, T=4, B=3),
    replace(SMALL, packed=True, T=4, B=3, bidirectional=True),
    replace(SMALL, packed=True, T=4, B=3, bias=False, hx=False),
    replace(SMALL, packed=True, padded=True, T=4, B=3),
    replace(SMALL, packed=True, padded=True, T=4, B=3, bidirectional=True),
    replace(SMALL, layout="strided"),
    replace(SMALL, recompute=True, packed=True, T=4, B=3, bidirectional=True),
]
SLOW_PROJECTIONS = [
    replace(SMALL, kept=True, recompute=True),
    replace(SMALL, kept=True, packed=True, T=4, B=3, bidirectional=True),
    replace(SMALL, cell_clip=0.3, kept=True),
    replace(SMALL, proj=2),
    replace(SMALL, proj=1, bidirectional=True, bias=False),
    replace(SMALL, proj=2, packed=True, T=4, B=3),
    replace(SMALL, proj=2, packed=True, padded=True, T=4, B=3, bidirectional=True),
    replace(SMALL, proj=2, packed=True, T=4, B=3, bidirectional=True, hx=False),
]
# Fast mode compares one random projection of the Jacobian: sizes of several vectors and register blocks, with tails.
WIDE = Case(T=4, B=5, I=6, H=9, dtype=F64)
FAST = [
    WIDE,
    replace(WIDE, B=1, H=33),
    replace(WIDE, B=17, H=33),
    replace(WIDE, B=17, H=33, bidirectional=True),
    replace(WIDE, B=17, H=33, packed=True, T=7),
    replace(WIDE, B=17, H=33, packed=True, T=7, bidirectional=True, bias=False),
    replace(WIDE, B=17, H=33, packed=True, padded=True, T=7, bidirectional=True),
    replace(WIDE, T=2, B=3, H=100),
    replace(WIDE, B=17, H=33, recompute=True, packed=True, bidirectional=True, hx=False),
]
FAST_PROJECTIONS = [
    replace(WIDE, B=17, H=33, kept=True, cell_clip=0.3, bidirectional=True),
    replace(WIDE, B=17, H=33, proj=10, recompute=True, packed=True, bidirectional=True),
    replace(WIDE, B=17, H=33, proj=10),
    replace(WIDE, B=17, H=33, proj=10, packed=True, bidirectional=True),
]


def for_cells(both: list[Case], projections: list[Case]) -> list[Case]:
    return [replace(c, cell=cell) for cell in cases.CELLS for c in both] + projections


@pytest.mark.parametrize("case", for_cells(SLOW, SLOW_PROJECTIONS), ids=lambda c: c.id)
def test_layer_every_element(case: Case, isa: str) -> None:
    a = raw.arguments(case)
    assert gradcheck(lambda *tensors: tuple(a.call(tensors)), tuple(a.tensors))


@pytest.mark.parametrize("case", for_cells(FAST, FAST_PROJECTIONS), ids=lambda c: c.id)
def test_layer_wide(case: Case, isa: str, plan: str) -> None:
    torch.set_num_threads(3)
    a = raw.arguments(case)
    assert gradcheck(lambda *tensors: tuple(a.call(tensors)), tuple(a.tensors), fast_mode=True)


STEPS = [
    SMALL,
    replace(SMALL, B=1, I=1, H=1),
    replace(SMALL, bias=False),
    replace(SMALL, hx=False),
    replace(WIDE, B=17, H=33),
]


@pytest.mark.parametrize("case", for_cells(STEPS, []), ids=lambda c: c.id)
def test_step(case: Case, isa: str) -> None:
    a = raw.arguments(replace(case, T=1))
    tensors = [t.detach()[0].requires_grad_() for t in (a.input, *a.states)]

    def step(*inputs: Tensor) -> tuple[Tensor, ...]:
        x, *rest = inputs
        states, weights = rest[: len(a.states)], rest[len(a.states) :]
        return tuple(torch.ops.lstm_fused.step(a.cell, x, states, weights))

    assert gradcheck(step, (*tensors, *a.weights), fast_mode=case.H > 3)


STACKS = [
    replace(SMALL, layers=2),
    replace(SMALL, layers=2, bidirectional=True, bias=False),
    replace(SMALL, layers=3, hx=False),
    replace(SMALL, layout="batch_first"),
]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", for_cells(STACKS, [replace(SMALL, layers=2, proj=2)]), ids=lambda c: c.id)
def test_module(case: Case, training: bool) -> None:
    """Whole modules: stacked layers, and backward in eval mode as in training mode."""
    module = cases.build(case, lstm_fused, F64).train(training)
    given = cases.data(case, 0).arrays
    x, h0, c0 = (torch.from_numpy(given[name].copy()).requires_grad_() for name in ("x", "h0", "c0"))
    x = x.detach().transpose(0, 1).requires_grad_() if case.layout == "batch_first" else x
    names = [name for name, _ in module.named_parameters()]

    def run(x: Tensor, h0: Tensor, c0: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        hx = ((h0, c0) if case.cell == "lstm" else h0) if case.hx else None
        output, state = torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x, hx))
        return (output, *state) if case.cell == "lstm" else (output, state)

    states = [
        s.requires_grad_(case.hx and (name == "h0" or case.cell == "lstm")) for name, s in (("h0", h0), ("c0", c0))
    ]
    assert gradcheck(run, (x, *states, *module.parameters()), fast_mode=True)


# ---- which gradients are asked for -------------------------------------------------------------------------------

SUBSETS = [
    Case(T=3, B=3, I=4, H=9, dtype=F64),
    Case(T=4, B=3, I=4, H=9, dtype=F64, packed=True),
    Case(T=4, B=3, I=4, H=9, dtype=F64, packed=True, padded=True, bidirectional=True),
]
SUBSETS_LSTM = [Case(T=3, B=3, I=4, H=9, dtype=F64, proj=5, bidirectional=True)]


def groups(a: raw.Arguments) -> list[list[int]]:
    """Positions of the tensors to switch together: a parameter of both directions is one group."""
    by_name: dict[str, list[int]] = {}
    for position, name in enumerate(a.names):
        by_name.setdefault(name.removesuffix("_reverse"), []).append(position)
    return list(by_name.values())


@pytest.mark.parametrize("case", for_cells(SUBSETS, SUBSETS_LSTM), ids=lambda c: c.id)
def test_every_subset_of_inputs(case: Case) -> None:
    """Each of the 2^n subsets requiring grad: the same gradients as when all do, and none for the others."""
    a = raw.arguments(case)
    cotangents = [torch.randn_like(out) for out in a.call()]
    everything = torch.autograd.grad(a.call(), a.tensors, cotangents)
    every = groups(a)
    for chosen in itertools.chain.from_iterable(itertools.combinations(every, n) for n in range(1, len(every) + 1)):
        positions = {position for group in chosen for position in group}
        tensors = [t.detach().requires_grad_(k in positions) for k, t in enumerate(a.tensors)]
        torch.autograd.backward(a.call(tensors), cotangents)
        for k, (name, tensor, wanted) in enumerate(zip(a.names, tensors, everything, strict=True)):
            if k in positions:
                assert tensor.grad is not None, name
                assert tolerances.close(tensor.grad.numpy(), wanted.numpy(), F64), name
            else:
                assert tensor.grad is None, name
    assert not any(out.requires_grad for out in a.call([t.detach() for t in a.tensors]))


@pytest.mark.parametrize("case", for_cells(SUBSETS, SUBSETS_LSTM), ids=lambda c: c.id)
def test_every_subset_of_outputs(case: Case, isa: str) -> None:
    """Gradients of any outputs alone add up to those of all: an output that is not used counts as zero, no more."""
    a = raw.arguments(case)
    outputs = a.call()
    cotangents = [torch.randn_like(out) for out in outputs]
    alone = [
        torch.autograd.grad([out], a.tensors, [cotangent], retain_graph=True)
        for out, cotangent in zip(outputs, cotangents, strict=True)
    ]
    for n in range(1, len(outputs) + 1):
        for chosen in itertools.combinations(range(len(outputs)), n):
            used = [outputs[k] for k in chosen], a.tensors, [cotangents[k] for k in chosen]
            together = torch.autograd.grad(*used, retain_graph=True)
            for position, name in enumerate(a.names):
                total = sum((alone[k][position] for k in chosen), torch.zeros(()))
                assert tolerances.close(together[position].numpy(), total.numpy(), F64), (name, chosen)


@pytest.mark.parametrize("case", for_cells(SUBSETS, SUBSETS_LSTM), ids=lambda c: c.id)
def test_backward_leaves_what_it_saved(case: Case, isa: str, plan: str) -> None:
    """A graph that is kept gives the same bits again; one that is not, torch's own error."""
    a = raw.arguments(case)
    outputs = a.call()
    cotangents = [torch.randn_like(out) for out in outputs]
    kept = [cotangent.clone() for cotangent in cotangents]
    first = torch.autograd.grad(outputs, a.tensors, cotangents, retain_graph=True)
    second = torch.autograd.grad(outputs, a.tensors, cotangents)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(cotangents, kept, strict=True)), "backward wrote into its input"
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(outputs, a.tensors, cotangents)


@pytest.mark.parametrize("cell", cases.CELLS)
def test_cotangents_of_any_layout(cell: str, isa: str) -> None:
    """Gradients that arrive expanded (from ``sum``) or transposed are read by their strides."""
    a = raw.arguments(Case(cell, T=3, B=4, I=5, H=9, dtype=F64, bidirectional=True))
    outputs = a.call()
    dense = [torch.randn_like(out) for out in outputs]
    wanted = torch.autograd.grad(outputs, a.tensors, dense, retain_graph=True)
    strided = torch.autograd.grad(outputs, a.tensors, [cases.as_strided(d) for d in dense], retain_graph=True)
    assert all(torch.equal(x, y) for x, y in zip(wanted, strided, strict=True))
    ones = [torch.ones_like(out) for out in outputs]
    wanted = torch.autograd.grad(outputs, a.tensors, ones, retain_graph=True)
    expanded = torch.autograd.grad(outputs, a.tensors, [o.new_ones(()).expand_as(o) for o in outputs])
    assert all(torch.equal(x, y) for x, y in zip(wanted, expanded, strict=True))


@pytest.mark.parametrize("cell", cases.CELLS)
def test_saved_tensors_are_guarded(cell: str) -> None:
    """Writing into what backward needs is torch's own error, never a wrong gradient."""
    a = raw.arguments(Case(cell, T=3, B=2, I=4, H=5, dtype=F64))
    for k, name in enumerate(a.names):
        if name.startswith("bias"):
            continue  # no gradient depends on the biases' values
        a = raw.arguments(Case(cell, T=3, B=2, I=4, H=5, dtype=F64))
        output = a.call()[0]
        with torch.no_grad():
            a.tensors[k].mul_(2)
        with pytest.raises(RuntimeError, match="modified"):
            output.sum().backward()
    a = raw.arguments(Case(cell, T=3, B=2, I=4, H=5, dtype=F64))
    output = a.call()[0]
    with torch.no_grad():
        output.mul_(2)
    with pytest.raises(RuntimeError, match="modified"):
        output.sum().backward()
