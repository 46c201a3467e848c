"""Double backward, forward mode and batched incoming gradients: of any order, by every input, none dropped.

``gradcheck`` and ``gradgradcheck`` compare with finite differences; whole modules are compared with ``torch.nn``'s.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cases
import pytest
import raw
import tolerances
import torch
from cases import Case
from pairs import CELLS, F64, LAYERS, assert_close, packed, pair, states, tensors
from routes import Calls
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call

SMALL = Case(T=3, B=2, I=2, H=3, dtype=F64)
OPTIONS = [
    SMALL,
    replace(SMALL, T=1, B=1, I=1, H=1),
    replace(SMALL, hx=False, bias=False),
    replace(SMALL, bidirectional=True),
    replace(SMALL, layout="strided"),
    replace(SMALL, packed=True, T=4, B=3),
    replace(SMALL, packed=True, T=4, B=3, bidirectional=True, hx=False),
]
PROJECTIONS = [
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


@pytest.mark.parametrize("cell", cases.CELLS)
def test_each_tangent_alone(cell: str) -> None:
    """Tangents of one input at a time add up to the tangent of all, and none of them is zero."""
    a = raw.arguments(replace(SMALL, cell=cell, bidirectional=True), requires_grad=False)
    tangents = [torch.randn_like(t) for t in a.tensors]

    def push(chosen: set[int]) -> list[Tensor]:
        with forward_ad.dual_level():
            pairs = enumerate(zip(a.tensors, tangents, strict=True))
            duals = [forward_ad.make_dual(t, d) if k in chosen else t for k, (t, d) in pairs]
            results = [forward_ad.unpack_dual(r) for r in a.call(duals)]
        for r, plain in zip(results, a.call(), strict=True):
            assert torch.equal(r.primal, plain)
        return [r.tangent for r in results]

    total = push(set(range(len(tangents))))
    apart = [push({k}) for k in range(len(tangents))]
    assert all(output.any() for output, *_ in apart)
    for k, wanted in enumerate(total):
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


# ---- modules -----------------------------------------------------------------------------------------------------

T, B, I, H = 4, 3, 5, 7
MODULES: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in LAYERS + CELLS),
    *((kind, {"num_layers": 2, "bidirectional": True, "bias": False, "batch_first": True}) for kind in LAYERS),
    ("LSTM", {"num_layers": 2, "proj_size": 3}),
]


def arguments(kind: str, options: dict[str, Any]) -> tuple[Tensor, Any]:
    if kind in CELLS:
        return torch.randn(B, I, dtype=F64), states(kind, B, H=H)
    rows = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    x = torch.randn(*((B, T) if options.get("batch_first") else (T, B)), I, dtype=F64)
    return x, states(kind, rows, B, H=H, P=options.get("proj_size", 0))


def loss_of(results: Any) -> Tensor:
    return torch.stack([r.sin().sum() for r in tensors(results)]).sum()


@pytest.mark.parametrize(
    ("kind", "options", "form"),
    [(*m, "padded") for m in MODULES] + [(*m, "packed") for m in MODULES if m[0] in LAYERS],
)
def test_a_gradient_penalty(kind: str, options: dict[str, Any], form: str) -> None:
    """A training step whose loss holds the norm of the input's gradient: the gradients are torch.nn's."""
    ours, theirs = pair(kind, I, H, **options)
    x, hx = arguments(kind, options)
    data = packed(I, [2, T, 1]) if form == "packed" else x
    grads = []
    for module in (ours, theirs):
        leaf = (data.data if form == "packed" else x).clone().requires_grad_()
        loss = loss_of(module(data._replace(data=leaf) if form == "packed" else leaf, hx))
        (slope,) = torch.autograd.grad(loss, [leaf], create_graph=True)
        grads.append(torch.autograd.grad(loss + slope.norm() + (slope**3).sum(), [leaf, *module.parameters()]))
    for k, (mine, their) in enumerate(zip(*grads, strict=True)):
        assert_close(mine, their, f"gradient {k}")


@pytest.mark.parametrize(("kind", "options"), MODULES)
def test_functional_derivatives(kind: str, options: dict[str, Any]) -> None:
    """``torch.autograd.functional``, whose jvp is a double backward, by input; both ways to a Hessian."""
    ours, theirs = pair(kind, I, H, **options)
    x, hx = arguments(kind, options)
    f, g = (lambda x, m=m: loss_of(m(x, hx)) for m in (ours, theirs))
    functional = torch.autograd.functional
    wanted = functional.hessian(g, x)
    assert_close(functional.hessian(f, x), wanted)
    assert_close(functional.hessian(f, x, vectorize=True), wanted)
    over_reverse = functional.hessian(f, x, vectorize=True, outer_jacobian_strategy="forward-mode")
    assert_close(over_reverse.detach(), wanted)
    for name in ("jvp", "hvp", "vhp"):
        assert_close(getattr(functional, name)(f, x, x)[1], getattr(functional, name)(g, x, x)[1], name)


PLACES = ("input", "h0", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "last layer")


@pytest.mark.parametrize(
    ("kind", "where"),
    [(kind, where) for kind in LAYERS + CELLS for where in PLACES] + [("LSTM", "c0"), ("LSTMCell", "c0")],
)
def test_forward_mode_of_modules(kind: str, where: str) -> None:
    """A tangent wherever it may be, with and without gradients: torch.nn's tangents."""
    options: dict[str, Any] = {"num_layers": 2} if kind in LAYERS else {}
    ours, theirs = pair(kind, I, H, **options)
    x, hx = arguments(kind, options)
    given = [x, *tensors(hx)]
    names = [name for name, _ in ours.named_parameters()]
    at = {"input": 0, "h0": 1, "c0": 2}.get(where)
    name = names[-1] if where == "last layer" else next((n for n in names if n.startswith(where)), "")
    tangent = torch.randn_like(given[at] if at is not None else ours.get_parameter(name))

    def push(module: nn.Module) -> list[Tensor]:
        with forward_ad.dual_level():
            inputs, parameters = list(given), dict(module.named_parameters())
            if at is not None:
                inputs[at] = forward_ad.make_dual(inputs[at], tangent)
            else:
                parameters[name] = forward_ad.make_dual(parameters[name], tangent)
            state = tuple(inputs[1:]) if kind.startswith("LSTM") else inputs[1]
            results = tensors(functional_call(module, parameters, (inputs[0], state)))
            return [t for r in results if (t := forward_ad.unpack_dual(r).tangent) is not None]

    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            found, wanted = push(ours), push(theirs)
        assert len(found) == len(wanted) > 0
        assert any(t.any() for t in found)
        for mine, their in itertools.zip_longest(found, wanted):
            assert_close(mine.detach(), their.detach(), where)


@pytest.mark.parametrize("kind", LAYERS)
def test_double_backward_through_compile_is_torchs_error(kind: str) -> None:
    torch._dynamo.reset()
    ours, _ = pair(kind, I, H)
    x = torch.randn(T, B, I, dtype=F64, requires_grad=True)
    (dx,) = torch.autograd.grad(loss_of(torch.compile(ours, backend="aot_eager")(x)), [x], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        dx.sum().backward()


def test_compiled_autograd() -> None:
    """The first derivative is traced; the second, which runs the engine within the engine, is torch's own error."""
    from torch._dynamo import compiled_autograd

    ours, theirs = pair("LSTM", I, H)
    x = torch.randn(T, B, I, dtype=F64, requires_grad=True)
    (wanted,) = torch.autograd.grad(loss_of(theirs(x)), [x])
    loss = loss_of(ours(x))
    (dx,) = torch.autograd.grad(loss_of(ours(x)), [x], create_graph=True)
    with compiled_autograd._enable(lambda graph: torch.compile(graph, backend="eager")):
        loss.backward()
        assert x.grad is not None
        assert_close(x.grad, wanted)
        with pytest.raises(NotImplementedError, match="LayerBackwardBackward"):
            dx.sum().backward()
