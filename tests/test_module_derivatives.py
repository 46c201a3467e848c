"""Higher derivatives and forward mode of whole modules, with every option, against ``torch.nn``'s in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pairs import CELLS, F64, LAYERS, assert_close, packed, pair, states, tensors
from torch import Tensor, nn
from torch._dynamo import compiled_autograd
from torch.autograd import forward_ad
from torch.func import functional_call

T, B, I, H = 3, 2, 4, 5
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
    data = packed(I, [2, T]) if form == "packed" else x
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
        for mine, their in zip(found, wanted, strict=True):
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
