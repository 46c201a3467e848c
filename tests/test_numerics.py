"""The activations over the whole range of floats, and Inf and NaN.

``return_gates`` shows them as the kernels compute them: with W the identity and no U, the gates of one step are
``sigmoid`` and ``tanh`` of the input itself.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pairs import LAYERS, pair, states, tensors
from torch import Tensor

import lstm_fused
from lstm_fused import runtime

each_isa = pytest.mark.parametrize("isa", runtime.available_isas(), indirect=True)
Array = npt.NDArray[Any]

# In units in the last place; docs/numerics.md says the same.
SIGMOID_ULP, TANH_ULP = 2.49, 2.53
WIDTH = 16


def activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """sigmoid and tanh of x [n * WIDTH]; values that are not finite only with a WIDTH of 1: they would meet zeros."""
    width = WIDTH if x.isfinite().all() else 1
    layer = lstm_fused.LSTM(width, width, bias=False, dtype=x.dtype)
    with torch.no_grad():
        layer.weight_ih_l0.copy_(torch.eye(width).repeat(4, 1))
        layer.weight_hh_l0.zero_()
        _, _, (gates,) = layer(x.view(1, -1, width), return_gates=True)
    return gates[0, :, 0, 0].reshape(-1), gates[0, :, 0, 2].reshape(-1)


def exact(x: Array) -> tuple[Array, Array]:
    """The same, a precision higher."""
    x = x.astype(np.float64 if x.dtype == np.float32 else np.longdouble)
    small = np.exp(-abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small)), np.tanh(x)


def check(x: Tensor) -> None:
    limits = np.finfo(x.numpy().dtype)
    for found, wanted, most in zip(activations(x), exact(x.numpy()), (SIGMOID_ULP, TANH_ULP), strict=True):
        error = abs(found.numpy().astype(wanted.dtype) - wanted)
        _, exponent = np.frexp(wanted)
        ulp = np.ldexp(wanted.dtype.type(1), np.maximum(exponent - 1, limits.minexp) - limits.nmant)
        normal = abs(wanted) >= 2 * limits.tiny  # below, results may be flushed to zero
        worst = np.argmax(np.where(normal, error / ulp, 0))
        assert (error / ulp)[worst] <= most, (x[worst], found[worst], wanted[worst])
        assert error[~normal].max(initial=0) <= 2 * limits.tiny


def both_signs(bits: Tensor, dtype: torch.dtype) -> Tensor:
    x = bits.to(torch.int32 if dtype == torch.float32 else torch.int64).view(dtype)
    x = torch.cat([x, -x])
    return x[: len(x) // WIDTH * WIDTH]


@each_isa
def test_activations_of_every_size(isa: str) -> None:
    """One in two thousand of all floats; random doubles, most of them where something happens."""
    check(both_signs(torch.arange(0, 0x7F800000, 2039), torch.float32))
    generator = torch.Generator().manual_seed(0)
    everywhere = torch.randint(0, 0x7FF0000000000000, (100_000,), generator=generator)
    moderate = torch.randint(0x3E00000000000000, 0x4090000000000000, (400_000,), generator=generator)
    check(both_signs(torch.cat([everywhere, moderate]), torch.float64))


@pytest.mark.skipif("LSTM_FUSED_EVERY_FLOAT" not in os.environ, reason="minutes; LSTM_FUSED_EVERY_FLOAT=1 asks for it")
@pytest.mark.timeout(3600)
@each_isa
def test_activations_of_every_float(isa: str) -> None:
    """From 2^-30, below which tanh(x) = x and sigmoid(x) = 1/2, to 128, above which both are constant."""
    for exponent in range(127 - 30, 127 + 7):
        check(both_signs(torch.arange(exponent << 23, (exponent + 1) << 23), torch.float32))


@each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activations_at_the_ends(isa: str, dtype: torch.dtype) -> None:
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([inf, -inf, nan, 0.0, 1e30, -1e30], dtype=dtype)
    sigmoid, tanh = activations(x)
    assert torch.equal(sigmoid.nan_to_num(7), torch.tensor([1, 0, 7, 0.5, 1, 0], dtype=dtype))
    assert torch.equal(tanh.nan_to_num(7), torch.tensor([1, -1, 7, 0, 1, -1], dtype=dtype))


def patterns(results: list[Tensor]) -> list[Tensor]:
    return [torch.stack([r.isnan(), r == float("inf"), r == -float("inf")]) for r in results]


@each_isa
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("where", ["input", "h0", "c0", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "gradient"])
@pytest.mark.parametrize("kind", LAYERS)
def test_inf_and_nan_go_where_torchs_go(kind: str, where: str, value: float, isa: str) -> None:
    """One such number somewhere: Inf and NaN at the same places of every result and gradient, the others equal."""
    if where == "c0" and kind == "GRU":
        pytest.skip("a GRU has no c0")
    T, B, I, H = 4, 3, 5, 19
    found = []
    for module in pair(kind, I, H):
        torch.manual_seed(0)
        x, hx = torch.randn(T, B, I, dtype=torch.float64), tensors(states(kind, 1, B, H=H))
        given = {"input": x, **dict(zip(("h0", "c0"), hx, strict=False)), **dict(module.named_parameters())}
        gradient = torch.randn(T, B, H, dtype=torch.float64)
        with torch.no_grad():
            target = gradient if where == "gradient" else given[where]
            target.view(-1)[target.numel() // 2] = value
        leaves = [x.requires_grad_(), *(s.requires_grad_() for s in hx)]
        output, final = module(x, tuple(hx) if len(hx) == 2 else hx[0])
        grads = torch.autograd.grad(output, [*leaves, *module.parameters()], gradient)
        found.append([t.detach() for t in (output, *tensors(final), *grads)])
    ours, theirs = found
    for a, b, c, d in zip(patterns(ours), patterns(theirs), ours, theirs, strict=True):
        assert torch.equal(a, b)
        finite = d.isfinite()
        assert torch.allclose(c[finite], d[finite], rtol=1e-10, atol=1e-12)
