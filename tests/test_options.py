"""``recompute``, ``cell_clip``, ``grad_clip``, ``return_cells`` and ``return_gates`` of the modules.

That their values and gradients are right is in the tables of ``test_values``, ``test_gradcheck``, ``test_reference``
and ``test_higher_derivatives``; here is how they meet the rest, and long sequences.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from pairs import F64, LAYERS, assert_close, packed, pair, states, tensors
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.profiler import ProfilerActivity, profile

import lstm_fused

T, B, I, H = 6, 3, 4, 5
each_layer = pytest.mark.parametrize("kind", LAYERS)


def clips(kind: str) -> dict[str, float]:
    return {"grad_clip": 0.05, **({"cell_clip": 0.2} if kind == "LSTM" else {})}


def keep(kind: str) -> dict[str, bool]:
    return {"return_gates": True, **({"return_cells": True} if kind == "LSTM" else {})}


def loss_of(results: Any) -> Tensor:
    """Depends on every element of what has a gradient, unevenly."""
    parts = [r for r in tensors(results) if r.requires_grad]
    return torch.stack([(r.sin() * torch.linspace(0.5, 1.5, r.numel()).view(r.shape)).sum() for r in parts]).sum()


def gradients(module: nn.Module, x: Tensor, hx: Any, **keywords: Any) -> list[Tensor]:
    x = x.detach().clone().requires_grad_()
    hx = tuple(s.detach().clone().requires_grad_() for s in tensors(hx))
    results = module(x, hx if len(hx) == 2 else hx[0], **keywords)
    return list(torch.autograd.grad(loss_of(results), [x, *hx, *module.parameters()]))


# ---- recompute ---------------------------------------------------------------------------------------------------

LONG: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in LAYERS),
    *((kind, {"num_layers": 2, "bidirectional": True, "bias": False}) for kind in LAYERS),
    ("LSTM", {"proj_size": 40, "bidirectional": True}),
]


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(("kind", "options"), LONG)
def test_gates_recomputed_chunk_by_chunk(kind: str, options: dict[str, Any], ragged: bool) -> None:
    """So many units that backward takes the sequence in several parts; gradients of everything as without."""
    T, B, H = 150, 6, 520
    ours, _ = pair(kind, 8, H, **options)
    x = torch.randn(T, B, 8, dtype=F64)
    rows = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    hx = states(kind, rows, B, H=H, P=options.get("proj_size", 0))
    keywords: dict[str, Any] = {"lengths": torch.tensor([150, 3, 90, 0, 149, 60])} if ragged else {}
    if kind == "LSTM":
        keywords["return_cells"] = True
    wanted = gradients(ours, x, hx, **keywords)
    ours.recompute = True
    for a, b in zip(gradients(ours, x, hx, **keywords), wanted, strict=True):
        assert_close(a, b)


@each_layer
def test_sixteen_bits_recomputed(kind: str) -> None:
    """h_{t-1} comes back rounded, and with it the gates: that costs no more than a few roundings."""
    ours, _ = pair(kind, I, 520, dtype=torch.bfloat16)
    x = torch.randn(100, 6, I, dtype=torch.bfloat16)
    hx = states(kind, 1, 6, H=520, dtype=torch.bfloat16)
    wanted = gradients(ours, x, hx)
    ours.recompute = True
    for a, b in zip(gradients(ours, x, hx), wanted, strict=True):
        assert (a - b).double().norm() <= 4 * torch.finfo(torch.bfloat16).eps * b.double().norm()


@each_layer
def test_a_part_of_the_gradients_recomputed(kind: str) -> None:
    ours, _ = pair(kind, 8, 520)
    x = torch.randn(100, 6, 8, dtype=F64)
    wanted = torch.autograd.grad(ours(x)[0].sum(), list(ours.parameters()))
    ours.recompute = True
    for k, p in enumerate(ours.parameters()):
        ours.requires_grad_(False)
        p.requires_grad_()
        (found,) = torch.autograd.grad(ours(x)[0].sum(), [p])
        assert_close(found, wanted[k])


@each_layer
def test_only_states_are_saved(kind: str) -> None:
    ours = getattr(lstm_fused, kind)(I, H, bidirectional=True, recompute=True)
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    x = torch.randn(T, B, I)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        _output, _ = ours(x)
    given = {t.untyped_storage().data_ptr() for t in (x, *ours.parameters())}
    states_bytes = T * B * 2 * H * 4 * (2 if kind == "LSTM" else 1)  # h_t, which is the output, and c_t
    assert sum(n for address, n in saved.items() if address not in given) == states_bytes


def peak(module: nn.Module, x: Tensor) -> int:
    """The most bytes that a training step has allocated at one time, beyond parameters, input and their gradients."""

    def step() -> None:
        output, _ = module(x)
        output.sum().backward()

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    now = most = 0
    for event in events:
        now += event.nbytes()
        most = max(most, now)
    return most


@each_layer
def test_peak_memory(kind: str) -> None:
    """Half of torch's at most, with 512 units."""
    x = torch.randn(100, 64, 512, requires_grad=True)
    theirs = peak(getattr(nn, kind)(512, 512), x)
    ours = peak(getattr(lstm_fused, kind)(512, 512, recompute=True), x)
    assert ours <= 0.5 * theirs, (ours, theirs)


# ---- return_cells and return_gates -------------------------------------------------------------------------------


@each_layer
def test_every_form_of_input(kind: str) -> None:
    """What is returned beside the output is laid out as it is."""
    ours, _ = pair(kind, I, H, num_layers=2, bidirectional=True)
    gates = 4 if kind == "LSTM" else 3
    x = torch.randn(T, B, I, dtype=F64)
    output, hx, *kept = ours(x, **keep(kind))
    plain, plain_hx = ours(x)
    assert torch.equal(output, plain) and all(map(torch.equal, tensors(hx), tensors(plain_hx)))
    assert [len(k) for k in kept] == [2] * len(kept)
    assert all(g.shape == (T, B, 2, gates, H) and not g.requires_grad for g in kept[-1])
    if kind == "LSTM":
        assert all(c.shape == (T, B, 2 * H) for c in kept[0])
        assert torch.equal(kept[0][1][-1, :, :H], hx[1][2]) and torch.equal(kept[0][1][0, :, H:], hx[1][3])
        i, f, g, _ = kept[1][0][1, :, 0].unbind(1)
        assert_close(f * kept[0][0][0, :, :H] + i * g, kept[0][0][1, :, :H])
    _, _, *alone = ours(x[:, 1], **keep(kind))
    ours.batch_first = True
    _, _, *by_batch = ours(x.transpose(0, 1), **keep(kind))
    for k, kinds in enumerate(kept):
        for layer, t in enumerate(kinds):
            assert_close(alone[k][layer], t[:, 1])
            assert torch.equal(by_batch[k][layer].transpose(0, 1), t)


@each_layer
def test_ragged_rows(kind: str) -> None:
    ours, _ = pair(kind, I, H, num_layers=2, bidirectional=True)
    x, lengths = torch.randn(T, B, I, dtype=F64), torch.tensor([2, 6, 4])
    _, _, *of_packed = ours(pack_padded_sequence(x, lengths, enforce_sorted=False), **keep(kind))
    _, _, *of_padded = ours(x, lengths=lengths, **keep(kind))
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[3, 1] = True
    _, _, *after = ours(x, resets=resets, **keep(kind))
    _, _, *whole = ours(x[3:], **keep(kind))
    for k, kinds in enumerate(of_packed):
        for layer, t in enumerate(kinds):
            assert isinstance(t, PackedSequence)
            assert torch.equal(pad_packed_sequence(t)[0], of_padded[k][layer])
            assert_close(after[k][layer][3:, 1], whole[k][layer][:, 1])


@each_layer
@pytest.mark.parametrize("inference", [True, False])
def test_without_gradients_and_frozen(kind: str, inference: bool) -> None:
    ours, _ = pair(kind, I, H, num_layers=2)
    x = torch.randn(T, B, I, dtype=F64)
    wanted = tensors(ours(x, **keep(kind)))
    with torch.inference_mode() if inference else torch.no_grad():
        for module in (ours, lstm_fused.freeze(ours)):
            found = tensors(module(x, **keep(kind)))
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_cell_takes_a_gradient_of_its_own() -> None:
    """By c_t alone, without the output."""
    ours, _ = pair("LSTM", I, H)
    x = torch.randn(T, B, I, dtype=F64, requires_grad=True)
    _, (_, c_n), (cells,) = ours(x, return_cells=True)
    (of_last,) = torch.autograd.grad(cells[-1].square().sum(), [x], retain_graph=True)
    (wanted,) = torch.autograd.grad(c_n.square().sum(), [x], retain_graph=True)
    assert_close(of_last, wanted)
    (of_third,) = torch.autograd.grad(cells[2].sum(), [x])
    assert of_third[:3].any() and not of_third[3:].any()


@each_layer
def test_autocast_gives_its_dtype(kind: str) -> None:
    ours = getattr(lstm_fused, kind)(I, H)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = tensors(ours(torch.randn(T, B, I), **keep(kind)))
    assert {r.dtype for r in results} == {torch.bfloat16}
    results[-1].float().sum()


# ---- clips -------------------------------------------------------------------------------------------------------


def test_no_cell_is_past_the_clip() -> None:
    ours = lstm_fused.LSTM(I, H, cell_clip=0.1)
    x = 10 * torch.randn(T, B, I)
    _, (_, c_n), (cells,) = ours(x, return_cells=True)
    assert cells.abs().max() == torch.tensor(0.1) and c_n.abs().max() == torch.tensor(0.1)
    state: Any = None
    for x_t in x:  # the path of a single step
        _, state = ours.step(x_t, state)
    assert torch.allclose(state[1], c_n, atol=1e-6)
    frozen = lstm_fused.freeze(ours)
    with torch.no_grad():
        assert torch.equal(frozen(x)[1][1], c_n)


@each_layer
def test_a_large_clip_changes_no_bit(kind: str) -> None:
    ours, _ = pair(kind, I, H)
    x, hx = torch.randn(T, B, I, dtype=F64), states(kind, 1, B, H=H)
    wanted = gradients(ours, x, hx)
    ours.grad_clip = 1e300
    if kind == "LSTM":
        ours.cell_clip = 1e300
    assert all(torch.equal(a, b) for a, b in zip(gradients(ours, x, hx), wanted, strict=True))


def test_exploding_gradients_are_bounded() -> None:
    """What grad_clip is for: weights so large that the gradient of the first step overflows."""
    torch.manual_seed(0)
    ours = lstm_fused.GRU(1, 64)
    with torch.no_grad():
        ours.weight_hh_l0.mul_(8)
    x = torch.randn(500, 1, 1, requires_grad=True)
    free = torch.autograd.grad(ours(x)[0].sum(), [x])[0].abs().max()
    ours.grad_clip = 1.0
    limited = torch.autograd.grad(ours(x)[0].sum(), [x])[0].abs().max()
    assert limited <= 3 * 64 / 8 < free  # 3*H gradients of at most 1, through weights of at most 1/8


@each_layer
def test_no_forward_mode_with_limited_gradients(kind: str) -> None:
    ours = getattr(lstm_fused, kind)(I, H, grad_clip=1.0)
    x = torch.randn(T, B, I)
    with pytest.raises(RuntimeError, match="grad_clip: expected None in forward mode, got 1"):
        torch.func.jvp(lambda x: ours(x)[0], (x,), (x,))
    with pytest.raises(RuntimeError, match="grad_clip: expected None in forward mode, got 1"):
        torch.func.jvp(grad(lambda x: ours(x)[0].sum()), (x,), (x,))


# ---- all of them, with the rest ----------------------------------------------------------------------------------


@each_layer
def test_compiled_in_one_graph(kind: str) -> None:
    torch._dynamo.reset()
    ours, _ = pair(kind, I, H, num_layers=2, bidirectional=True)
    for name, value in clips(kind).items():
        setattr(ours, name, value)
    ours.recompute = True
    x, hx = torch.randn(T, B, I, dtype=F64), states(kind, 4, B, H=H)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    for keywords in (keep(kind), {}):
        wanted = gradients(ours, x, hx, **keywords)
        leaves = [x.clone().requires_grad_(), *(s.clone().requires_grad_() for s in tensors(hx))]
        results = compiled(leaves[0], tuple(leaves[1:]) if len(leaves) == 3 else leaves[1], **keywords)
        found = torch.autograd.grad(loss_of(results), [*leaves, *ours.parameters()])
        for a, b in zip(found, wanted, strict=True):
            assert_close(a, b)


@each_layer
def test_exported(kind: str) -> None:
    ours, _ = pair(kind, I, H)
    for name, value in clips(kind).items():
        setattr(ours, name, value)
    ours.recompute = True
    x = torch.randn(T, B, I, dtype=F64)
    program = torch.export.export(ours, (x,), keep(kind)).module()
    for a, b in zip(tensors(program(x, **keep(kind))), tensors(ours(x, **keep(kind))), strict=True):
        assert_close(a, b)


@each_layer
@pytest.mark.parametrize("recompute", [True, False])
def test_per_sample_gradients(kind: str, recompute: bool) -> None:
    ours, _ = pair(kind, I, H)
    for name, value in clips(kind).items():
        setattr(ours, name, value)
    ours.recompute = recompute
    x = torch.randn(4, T, 2, I, dtype=F64)
    parameters = {name: p.detach() for name, p in ours.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        results = functional_call(ours, parameters, (x,), keep(kind))
        return torch.stack([r.sin().sum() for r in tensors(results[:-1])]).sum()  # all but the gates

    together = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for v in range(4):
        for name, wanted in grad(loss)(parameters, x[v]).items():
            assert_close(together[name][v], wanted)


@each_layer
def test_options_are_shown_copied_and_settable(kind: str) -> None:
    ours = getattr(lstm_fused, kind)(I, H, recompute=True, **clips(kind))
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert "grad_clip=0.05, recompute=True" in repr(module)
        assert ("cell_clip=0.2" in repr(module)) == (kind == "LSTM")
    plain = getattr(lstm_fused, kind)(I, H)
    assert repr(plain) == repr(getattr(nn, kind)(I, H))
    converted = lstm_fused.convert(getattr(nn, kind)(I, H))
    converted.recompute = True
    assert "recompute=True" in repr(converted)
    assert repr(lstm_fused.revert(converted)) == repr(plain)  # which costs memory and changes no value
    with pytest.raises(ValueError, match=r"revert: expected layers without (cell|grad)_clip"):
        lstm_fused.revert(nn.Sequential(plain, ours))
    assert isinstance(plain, getattr(lstm_fused, kind)), "nothing is changed"


@each_layer
@pytest.mark.parametrize("option", ["cell_clip", "grad_clip"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_wrong_clips_are_named(kind: str, option: str, value: float) -> None:
    if option not in clips(kind):
        with pytest.raises(TypeError, match=option):
            getattr(lstm_fused, kind)(I, H, **{option: value})
        return
    with pytest.raises(ValueError, match=rf"{option}: expected a number above 0, or None, got"):
        getattr(lstm_fused, kind)(I, H, **{option: value})
    plain = getattr(lstm_fused, kind)(I, H)
    setattr(plain, option, value)
    for x in (torch.randn(T, B, I), torch.randn(1, 1, I), packed(I, [2, 3]).to(torch.float32)):
        with pytest.raises(RuntimeError, match=rf"{option}: expected a number above 0, or None, got"):
            plain(x)


def test_a_gru_has_no_cell_to_clip() -> None:
    module = lstm_fused.GRU(I, H)
    weights = list(module.parameters())
    with pytest.raises(RuntimeError, match="cell_clip: expected none for cell gru"):
        torch.ops.lstm_fused.layer("gru", torch.randn(T, B, I), [], weights, None, False, 0.5)
