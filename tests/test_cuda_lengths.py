"""``lengths`` whose values stay on the device, beside the same lengths on the host."""

from __future__ import annotations

import itertools
from typing import Any

import emulated
import pytest
import torch
from torch import Tensor

import lstm_fused
from lstm_fused import _stack

pytestmark = pytest.mark.skipif(not emulated.running(), reason="runs where the CUDA backend does")
T, B, I, H = 6, 5, 3, 8
LENGTHS = torch.tensor([3, 0, 6, 1, 3])
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *itertools.product(
        ("LSTM", "GRU"),
        (
            {},
            {"bidirectional": True, "num_layers": 2},
            {"recompute": True, "bidirectional": True},
            {"batch_first": True},
        ),
    ),
    ("LSTM", {"proj_size": 5, "bidirectional": True, "num_layers": 2}),
    ("LSTM", {"proj_size": 3, "recompute": True}),
]


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors stand for those of a device."""
    monkeypatch.setattr(_stack, "stays_on_device", lambda lengths: True)


def run(layer: Any, x: Tensor, hx: Any, lengths: Tensor) -> list[Tensor]:
    """Results, and gradients with regard to everything."""
    states = [] if hx is None else [hx] if isinstance(hx, Tensor) else list(hx)
    given = [t.requires_grad_() for t in (x, *states)]
    output, final = layer(x, hx, lengths=lengths)
    results = [output, *([final] if isinstance(final, Tensor) else final)]
    wanted = [*given, *layer.parameters()]
    return [*results, *torch.autograd.grad(results, wanted, [r.detach().cos() for r in results])]


@pytest.mark.parametrize("with_hx", [True, False])
@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=str)
def test_as_on_the_host(
    kind: str, options: dict[str, Any], with_hx: bool, plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs, final states and gradients, with NaN in the padding; a row without a step ends as it began."""
    assert plan
    layer = getattr(lstm_fused, kind)(I, H, dtype=torch.float64, **options)
    batch_first = bool(options.get("batch_first"))
    x = torch.randn(T, B, I, dtype=torch.float64).masked_fill(
        (torch.arange(T)[:, None] >= LENGTHS)[..., None], torch.nan
    )
    x = x.transpose(0, 1).contiguous() if batch_first else x
    K = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = [layer.proj_size or H, H][: 2 if kind == "LSTM" else 1]
    states = [torch.randn(K, B, size, dtype=torch.float64) for size in sizes]
    hx = None if not with_hx else tuple(states) if kind == "LSTM" else states[0]
    expected = run(layer, x, hx, LENGTHS)
    monkeypatch.setattr(_stack, "stays_on_device", lambda lengths: True)
    for ours, theirs in zip(run(layer, x, hx, LENGTHS), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("on_device")
def test_lengths_are_clamped(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = lstm_fused.LSTM(I, H)
    x = torch.randn(T, 2, I)
    wild = layer(x, lengths=torch.tensor([-3, T + 9]))[0]
    assert torch.equal(wild, layer(x, lengths=torch.tensor([0, T]))[0])
    monkeypatch.setenv("LSTM_FUSED_CHECK", "1")
    with pytest.raises(RuntimeError, match=r"lengths: expected values from 0 to 6, got \[-3, 15\]"):
        layer(x, lengths=torch.tensor([-3, T + 9]))


@pytest.mark.usefixtures("on_device")
def test_errors_are_named() -> None:
    layer = lstm_fused.GRU(I, H)
    x = torch.randn(T, 2, I, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"lengths: expected int64 \[2\], got torch.int64 \[3\]"):
        layer(x, lengths=torch.tensor([1, 2, 3]))
    (gradient,) = torch.autograd.grad(layer(x, lengths=torch.tensor([1, 2]))[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives and forward mode need lengths on the CPU"):
        gradient.square().sum().backward()
