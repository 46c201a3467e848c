"""What cannot be differentiated or batched yet raises: no tangent is dropped, no value is silently wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pairs import CELLS, F64, LAYERS, assert_close, pair, states, tensors
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, stack_module_state

T, B, I, H = 4, 3, 5, 7
KINDS = LAYERS + CELLS


def example(kind: str) -> Tensor:
    return torch.randn(*((B, I) if kind in CELLS else (T, B, I)), dtype=F64)


def loss_of(module: nn.Module) -> Callable[..., Tensor]:
    return lambda x: tensors(module(x))[0].sum()


# -- torch.func and forward mode: refused ------------------------------------------------

Transformed = Callable[[nn.Module, Tensor], Any]
TRANSFORMS: dict[str, Transformed] = {
    "grad": lambda m, x: torch.func.grad(loss_of(m))(x),
    "vjp": lambda m, x: torch.func.vjp(loss_of(m), x),
    "jvp": lambda m, x: torch.func.jvp(loss_of(m), (x,), (x,)),
    "jacrev": lambda m, x: torch.func.jacrev(loss_of(m))(x),
    "jacfwd": lambda m, x: torch.func.jacfwd(loss_of(m))(x),
    "hessian": lambda m, x: torch.func.hessian(loss_of(m))(x),
    "linearize": lambda m, x: torch.func.linearize(loss_of(m), x),
    "vmap": lambda m, x: torch.vmap(loss_of(m))(x.expand(2, *x.shape)),
    "vmap of grad": lambda m, x: torch.vmap(torch.func.grad(loss_of(m)))(x.expand(2, *x.shape)),
    "grad of weights": lambda m, x: torch.func.grad(lambda p: tensors(functional_call(m, p, (x,)))[0].sum())(
        dict(m.named_parameters())
    ),
    "jvp of weights": lambda m, x: torch.func.jvp(
        lambda p: tensors(functional_call(m, p, (x,)))[0],
        (dict(m.named_parameters()),),
        (dict(m.named_parameters()),),
    ),
    "vmap of weights": lambda m, x: torch.vmap(lambda p: functional_call(m, p, (x,)), randomness="different")(
        stack_module_state([m, copy.deepcopy(m)])[0]
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_func_transforms_are_refused(kind: str, transform: str) -> None:
    ours, _ = pair(kind, I, H)
    with pytest.raises(NotImplementedError, match=r"lstm_fused\.(lstm|gru).*(torch.func|forward-mode).*not supported"):
        TRANSFORMS[transform](ours, example(kind))


def dual(t: Tensor) -> Tensor:
    result: Tensor = forward_ad.make_dual(t.detach(), torch.randn_like(t))
    return result


@pytest.mark.parametrize(
    ("kind", "where"),
    [(kind, where) for kind in KINDS for where in ("input", "h0", "weight", "bias", "last layer")]
    + [("LSTM", "c0"), ("LSTMCell", "c0")],
)
def test_forward_mode_is_refused_wherever_the_tangent_is(kind: str, where: str) -> None:
    options: dict[str, Any] = {"num_layers": 2} if kind in LAYERS else {}
    ours, _ = pair(kind, I, H, **options)
    x, hx = example(kind), states(kind, *((B,) if kind in CELLS else (2, B)), H=H)
    parameters: dict[str, Tensor] = dict(ours.named_parameters())
    first, *_, last = parameters
    with forward_ad.dual_level():
        if where == "input":
            x = dual(x)
        elif where == "h0":
            hx = (dual(hx[0]), hx[1]) if kind.startswith("LSTM") else dual(hx)
        elif where == "c0":
            hx = (hx[0], dual(hx[1]))
        else:
            name = {"weight": first, "bias": first.replace("weight", "bias"), "last layer": last}[where]
            parameters[name] = dual(parameters[name])
        with pytest.raises(NotImplementedError, match=r"forward-mode differentiation.*not supported"):
            functional_call(ours, parameters, (x, hx))


@pytest.mark.parametrize("kind", KINDS)
def test_a_dual_level_without_tangents_changes_nothing(kind: str) -> None:
    ours, _ = pair(kind, I, H)
    x = example(kind)
    hx = states(kind, *((B,) if kind in CELLS else (1, B)), H=H)
    expected = tensors(ours(x, hx))
    with forward_ad.dual_level():
        for a, b in zip(tensors(ours(x, hx)), expected, strict=True):
            assert torch.equal(a, b)


def test_the_operator_itself_drops_no_tangent() -> None:
    """Calls beneath the wrappers are private, but must not be wrong either."""
    lstm = nn.LSTM(I, H, dtype=F64)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        torch.ops.lstm_fused.layer("lstm", dual(example("LSTM")), [], list(lstm.parameters()), None, False)
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.grad(
            lambda x: torch.ops.lstm_fused.layer("lstm", x, [], list(lstm.parameters()), None, False)[0].sum()
        )(example("LSTM"))


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_of_forward_mode_is_refused(kind: str) -> None:
    ours, _ = pair(kind, I, H)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.autograd.gradcheck(
            lambda x: tensors(ours(x))[0], (example(kind).requires_grad_(),), check_forward_ad=True
        )


# -- double backward: refused ------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_create_graph_gives_right_gradients_and_refuses_their_derivative(kind: str) -> None:
    ours, theirs = pair(kind, I, H)
    x, parameters = example(kind).requires_grad_(), list(ours.parameters())
    (dx,) = torch.autograd.grad(loss_of(ours)(x), [x], create_graph=True)
    (expected,) = torch.autograd.grad(loss_of(theirs)(x), [x])
    assert_close(dx.detach(), expected)
    with pytest.raises(RuntimeError, match="second derivative"):
        dx.square().sum().backward(retain_graph=True)
    for wanted in ([x], parameters[:1], parameters[-1:]):  # "unused" would pass for a derivative of zero
        with pytest.raises(RuntimeError, match="second derivative"):
            torch.autograd.grad(dx.square().sum(), wanted, allow_unused=True, retain_graph=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_derivative_by_the_incoming_gradient_is_refused(kind: str) -> None:
    ours, _ = pair(kind, I, H)
    x = example(kind).requires_grad_()
    output = tensors(ours(x))[0]
    cotangent = torch.randn_like(output, requires_grad=True)
    (dx,) = torch.autograd.grad(output, [x], cotangent, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(dx.sum(), [cotangent], allow_unused=True)


def test_a_gradient_penalty_is_refused() -> None:
    ours, _ = pair("LSTM", I, H)
    x = example("LSTM").requires_grad_()
    loss = loss_of(ours)(x)
    penalty = torch.autograd.grad(loss, [x], create_graph=True)[0].norm()
    with pytest.raises(RuntimeError, match="second derivative"):
        (loss + penalty).backward()


def test_functional_jvp_and_hessian_are_refused() -> None:
    ours, _ = pair("GRU", I, H)
    x = example("GRU")
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.functional.jvp(loss_of(ours), x, x)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.functional.hessian(loss_of(ours), x)


def test_batched_incoming_gradients() -> None:
    """is_grads_batched runs backward under vmap, without a rule for the operator: refused, or right."""
    ours, theirs = pair("LSTM", I, H)
    x = example("LSTM").requires_grad_()
    output = ours(x)[0]
    cotangents = torch.randn(2, *output.shape, dtype=F64)
    expected = [torch.autograd.grad(theirs(x)[0], [x], c)[0] for c in cotangents]
    try:
        (dx,) = torch.autograd.grad(output, [x], cotangents, is_grads_batched=True)
    except RuntimeError as error:
        assert str(error)  # noqa: PT017
    else:
        assert_close(dx, torch.stack(expected))


def test_a_jacobian_by_reverse_mode_works() -> None:
    ours, theirs = pair("LSTM", I, H)
    x = example("LSTM")
    jacobians = [torch.autograd.functional.jacobian(lambda x, m=m: m(x)[0][-1], x) for m in (ours, theirs)]
    assert_close(jacobians[0], jacobians[1])
