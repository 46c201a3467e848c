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

pytestmark = pytest.mark.cuda
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
def lengths_stay(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the emulated device, too, where CPU tensors stand for its own."""
    if emulated.running():
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
    kind: str,
    options: dict[str, Any],
    with_hx: bool,
    device: str,
    cuda_plan: str,
    request: pytest.FixtureRequest,
) -> None:
    """Outputs, final states and gradients, with NaN in the padding; a row without a step ends as it began."""
    layer = getattr(lstm_fused, kind)(I, H, dtype=torch.float64, device=device, **options)
    padding = (torch.arange(T)[:, None] >= LENGTHS)[..., None]
    x = torch.randn(T, B, I, dtype=torch.float64).masked_fill(padding, torch.nan).to(device)
    x = x.transpose(0, 1).contiguous() if options.get("batch_first") else x
    K = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = [layer.proj_size or H, H][: 2 if kind == "LSTM" else 1]
    states = [torch.randn(K, B, size, dtype=torch.float64, device=device) for size in sizes]
    hx = None if not with_hx else tuple(states) if kind == "LSTM" else states[0]
    expected = run(layer, x, hx, LENGTHS)
    request.getfixturevalue("lengths_stay")
    for ours, theirs in zip(run(layer, x, hx, LENGTHS.to(device)), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("lengths_stay")
def test_lengths_are_clamped(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = lstm_fused.LSTM(I, H, device=device)
    x = torch.randn(T, 2, I, device=device)
    wild = layer(x, lengths=torch.tensor([-3, T + 9], device=device))[0]
    assert torch.equal(wild, layer(x, lengths=torch.tensor([0, T], device=device))[0])
    monkeypatch.setenv("LSTM_FUSED_CHECK", "1")
    with pytest.raises(RuntimeError, match=r"lengths: expected values from 0 to 6, got \[-3, 15\]"):
        layer(x, lengths=torch.tensor([-3, T + 9], device=device))


@pytest.mark.usefixtures("lengths_stay")
def test_errors_are_named(device: str) -> None:
    layer = lstm_fused.GRU(I, H, device=device)
    x = torch.randn(T, 2, I, device=device, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"lengths: expected int64 \[2\], got torch.int64 \[3\]"):
        layer(x, lengths=torch.tensor([1, 2, 3], device=device))
    output = layer(x, lengths=torch.tensor([1, 2], device=device))[0]
    (gradient,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives and forward mode need lengths on the CPU"):
        gradient.square().sum().backward()
