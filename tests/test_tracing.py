"""The operators under torch's own machinery: fake and meta tensors, torch.compile, opcheck, checkpointing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pairs import CELLS, F64, LAYERS, assert_close, packed, pair, run, states, tensors
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

T, B, I, H = 4, 3, 5, 7
KINDS = LAYERS + CELLS
STACKED = {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False}
PLAIN_AND_STACKED: list[tuple[str, dict[str, Any]]] = [(kind, {}) for kind in KINDS] + [
    (kind, STACKED) for kind in LAYERS
]


def example(kind: str) -> Tensor:
    return torch.randn(*((B, I) if kind in CELLS else (T, B, I)), dtype=F64)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing(kind: str, use_reentrant: bool) -> None:
    ours, _ = pair(kind, I, H)
    grads = []
    x = example(kind).requires_grad_()
    for call in (ours, lambda x: checkpoint(ours, x, use_reentrant=use_reentrant)):
        tensors(call(x))[0].sum().backward()
        grads.append([t.grad for t in (x, *ours.parameters())])
        x.grad = None
        ours.zero_grad(set_to_none=True)
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(("kind", "options"), PLAIN_AND_STACKED)
def test_shapes_on_meta_and_fake_tensors(kind: str, options: dict[str, Any]) -> None:
    ours, _ = pair(kind, I, H, **options)
    x = example(kind)
    results = tensors(ours(x))
    on_meta = tensors(copy.deepcopy(ours).to("meta")(x.to("meta")))
    for a, b in zip(on_meta, results, strict=True):
        assert a.is_meta and a.shape == b.shape and a.dtype == b.dtype
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake_x = mode.from_tensor(x).requires_grad_()
        on_fake = tensors(ours(fake_x))
        (fake_dx,) = torch.autograd.grad(on_fake[0].sum(), [fake_x])
    for a, b in zip([*on_fake, fake_dx], [*results, x], strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype


@pytest.mark.parametrize("kind", LAYERS)
def test_mixed_devices_are_refused_without_kernels(kind: str) -> None:
    ours, _ = pair(kind, I, H)
    with pytest.raises(RuntimeError, match="device"):
        ours(example(kind).to("meta"))


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_sizes_are_refused_without_kernels(kind: str) -> None:
    ours = pair(kind, I, H)[0].to("meta")
    x = example(kind).to("meta")
    hx = tuple(torch.empty(B, H, dtype=F64, device="meta") for _ in range(2 if "LSTM" in kind else 1))
    hx = hx if kind in CELLS else tuple(h.unsqueeze(0) for h in hx)
    given = hx if "LSTM" in kind else hx[0]
    assert tensors(ours(x, given))[0].shape[-1] == H
    with pytest.raises(RuntimeError, match="input"):
        ours(x[..., 1:])
    for k in range(len(hx)):
        wrong = [h[..., 1:] if i == k else h for i, h in enumerate(hx)]
        with pytest.raises(RuntimeError, match=r"hx|hidden"):
            ours(x, tuple(wrong) if "LSTM" in kind else wrong[0])
    if kind in LAYERS:
        with pytest.raises(RuntimeError, match="sequence length"):
            ours(x[:0])


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_beside_meta_tensors(kind: str) -> None:
    ours = pair(kind, I, H)[0].to("meta")
    x = example(kind).to("meta")
    with torch.autocast("cpu"):
        assert tensors(ours(x))[0].shape[-1] == H


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(("kind", "options"), PLAIN_AND_STACKED)
def test_compile_sees_one_graph(kind: str, options: dict[str, Any], grad: bool) -> None:
    torch._dynamo.reset()
    ours, _ = pair(kind, I, H, **options)
    x = example(kind)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    if not grad:
        with torch.no_grad():
            for a, b in zip(tensors(compiled(x)), tensors(ours(x)), strict=True):
                assert_close(a, b)
        return
    parameters = list(ours.parameters())
    for a, b in zip(tensors(run(compiled, parameters, (x,))), tensors(run(ours, parameters, (x,))), strict=True):
        assert_close(a, b)


def test_compile_of_packed_input_without_states() -> None:
    """The batch size is then a value inside a tensor; its shape rule must say so rather than guess."""
    ours, _ = pair("LSTM", I, H)
    x = packed(I, [2, 4, 1])
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="eager")
    for a, b in zip(tensors(compiled(x)), tensors(ours(x)), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("form", ["padded", "packed", "lengths"])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_opcheck(kind: str, given: bool, form: str) -> None:
    module = getattr(nn, kind)(I, H, bidirectional=True, dtype=F64)
    x = torch.randn(*((8,) if form == "packed" else (T, B)), I, dtype=F64, requires_grad=True)
    initial = [s.requires_grad_() for s in tensors(states(kind, 2, B, H=H))] if given or form == "packed" else []
    sizes = {"padded": None, "packed": torch.tensor([3, 3, 2]), "lengths": torch.arange(B) % (T + 1)}[form]
    weights = [p.detach().requires_grad_() for p in module.parameters()]
    torch.library.opcheck(torch.ops.lstm_fused.layer.default, (kind.lower(), x, initial, weights, sizes, True))


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_opcheck_of_a_step(kind: str, given: bool) -> None:
    module = getattr(nn, kind)(I, H, dtype=F64)
    x = torch.randn(B, I, dtype=F64, requires_grad=True)
    initial = [s.requires_grad_() for s in tensors(states(kind, B, H=H))] if given else []
    weights = [p.detach().requires_grad_() for p in module.parameters()]
    cell = kind.removesuffix("Cell").lower()
    torch.library.opcheck(torch.ops.lstm_fused.step.default, (cell, x, initial, weights))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("samples", [0, B])
@pytest.mark.parametrize("kind", LAYERS)
def test_opcheck_of_the_parts(kind: str, samples: int, recompute: bool) -> None:
    """``forward``, ``backward`` and ``reference``, which autograd and vmap call; ``backward`` is differentiable."""
    ops, cell = torch.ops.lstm_fused, kind.lower()
    bidirectional = samples == 0
    module = getattr(nn, kind)(I, H, bidirectional=bidirectional, dtype=F64)
    x = torch.randn(2, B, I, dtype=F64, requires_grad=True)
    initial = [s.requires_grad_() for s in tensors(states(kind, 1 + bidirectional, B, H=H))]
    weights = [p.detach().requires_grad_() for p in module.parameters()]
    options = (0.3 if kind == "LSTM" else None, 10.0, recompute)
    results = [r.detach() for r in ops.forward(cell, x, initial, weights, None, bidirectional, *options)]
    visible = 1 + len(initial)
    cells = results[visible if recompute else visible + 1 :: 1 if recompute else 2] if kind == "LSTM" else []
    grads: list[Tensor | None] = [torch.randn_like(r).requires_grad_() for r in (*results[:visible], *cells)]
    grads[1] = None  # of h_n
    needed = [True, *(k % 3 > 0 for k in range(len(initial) + len(weights)))]
    output, saved = results[0], results[visible:]
    if samples == 0:
        torch.library.opcheck(ops.forward.default, (cell, x, initial, weights, None, bidirectional, *options))
        torch.library.opcheck(ops.reference.default, (cell, x, initial, weights, None, bidirectional, *options))
    layer = (cell, grads, x, initial, weights, None, bidirectional, *options[:2])
    torch.library.opcheck(ops.backward.default, (*layer, output, saved, needed, samples))
