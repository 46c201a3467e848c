"""Double backward, forward mode and batched incoming gradients: of any order, by every input, none dropped.

``gradcheck`` and ``gradgradcheck`` compare with finite differences; whole modules are compared with ``torch.nn``'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cases
import pytest
import raw
import tolerances
import torch
from cases import Case
from pairs import F64
from routes import Calls
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

SMALL = Case(T=3, B=2, I=2, H=3, dtype=F64)
OPTIONS = [
    SMALL,
    replace(SMALL, T=1, B=1, I=1, H=1),
    replace(SMALL, hx=False, bias=False),
    replace(SMALL, bidirectional=True),
    replace(SMALL, layout="strided"),
    replace(SMALL, packed=True, T=4, B=3),
    replace(SMALL, packed=True, T=4, B=3, bidirectional=True, hx=False),
    replace(SMALL, packed=True, padded=True, T=4, B=3, bidirectional=True),
    replace(SMALL, recompute=True, bidirectional=True),
]
PROJECTIONS = [
    replace(SMALL, cell_clip=0.3, kept=True),
    replace(SMALL, kept=True, recompute=True, bidirectional=True),
    replace(SMALL, proj=2),
    replace(SMALL, proj=2, packed=True, T=4, B=3, bidirectional=True, bias=False),
]
TABLE = [replace(c, cell=cell) for cell in cases.CELLS for c in OPTIONS] + PROJECTIONS
each_case = pytest.mark.parametrize("case", TABLE, ids=lambda c: c.id)


def function(a: raw.Arguments) -> Callable[..., tuple[Tensor, ...]]:
    return lambda *tensors: tuple(a.call(tensors))


# ---- against finite differences ----------------------------------------------------------------------------------


@each_case
def test_second_derivatives(case: Case) -> None:
    a = raw.arguments(case)
    assert gradgradcheck(function(a), tuple(a.tensors), fast_mode=case.T > 1)


WIDE = Case(T=4, B=9, I=5, H=35, dtype=F64)
SEVERAL_VECTORS = [
    WIDE,
    replace(WIDE, packed=True, bidirectional=True, hx=False),
    replace(WIDE, cell_clip=0.3, kept=True, bias=False),
    replace(WIDE, proj=17, packed=True, padded=True),
    replace(WIDE, cell="gru"),
    replace(WIDE, cell="gru", packed=True, padded=True, bidirectional=True, bias=False),
]


@pytest.mark.parametrize("case", SEVERAL_VECTORS, ids=lambda c: c.id)
def test_second_derivatives_of_several_vectors(case: Case, isa: str) -> None:
    a = raw.arguments(case)
    assert gradgradcheck(function(a), tuple(a.tensors), fast_mode=True)


@pytest.mark.parametrize("cell", cases.CELLS)
def test_second_derivatives_of_an_empty_batch(cell: str) -> None:
    a = raw.arguments(replace(SMALL, cell=cell, B=0, bidirectional=True))
    grads = torch.autograd.grad(a.call()[0].sum(), a.tensors, create_graph=True)
    found = torch.autograd.grad(sum((g * g).sum() for g in grads), a.tensors, allow_unused=True)
    assert not any(f.any() for f in found if f is not None)


CLIPPED = [replace(SMALL, cell=cell, grad_clip=0.1) for cell in cases.CELLS]


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [*(c for c in TABLE if c.H > 1), *SEVERAL_VECTORS, *CLIPPED], ids=lambda c: c.id)
def test_second_derivatives_by_either_way(case: Case, dtype: torch.dtype) -> None:
    """By dual numbers, or where a third may follow (or backward clips) by a graph of the first: they agree."""
    a = raw.arguments(replace(case, dtype=dtype))
    results = a.call()
    cotangents = [torch.randn_like(r).requires_grad_() for r in results]
    grads = torch.autograd.grad(results, a.tensors, cotangents, create_graph=True)
    seeds, sources = [torch.randn_like(g) for g in grads], [*a.tensors, *cotangents]
    by_graph = torch.autograd.grad(grads, sources, seeds, create_graph=True)
    by_dual_numbers = torch.autograd.grad(grads, sources, seeds)
    for mine, wanted in zip(by_dual_numbers, by_graph, strict=True):
        assert mine.dtype == wanted.dtype
        assert tolerances.close(mine.double().numpy(), wanted.detach().double().numpy(), dtype)


@each_case
def test_third_derivatives(case: Case) -> None:
    a = raw.arguments(case)

    def first(*tensors: Tensor) -> tuple[Tensor, ...]:
        results = a.call(tensors)
        return torch.autograd.grad(results, tensors, [r.sin() for r in results], create_graph=True)

    assert gradgradcheck(first, tuple(a.tensors), fast_mode=True)


@each_case
def test_forward_mode(case: Case) -> None:
    """Every element of the Jacobian, column by column from tangents; the tangents one by one and under vmap."""
    a = raw.arguments(case)
    options = {"check_backward_ad": False, "check_undefined_grad": False, "check_batched_forward_grad": True}
    assert gradcheck(function(a), tuple(a.tensors), check_forward_ad=True, **options)


@each_case
def test_forward_mode_over_reverse(case: Case) -> None:
    a = raw.arguments(case)
    over = {"check_fwd_over_rev": True, "check_rev_over_rev": False, "check_undefined_grad": False}
    assert gradgradcheck(function(a), tuple(a.tensors), fast_mode=case.T > 1, **over)


@each_case
def test_batched_incoming_gradients(case: Case) -> None:
    a = raw.arguments(case)
    assert gradcheck(function(a), tuple(a.tensors), check_batched_grad=True)
    if case.T == 1:
        assert gradgradcheck(function(a), tuple(a.tensors), check_batched_grad=True)


@pytest.mark.parametrize("cell", cases.CELLS)
def test_batches_of_batches_of_incoming_gradients(cell: str) -> None:
    """``is_grads_batched`` within the same vmap: both dimensions in some gradients, one of them or none in others."""
    a = raw.arguments(replace(SMALL, cell=cell))
    outputs = a.call()
    inner, outer = torch.randn(3, *outputs[0].shape, dtype=F64), torch.randn(2, dtype=F64)
    last = torch.randn(3, *outputs[1].shape, dtype=F64)

    def gradients(scale: Tensor) -> tuple[Tensor, ...]:
        cotangents = [inner * scale, last]
        return torch.autograd.grad(outputs[:2], a.tensors, cotangents, retain_graph=True, is_grads_batched=True)

    found = torch._vmap_internals._vmap(gradients)(outer)
    wanted = zip(*(gradients(scale) for scale in outer), strict=True)
    for mine, each in zip(found, wanted, strict=True):
        assert tolerances.close(mine.numpy(), torch.stack(each).numpy(), F64)
    pairs = zip(inner, last, strict=True)
    one_by_one = [torch.autograd.grad(outputs[:2], a.tensors, pair, retain_graph=True) for pair in pairs]
    for mine, each in zip(gradients(torch.ones((), dtype=F64)), zip(*one_by_one, strict=True), strict=True):
        assert tolerances.close(mine.numpy(), torch.stack(each).numpy(), F64)


@pytest.mark.parametrize("cell", cases.CELLS)
def test_a_step(cell: str) -> None:
    a = raw.arguments(replace(SMALL, cell=cell, T=1))
    given = [t.detach()[0].requires_grad_() for t in (a.input, *a.states)]

    def step(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        count = len(a.states)
        return tuple(torch.ops.lstm_fused.step(cell, x, rest[:count], rest[count:]))

    assert gradcheck(step, (*given, *a.weights), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(step, (*given, *a.weights), fast_mode=True, check_fwd_over_rev=True)


# ---- which derivatives are asked for -----------------------------------------------------------------------------


@each_case
def test_each_source_alone(case: Case) -> None:
    """Each input or incoming gradient the only one that takes a derivative: the same as when all do."""
    a = raw.arguments(case)
    outputs = a.call()
    values = [t.detach() for t in (*a.tensors, *(torch.randn_like(out) for out in outputs))]
    count = len(a.tensors)

    def second(sources: list[Tensor]) -> list[Tensor | None]:
        """Derivatives by ``sources`` of the sum of squares of all gradients."""
        leaves = [t.requires_grad_() for t in (s.view_as(s) for s in sources[:count])]
        grads = torch.autograd.grad(a.call(leaves), leaves, sources[count:], create_graph=True)
        wanted = [s for s in sources if s.is_leaf and s.requires_grad]
        found = iter(torch.autograd.grad(sum((g * g).sum() for g in grads), wanted))
        return [next(found) if s.requires_grad else None for s in sources]

    everything = second([v.clone().requires_grad_() for v in values])
    for k, wanted in enumerate(everything):
        alone = second([v.clone().requires_grad_(i == k) for i, v in enumerate(values)])
        assert wanted is not None and alone[k] is not None
        assert [i for i, d in enumerate(alone) if d is not None] == [k]
        assert wanted.any(), "a derivative that is zero would be no test"
        assert tolerances.close(alone[k].numpy(), wanted.numpy(), F64), k


@pytest.mark.parametrize("of", ["results", "gradients"])
@pytest.mark.parametrize("cell", cases.CELLS)
def test_each_tangent_alone(cell: str, of: str) -> None:
    """Tangents of one source at a time add up to the tangents of all, and none of them is zero."""
    a = raw.arguments(replace(SMALL, cell=cell, bidirectional=True))
    count = len(a.tensors)

    def results(sources: list[Tensor]) -> list[Tensor]:
        return a.call(sources)

    def gradients(sources: list[Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(a.call(sources[:count]), sources[:count], sources[count:]))

    function = results if of == "results" else gradients
    sources = [*a.tensors, *(torch.randn_like(r) for r in a.call())][: None if of == "gradients" else count]
    tangents = [torch.randn_like(t) for t in sources]

    def push(chosen: set[int]) -> list[Tensor]:
        """Tangents of the function's results, zero where there is none."""
        with forward_ad.dual_level():
            pairs = enumerate(zip(sources, tangents, strict=True))
            duals = [forward_ad.make_dual(t, d) if k in chosen else t for k, (t, d) in pairs]
            found = [forward_ad.unpack_dual(r) for r in function(duals)]
        for r, plain in zip(found, function(sources), strict=True):
            assert tolerances.close(r.primal.detach().numpy(), plain.detach().numpy(), F64)
        return [torch.zeros_like(r.primal) if r.tangent is None else r.tangent.detach() for r in found]

    everything = push(set(range(len(sources))))
    apart = [push({k}) for k in range(len(sources))]
    for k, found in enumerate(apart):
        assert any(t.any() for t in found), k
    for k, wanted in enumerate(everything):
        assert tolerances.close(sum(t[k] for t in apart).numpy(), wanted.numpy(), F64)


# ---- what runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", cases.CELLS)
def test_first_derivatives_stay_the_kernels(cell: str) -> None:
    """With create_graph=True, and in a dual level without tangents, the kernels run alone and give the same bits."""
    a = raw.arguments(Case(cell, T=3, B=2, I=4, H=5, dtype=F64))
    cotangents = [torch.randn_like(out).requires_grad_() for out in a.call()]
    with Calls() as plain:
        wanted = torch.autograd.grad(a.call(), a.tensors, cotangents)
    with Calls() as calls, forward_ad.dual_level():
        grads = torch.autograd.grad(a.call(), a.tensors, cotangents, create_graph=True)
        assert calls.fused == plain.fused == {"forward": 1, "backward": 1}
        assert calls.products == plain.products == 0
        torch.autograd.grad(grads[0].sum(), a.tensors)
    assert calls.fused == plain.fused and calls.products > 0
    assert all(torch.equal(x, y) for x, y in zip(grads, wanted, strict=True))


def test_the_graph_of_the_gradients_is_released_and_guarded() -> None:
    a = raw.arguments(SMALL)
    outputs = a.call()
    (dx,) = torch.autograd.grad(outputs, [a.input], outputs, create_graph=True)
    first, second = (torch.autograd.grad(dx.sum(), a.weights, retain_graph=retain)[0] for retain in (True, False))
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(dx.sum(), a.weights)
    (dx,) = torch.autograd.grad(a.call()[0].sum(), [a.input], create_graph=True)
    with torch.no_grad():
        a.weights[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified"):
        torch.autograd.grad(dx.sum(), a.weights)


def test_autocast_does_not_reach_into_the_derivatives() -> None:
    a = raw.arguments(replace(SMALL, dtype=torch.float32))

    def second() -> tuple[Tensor, ...]:
        (dx,) = torch.autograd.grad(a.call()[0].sum(), [a.input], create_graph=True)
        return torch.autograd.grad(dx, a.tensors, torch.ones_like(dx))

    wanted = second()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(x, y) for x, y in zip(second(), wanted, strict=True))
