"""``torch.vmap``, over every argument, of values and of gradients, nested: what a loop over samples gives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from functions import (
    MODULES,
    Arguments,
    B,
    H,
    I,
    T,
    V,
    arguments,
    assert_all_close,
    each_kind,
    each_module,
    each_sample,
    gradients,
    loss_of,
    results_of,
    several,
)
from pairs import F64, LAYERS, assert_close, pair
from routes import Calls
from torch import Tensor, nn
from torch.func import grad, hessian, stack_module_state
from torch.utils import _pytree as pytree

import lstm_fused


@each_module
def test_vmap_over_each_argument(kind: str, options: dict[str, Any]) -> None:
    """Values and gradients, the argument alone with the dimension and the others shared."""
    ours, theirs = pair(kind, I, H, **options)
    a = arguments(ours, kind, options)
    for name in a:
        samples = {name: several(a[name])}
        over = ({k: 0 if k == name else None for k in a},)
        for mine, their in (
            (results_of(ours, kind), results_of(theirs, kind)),
            (grad(loss_of(ours, kind)), gradients(loss_of(theirs, kind))),
        ):
            found = torch.vmap(mine, in_dims=over)({**a, **samples})
            wanted = each_sample(their, samples, a)
            for x, y in zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True):
                assert_close(x, y, name)


@pytest.mark.parametrize("in_dim", [0, 1, 2, 3])
def test_vmap_dimensions(in_dim: int) -> None:
    """The dimension may lie anywhere, in what goes in and in what comes out."""
    ours, theirs = pair("LSTM", I, H)
    x = torch.randn(V, T, B, I, dtype=F64)
    wanted = torch.stack([theirs(sample)[0] for sample in x])
    found = torch.vmap(lambda x: ours(x)[0], in_dims=in_dim, out_dims=in_dim)(x.movedim(0, in_dim))
    assert_close(found.movedim(in_dim, 0), wanted)
    unbatched = torch.vmap(lambda x: ours(x)[0], in_dims=1, out_dims=1)(x[0])
    assert_close(unbatched, theirs(x[0])[0])
    chunked = torch.vmap(lambda x: ours(x)[0], chunk_size=2)(x)
    assert_close(chunked, wanted)


@pytest.mark.parametrize(
    ("kind", "options", "form"),
    [(*m, "padded") for m in MODULES]
    + [(kind, o, "packed") for kind, o in MODULES if kind in LAYERS and not o.get("batch_first")],
)
def test_gradients_per_sample(kind: str, options: dict[str, Any], form: str) -> None:
    """By all arguments, of each sample apart, from one call of the kernels."""
    ours, theirs = pair(kind, I, H, **options)
    a = arguments(ours, kind, options)
    batch_sizes = torch.tensor([2, 2, 1, 1, 1, 1, 1]) if form == "packed" else None
    if form == "packed":
        a["input"] = torch.randn(9, I, dtype=F64)
    names = [name for name in a if name in ("input", "h0", "c0")]
    samples = {n: several(a[n]) for n in names}
    over = ({n: 0 if n in names else None for n in a},)
    with Calls() as calls:
        found = torch.vmap(grad(loss_of(ours, kind, batch_sizes)), in_dims=over)({**a, **samples})
    layers = options.get("num_layers", 1)
    assert calls.fused == {"forward": layers, "backward": layers}
    assert calls.products == 0
    assert_all_close(found, each_sample(gradients(loss_of(theirs, kind, batch_sizes)), samples, a))


@each_kind
def test_nested_transforms(kind: str) -> None:
    ours, theirs = pair(kind, I, H)
    a = arguments(ours, kind, {})
    shared = {k: t for k, t in a.items() if k != "input"}
    xs = several(a["input"])
    over = ({k: 0 if k == "input" else None for k in a},)  # in the order of ``a``

    def by_input(module: nn.Module) -> Callable[[Arguments], Tensor]:
        return lambda a: hessian(lambda x: loss_of(module, kind)({**a, "input": x}))(a["input"])

    wanted = each_sample(by_input(theirs), {"input": xs}, a)
    assert_close(torch.vmap(by_input(ours), in_dims=over)({**a, "input": xs}), wanted)

    twice = several(xs)  # [V, V, ...]
    per_sample = torch.vmap(torch.vmap(grad(loss_of(ours, kind)), in_dims=over), in_dims=over)
    wanted = each_sample(
        lambda b: each_sample(gradients(loss_of(theirs, kind)), {"input": b["input"]}, a), {"input": twice}, a
    )
    assert_all_close(per_sample({**a, "input": twice}), wanted)

    def penalty(per_sample: Arguments) -> Tensor:
        """Of the norms of the samples' gradients: its derivative goes through vmap(grad)."""
        squares = [(g.flatten(1) ** 2).sum(1) for g in per_sample.values()]
        return torch.stack(squares).sum(0).sqrt().sum()

    mine = grad(lambda b: penalty(torch.vmap(grad(loss_of(ours, kind)), in_dims=over)({**a, **b, "input": xs})))(shared)
    their = grad(lambda b: penalty(each_sample(grad(loss_of(theirs, kind)), {"input": xs}, {**a, **b})))(shared)
    assert_all_close(mine, their)


@each_kind
def test_ensembles(kind: str) -> None:
    """Stacked models: values, and the gradients of each."""
    ours, theirs = pair(kind, I, H)
    models = [[copy.deepcopy(m) for _ in range(V)] for m in (ours, theirs)]
    for mine, their in zip(*models, strict=True):
        nn.init.normal_(next(mine.parameters()))
        their.load_state_dict(mine.state_dict())
    a = arguments(ours, kind, {})
    given = {k: t for k, t in a.items() if k in ("input", "h0", "c0")}
    parameters, _ = stack_module_state(models[0])
    for f, g in (
        (results_of(ours, kind), results_of(theirs, kind)),
        (grad(loss_of(ours, kind)), gradients(loss_of(theirs, kind))),
    ):
        found = torch.vmap(lambda p, f=f: f({**given, **p}))(parameters)
        assert_all_close(found, each_sample(g, parameters, given))


def test_vmap_over_nothing_is_refused() -> None:
    with pytest.raises(RuntimeError, match="size 0"):
        torch.vmap(lstm_fused.LSTM(I, H))(torch.randn(0, T, B, I))
