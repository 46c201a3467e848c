"""``torch.func``: every transform, by every argument, alone and nested, eager and compiled, is right and goes the way
that it should.

Judged by ``torch.nn``'s layers in float64, one sample after the other where they have no rule for vmap.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pairs import CELLS, F64, LAYERS, assert_close, pair, states, tensors
from routes import Calls
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, stack_module_state, vjp
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

import lstm_fused
from lstm_fused import _vmap

T, B, I, H = 3, 2, 4, 5
STACKED = {"num_layers": 2, "bidirectional": True, "bias": False, "batch_first": True}
MODULES: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in LAYERS + CELLS),
    *((kind, STACKED) for kind in LAYERS),
    ("LSTM", {"proj_size": 3, "bidirectional": True}),
]
each_module = pytest.mark.parametrize(("kind", "options"), MODULES)
each_kind = pytest.mark.parametrize("kind", LAYERS + CELLS)

# A module as a function of everything that it can be derived by: input, states and parameters by name.
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


# ---- one transform -----------------------------------------------------------------------------------------------

TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "grad": lambda f, x: grad(f)(x),
    "vjp": lambda f, x: vjp(f, x)[1](torch.tensor(2.0, dtype=F64)),
    "jvp": lambda f, x: jvp(f, (x,), (x.cos(),)),
    "hessian": lambda f, x: hessian(f)(x),
    "reverse over reverse": lambda f, x: jacrev(jacrev(f))(x),
    "forward over forward": lambda f, x: jacfwd(jacfwd(f))(x),
    "reverse over forward": lambda f, x: jacrev(jacfwd(f))(x),
    "third derivative": lambda f, x: grad(lambda x: grad(lambda x: grad(f)(x).square().sum())(x).square().sum())(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@each_module
def test_transforms_by_input(kind: str, options: dict[str, Any], transform: str) -> None:
    ours, theirs = pair(kind, I, H, **options)
    a = arguments(ours, kind, options)
    mine, their = (
        TRANSFORMS[transform](lambda x, m=m: loss_of(m, kind)({**a, "input": x}), a["input"]) for m in (ours, theirs)
    )
    assert_all_close(mine, their)


@each_module
def test_transforms_by_each_argument(kind: str, options: dict[str, Any]) -> None:
    """Alone, each of input, states and parameters has its gradient, its tangent and its Hessian times a vector."""
    ours, theirs = pair(kind, I, H, **options)
    a = arguments(ours, kind, options)
    for name, value in a.items():
        mine, their = [], []
        for module, found in ((ours, mine), (theirs, their)):
            f = lambda t, m=module, name=name: loss_of(m, kind)({**a, name: t})  # noqa: E731
            found += [grad(f)(value), jvp(f, (value,), (value.cos(),)), jvp(grad(f), (value,), (value.cos(),))]
        assert_all_close(mine, their)


@each_kind
def test_jacobians_of_all_results_by_all_arguments(kind: str) -> None:
    ours, theirs = pair(kind, I, H)
    a = arguments(ours, kind, {})
    wanted = jacrev(results_of(theirs, kind))(a)
    for jacobian in (jacrev, jacfwd):
        assert_all_close(jacobian(results_of(ours, kind))(a), wanted)


@each_kind
def test_linearize(kind: str) -> None:
    ours, _ = pair(kind, I, H)
    a = arguments(ours, kind, {})
    f = lambda x: loss_of(ours, kind)({**a, "input": x})  # noqa: E731
    assert_close(linearize(f, a["input"])[1](a["input"]), jvp(f, (a["input"],), (a["input"],))[1])


# ---- vmap --------------------------------------------------------------------------------------------------------

V = 3


def several(t: Tensor) -> Tensor:
    return torch.stack([t, t.cos(), t * t])[:V]


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


@pytest.mark.parametrize("limit", [0, 1000], ids=["together", "in turn"])
@pytest.mark.parametrize(
    ("kind", "options", "form"),
    [(*m, "padded") for m in MODULES]
    + [(kind, o, "packed") for kind, o in MODULES if kind in LAYERS and not o.get("batch_first")],
)
def test_gradients_per_sample(
    kind: str, options: dict[str, Any], form: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By all arguments, of each sample apart: both ways that the rule has for weights."""
    monkeypatch.setattr(_vmap, "IN_TURN_BELOW", limit)
    ours, theirs = pair(kind, I, H, **options)
    a = arguments(ours, kind, options)
    batch_sizes = torch.tensor([2, 2, 1, 1, 1, 1, 1]) if form == "packed" else None
    if form == "packed":
        a["input"] = torch.randn(9, I, dtype=F64)
    elif kind in LAYERS:  # longer than twice the samples
        a["input"] = torch.randn(*((B, 2 * V + 1) if options.get("batch_first") else (2 * V + 1, B)), I, dtype=F64)
    names = [name for name in a if name in ("input", "h0", "c0")]
    samples = {n: several(a[n]) for n in names}
    over = ({n: 0 if n in names else None for n in a},)
    with Calls() as calls:
        found = torch.vmap(grad(loss_of(ours, kind, batch_sizes)), in_dims=over)({**a, **samples})
    layers = options.get("num_layers", 1)
    in_turn = bool(limit) and kind in LAYERS
    assert calls.fused == {"forward": layers, "backward": layers * (V if in_turn else 1)}
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


# ---- what runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAYERS)
def test_routes(kind: str) -> None:
    """Values and first derivatives are the kernels', in one call; tangents and second derivatives the reference's."""
    ours, _ = pair(kind, I, H)
    a = arguments(ours, kind, {})
    shared = {k: t for k, t in a.items() if k != "input"}
    f = lambda x: loss_of(ours, kind)({**shared, "input": x})  # noqa: E731
    x, xs = a["input"], several(a["input"])
    both = {"forward": 1, "backward": 1}
    for name, call, fused, reference in (
        ("vmap", lambda: torch.vmap(f)(xs), {"layer": 1}, False),
        ("grad", lambda: grad(f)(x), both, False),
        ("vmap of grad", lambda: torch.vmap(grad(f))(xs), both, False),
        ("grad of vmap", lambda: grad(lambda xs: torch.vmap(f)(xs).sum())(xs), both, False),
        ("jacrev", lambda: jacrev(lambda x: results_of(ours, kind)({**shared, "input": x})[0])(x), both, False),
        ("jvp", lambda: jvp(f, (x,), (x,)), {"forward": 1}, True),
        # The second call of backward carries on what the first one's incoming gradient depends on.
        ("grad of grad", lambda: grad(lambda x: grad(f)(x).sum())(x), {"forward": 1, "backward": 2}, True),
    ):
        with Calls() as calls:
            call()
        assert calls.fused == fused and (calls.products > 0) == reference, (name, calls.fused, calls.products)


COMPILED: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "grad": lambda f, x: grad(f)(x),
    "jvp": lambda f, x: jvp(f, (x,), (x.cos(),))[1],
    "hessian times vector": lambda f, x: jvp(grad(f), (x,), (x.cos(),))[1],
    "vmap of grad": lambda f, x: torch.vmap(grad(f))(torch.stack([x, x.cos()])),
}


@pytest.mark.parametrize("transform", COMPILED)
@each_kind
def test_compiled_transforms(kind: str, transform: str) -> None:
    """Where transforms meet torch.compile: one graph, the same values."""
    torch._dynamo.reset()
    ours, _ = pair(kind, I, H)
    a = arguments(ours, kind, {})
    shared = {k: t for k, t in a.items() if k != "input"}
    call = lambda x: COMPILED[transform](lambda x: loss_of(ours, kind)({**shared, "input": x}), x)  # noqa: E731
    found = torch.compile(call, backend="aot_eager", fullgraph=True)(a["input"])
    assert_all_close(found, call(a["input"]))


def test_compiled_gradients_call_the_kernels() -> None:
    torch._dynamo.reset()
    ours, _ = pair("LSTM", I, H)
    a = arguments(ours, "LSTM", {})
    called: list[str] = []

    def look(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        called.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    backend = aot_autograd(fw_compiler=look)
    torch.compile(grad(loss_of(ours, "LSTM")), backend=backend, fullgraph=True)(a)
    fused = [name for name in called if name.startswith("lstm_fused")]
    assert fused == ["lstm_fused.forward.default", "lstm_fused.backward.default"]
    assert not any("mm" in name for name in called)
