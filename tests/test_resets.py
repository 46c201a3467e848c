"""``resets`` without ``lengths``, which the kernels take as they are: in every plan, and to every derivative.

That they do what running the parts apart does is in ``test_segments``, which has both ways to do it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from pairs import F64, LAYERS, assert_close, states, tensors
from torch import Tensor
from torch.func import functional_call, grad, jacrev, jvp
from torch.utils._pytree import tree_leaves, tree_map

import lstm_fused
from lstm_fused import runtime

I = 3
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((kind, options) for kind in LAYERS for options in ({}, {"num_layers": 2, "bidirectional": True, "bias": False})),
    ("LSTM", {"bidirectional": True, "proj_size": 2, "cell_clip": 0.3}),
    ("GRU", {"batch_first": True, "grad_clip": 0.05}),
]
each_option = pytest.mark.parametrize(("kind", "options"), OPTIONS)


class Given:
    """A layer with an input, states, resets and states to reset to, [L*D, *]; all float tensors take gradients."""

    def __init__(
        self,
        kind: str,
        options: dict[str, Any],
        T: int = 5,
        B: int = 3,
        H: int = 4,
        dtype: torch.dtype = F64,
        some: float = 0.3,
    ) -> None:
        torch.manual_seed(3)
        self.kind = kind
        self.layer = getattr(lstm_fused, kind)(I, H, dtype=dtype, **options)
        rows = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
        sizes = {"H": H, "P": options.get("proj_size", 0), "dtype": dtype}
        self.x = self.laid_out(torch.randn(T, B, I, dtype=dtype)).requires_grad_()
        self.hx = [s.requires_grad_() for s in tensors(states(kind, rows, B, **sizes))]
        self.restart = [s.requires_grad_() for s in tensors(states(kind, rows, **sizes))]
        resets = torch.rand(T, B) < some
        resets[1, 0] = True
        self.resets = self.laid_out(resets)
        self.lengths = torch.full((B,), T)

    def laid_out(self, tensor: Tensor) -> Tensor:
        return tensor.transpose(0, 1) if self.layer.batch_first else tensor

    @property
    def leaves(self) -> list[Tensor]:
        return [self.x, *self.hx, *self.restart, *self.layer.parameters()]

    def state(self, parts: Sequence[Tensor]) -> Any:
        return tuple(parts) if self.kind == "LSTM" else parts[0]

    def call(self, *leaves: Tensor, **keywords: Any) -> list[Tensor]:
        """The results, on other tensors in the place of ``leaves`` if given."""
        x, *rest = leaves or self.leaves
        hx, restart, weights = rest[: len(self.hx)], rest[len(self.hx) : 2 * len(self.hx)], rest[2 * len(self.hx) :]
        keywords = {"resets": self.resets, "reset_state": self.state(restart), **keywords}
        named = {name: w for (name, _), w in zip(self.layer.named_parameters(), weights, strict=True)}
        return tensors(functional_call(self.layer, named, (x, self.state(hx)), keywords))

    def gradients(self, results: list[Tensor]) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(1)
        seeds = [torch.randn(r.shape, generator=generator, dtype=F64).to(r.dtype) for r in results]
        return torch.autograd.grad(results, self.leaves, seeds)


@each_option
@pytest.mark.parametrize("dtype", [F64, torch.bfloat16])
@pytest.mark.parametrize("some", [0.1, 1.0])
def test_every_plan_gives_the_bits_of_segments(
    kind: str, options: dict[str, Any], dtype: torch.dtype, some: float, isa: str
) -> None:
    """Values and what goes back to each row to the bit; the weights' gradients sum rows in another order."""
    g = Given(kind, options, T=70, B=5, H=40, dtype=dtype, some=some)  # several chunks of time, and panels of units
    cut = g.call(lengths=g.lengths)
    cut_grads = g.gradients(cut)
    with runtime.use_plan("serial"):
        wanted = g.call()
        wanted_grads = g.gradients(wanted)
    by_row, first_weight = 1 + len(g.hx), 1 + len(g.hx) + len(g.restart)
    for a, b in zip([*wanted, *wanted_grads[:by_row]], [*cut, *cut_grads[:by_row]], strict=True):
        assert torch.equal(a, b)
    # Segments sum the gradients of what they begin in as they are stored, in 16 bits.
    summed = slice(by_row if dtype == F64 else first_weight, None)
    for a, b in zip(wanted_grads[summed], cut_grads[summed], strict=True):
        assert (a - b).norm() <= (1e-12 if dtype == F64 else 1e-2) * b.norm()
    for plan in ("rows", "units"):
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with runtime.use_plan(plan):
                found = g.call()
                for a, b in zip([*found, *g.gradients(found)], [*wanted, *wanted_grads], strict=True):
                    assert torch.equal(a, b), f"plan {plan}, {threads} threads"


@each_option
def test_gradients_of_every_input(kind: str, options: dict[str, Any]) -> None:
    options = {k: v for k, v in options.items() if k != "grad_clip"}
    g = Given(kind, options, T=4, B=2, H=3)
    assert torch.autograd.gradcheck(lambda *leaves: tuple(g.call(*leaves)), g.leaves)
    assert torch.autograd.gradgradcheck(lambda *leaves: tuple(g.call(*leaves)), g.leaves, fast_mode=True)


@each_option
def test_tangents(kind: str, options: dict[str, Any]) -> None:
    options = {k: v for k, v in options.items() if k != "grad_clip"}
    g = Given(kind, options)
    leaves = tuple(t.detach() for t in g.leaves)
    tangents = tuple(torch.randn_like(t) for t in leaves)
    _, found = jvp(lambda *leaves: g.call(*leaves), leaves, tangents)
    jacobians = jacrev(lambda *leaves: g.call(*leaves), argnums=tuple(range(len(leaves))))(*leaves)
    for along, parts in zip(found, jacobians, strict=True):
        wanted = sum(torch.tensordot(j, t, t.dim()) for j, t in zip(parts, tangents, strict=True))
        assert_close(along, wanted)


@pytest.mark.parametrize("name", ["x", "hx", "reset_state", "weights", "resets"])
@pytest.mark.parametrize("kind", LAYERS)
def test_vmap(kind: str, name: str) -> None:
    """Over each argument: values, and gradients of each sample apart."""
    g = Given(kind, {"bidirectional": True})
    given = {"x": g.x, "hx": g.hx, "reset_state": g.restart, "weights": list(g.layer.parameters()), "resets": g.resets}
    given = {k: tree_map(torch.detach, v) for k, v in given.items()}

    def several(tensor: Tensor) -> Tensor:
        return torch.stack([tensor, tensor.roll(1, 0), ~tensor if tensor.dtype == torch.bool else tensor.sin()])

    samples = {name: tree_map(several, given[name])}

    def run(a: dict[str, Any]) -> list[Tensor]:
        return g.call(a["x"], *a["hx"], *a["reset_state"], *a["weights"], resets=a["resets"])

    def loss(a: dict[str, Any], resets: Tensor) -> Tensor:
        return sum((r.square().sum() for r in run({**a, "resets": resets})), torch.zeros((), dtype=F64))

    def gradients(a: dict[str, Any]) -> Any:
        return grad(loss)({k: v for k, v in a.items() if k != "resets"}, a["resets"])

    over = ({k: 0 if k == name else None for k in given},)
    for function in (run, gradients):
        found = torch.vmap(function, in_dims=over)({**given, **samples})
        one_by_one = [
            function({**given, name: tree_map(lambda t: t[v], samples[name])})  # noqa: B023
            for v in range(3)
        ]
        wanted = tree_map(lambda *parts: torch.stack(parts), *one_by_one)
        for a, b in zip(tree_leaves(found), tree_leaves(wanted), strict=True):
            assert_close(a, b, name)


@each_option
def test_compile_sees_one_graph_of_fixed_shapes(kind: str, options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    g = Given(kind, options)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda resets: g.layer(g.x, g.state(g.hx), resets=resets, reset_state=g.state(g.restart)),
        backend=counter,
        fullgraph=True,
    )
    for resets in (g.resets, ~g.resets, torch.zeros_like(g.resets)):
        found, wanted = tensors(compiled(resets)), g.call(resets=resets)
        for a, b in zip([*found, *g.gradients(found)], [*wanted, *g.gradients(wanted)], strict=True):
            assert_close(a, b)
    assert counter.frame_count == 1


def test_export_with_any_number_of_steps_and_rows() -> None:
    g = Given("LSTM", {"num_layers": 2})
    T, B = torch.export.Dim("T", min=2), torch.export.Dim("B", min=2)
    program = torch.export.export(
        g.layer, (g.x.detach(),), {"resets": g.resets}, dynamic_shapes={"input": {0: T, 1: B}, "resets": {0: T, 1: B}}
    )
    x, resets = torch.randn(9, 7, I, dtype=F64), torch.rand(9, 7) < 0.4
    for a, b in zip(tensors(program.module()(x, resets=resets)), tensors(g.layer(x, resets=resets)), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("kind", LAYERS)
def test_opcheck(kind: str) -> None:
    ops, cell = torch.ops.lstm_fused, kind.lower()
    g = Given(kind, {"bidirectional": True}, T=3)
    weights = [p.detach().requires_grad_() for p in g.layer.parameters()]
    c = g.restart[1] if kind == "LSTM" else None
    layer = (cell, g.x, g.hx, weights, None, True, None, None, False, g.resets, g.restart[0], c)
    for op in (ops.layer, ops.forward, ops.reference):
        torch.library.opcheck(op.default, layer)
    results = [r.detach() for r in ops.forward(*layer)]
    visible = 1 + len(g.hx)
    cells = results[visible + 1 :: 2] if kind == "LSTM" else []
    grads = [torch.randn_like(r).requires_grad_() for r in (*results[:visible], *cells)]
    needed = [True] * (1 + len(g.hx) + len(weights) + len(g.restart))
    call = (*layer[:1], grads, *layer[1:8], results[0], results[visible:], needed, 0, *layer[9:])
    torch.library.opcheck(ops.backward.default, call)


@pytest.mark.parametrize("kind", LAYERS)
def test_recomputed_and_frozen(kind: str) -> None:
    """What goes through segments gives the same."""
    g = Given(kind, {"num_layers": 2, "bidirectional": True}, T=70, H=40)
    wanted = g.call()
    with torch.no_grad():
        frozen = lstm_fused.freeze(g.layer)
        found = frozen(g.x, g.state(g.hx), resets=g.resets, reset_state=g.state(g.restart))
    assert all(torch.equal(a, b) for a, b in zip(tensors(found), wanted, strict=True))
    wanted_grads = g.gradients(wanted)
    g.layer.recompute = True
    found = g.call()
    for a, b in zip([*found, *g.gradients(found)], [*wanted, *wanted_grads], strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("kind", LAYERS)
def test_what_came_before_stays_there(kind: str) -> None:
    """NaN before a cut does not reach what follows it."""
    g = Given(kind, {}, T=6, B=2)
    cut = torch.zeros(6, 2, dtype=torch.bool)
    cut[3, 0] = True
    x = g.x.detach().clone()
    wanted = g.call(x, *g.leaves[1:], resets=cut)[0]
    x[2, 0] = torch.nan
    found = g.call(x, *g.leaves[1:], resets=cut)[0]
    assert found[2, 0].isnan().all()
    assert torch.equal(found[3:], wanted[3:]) and torch.equal(found[:, 1], wanted[:, 1])


@pytest.mark.parametrize("kind", LAYERS)
def test_autocast_lowers_the_state_to_reset_to(kind: str) -> None:
    g = Given(kind, {}, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = g.call()[0]
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), g.call()[0], rtol=0, atol=2e-2)


def changed(position: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda arguments: [*arguments[:position], value, *arguments[position + 1 :]]


WRONG: list[tuple[str, Callable[[list[Any]], list[Any]], str]] = [
    ("dtype", changed(9, torch.zeros(5, 3)), "resets: expected dtype Bool, got Float"),
    ("shape", changed(9, torch.zeros(3, 5, dtype=torch.bool)), r"resets: expected shape \[5, 3\], got \[3, 5\]"),
    (
        "device",
        changed(9, torch.zeros(5, 3, dtype=torch.bool, device="meta")),
        "resets: expected device cpu as input's, got meta",
    ),
    ("none", changed(9, None), "resets: expected a tensor beside reset states, got none"),
    ("size", changed(10, torch.zeros(1, 5, dtype=F64)), r"reset_h: expected shape \[1, 4\] \(D, P\), got \[1, 5\]"),
    ("kind", changed(11, torch.zeros(1, 4)), "reset_c: expected dtype Double as input's, got Float"),
    ("h alone", changed(11, None), "reset states: expected 2 tensors or none, got 1"),
    ("c alone", changed(10, None), "reset_h: expected a tensor beside reset_c, got none"),
    ("recompute", changed(8, True), "recompute: expected False beside resets, got True"),
]


@pytest.mark.parametrize(("change", "message"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_arguments_of_the_operator(change: Callable[[list[Any]], list[Any]], message: str) -> None:
    g = Given("LSTM", {})
    weights = list(g.layer.parameters())
    layer = ["lstm", g.x, g.hx, weights, None, False, None, None, False, g.resets, *g.restart]
    with pytest.raises(RuntimeError, match=message):
        torch.ops.lstm_fused.layer(*change(layer))


def test_no_batch_sizes_beside_resets() -> None:
    g = Given("LSTM", {})
    x, sizes = g.x.detach().flatten(0, 1), torch.full((5,), 3)
    with pytest.raises(RuntimeError, match="resets: expected none beside batch_sizes, got some"):
        torch.ops.lstm_fused.layer(
            "lstm", x, g.hx, list(g.layer.parameters()), sizes, False, None, None, False, g.resets
        )
