"""A module as a function of everything that it can be derived by: for tests of transforms, judged by ``torch.nn``'s.

Where ``torch.nn``'s layers have no rule for vmap, they run on one sample after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pairs import CELLS, F64, LAYERS, assert_close, states, tensors
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

T, B, I, H = 3, 2, 4, 5
STACKED = {"num_layers": 2, "bidirectional": True, "bias": False, "batch_first": True}
MODULES: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in LAYERS + CELLS),
    *((kind, STACKED) for kind in LAYERS),
    ("LSTM", {"proj_size": 3, "bidirectional": True}),
]
each_module = pytest.mark.parametrize(("kind", "options"), MODULES)
each_kind = pytest.mark.parametrize("kind", LAYERS + CELLS)

# Input, states and parameters by name.
Arguments = dict[str, Tensor]
Function = Callable[[Arguments], Tensor]


def arguments(module: nn.Module, kind: str, options: dict[str, Any]) -> Arguments:
    rows = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    sizes = (B, T) if options.get("batch_first") else (T, B)
    x = torch.randn(*((B,) if kind in CELLS else sizes), I, dtype=F64)
    hx = states(kind, *((B,) if kind in CELLS else (rows, B)), H=H, P=options.get("proj_size", 0))
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    return {"input": x, **dict(zip(("h0", "c0"), tensors(hx), strict=False)), **parameters}


def results_of(module: nn.Module, kind: str, batch_sizes: Tensor | None = None) -> Callable[[Arguments], list[Tensor]]:
    def call(a: Arguments) -> list[Tensor]:
        hx = (a["h0"], a["c0"]) if kind.startswith("LSTM") else a["h0"]
        x = a["input"] if batch_sizes is None else PackedSequence(a["input"], batch_sizes)
        parameters = {k: v for k, v in a.items() if k not in ("input", "h0", "c0")}
        return tensors(functional_call(module, parameters, (x, hx)))

    return call


def loss_of(module: nn.Module, kind: str, batch_sizes: Tensor | None = None) -> Function:
    """A scalar that depends on every result, unevenly, and has derivatives of any order by all arguments."""
    call = results_of(module, kind, batch_sizes)

    def loss(a: Arguments) -> Tensor:
        parts = []
        for result in call(a):
            weights = torch.linspace(0.5, 1.5, result.numel(), dtype=F64).view(result.shape)
            parts.append((result.sin() * weights).sum())
        return torch.stack(parts).sum()

    return loss


def assert_all_close(ours: Any, theirs: Any) -> None:
    a, b = pytree.tree_leaves(ours), pytree.tree_leaves(theirs)
    assert len(a) == len(b) > 0
    for k, (x, y) in enumerate(zip(a, b, strict=True)):
        assert y.any(), f"result {k} is zero: no test"
        assert_close(x.detach(), y.detach(), f"result {k}")


def gradients(f: Function) -> Callable[[Arguments], Arguments]:
    """``torch.func.grad(f)`` by way of eager autograd."""

    def call(a: Arguments) -> Arguments:
        leaves = {name: t.detach().requires_grad_() for name, t in a.items()}
        return dict(zip(a, torch.autograd.grad(f(leaves), list(leaves.values())), strict=True))

    return call


def each_sample(f: Callable[..., Any], samples: Arguments, a: Arguments) -> Any:
    """What vmap over dimension 0 of ``samples`` has to give; ``a`` has the other arguments."""
    V = next(iter(samples.values())).shape[0]
    one_by_one = [f({**a, **{name: t[v] for name, t in samples.items()}}) for v in range(V)]
    return pytree.tree_map(lambda *parts: torch.stack(parts), *one_by_one)


V = 3


def several(t: Tensor) -> Tensor:
    return torch.stack([t, t.cos(), t * t])[:V]
