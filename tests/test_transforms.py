"""``torch.func``'s derivatives: every transform, by every argument, eager and compiled, is right and takes its route.

``vmap`` has a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from functions import H, I, arguments, assert_all_close, each_kind, each_module, loss_of, results_of, several
from pairs import F64, LAYERS, assert_close, pair
from routes import Calls
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp

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
@pytest.mark.parametrize("kind", ["LSTM", "GRUCell"])
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
