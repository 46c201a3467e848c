"""Frozen copies: the same bits, and nothing about them can be changed."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from pairs import LAYERS, packed, pair, states, tensors
from torch import Tensor, nn
from torch.autograd import forward_ad

import lstm_fused
from lstm_fused import runtime

T, B, I, H = 6, 3, 5, 7
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in LAYERS),
    *((kind, {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False}) for kind in LAYERS),
    ("LSTM", {"num_layers": 2, "proj_size": 3, "dropout": 0.5}),
]
each_option = pytest.mark.parametrize(("kind", "options"), OPTIONS)
each_layer = pytest.mark.parametrize("kind", LAYERS)


def same_bits(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


@each_option
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_same_bits(kind: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    ours, _ = pair(kind, I, H, dtype=dtype, **options)
    ours.eval()
    rows = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    x = torch.randn(T, B, I, dtype=dtype)
    batch = T if options.get("batch_first") else B
    hx = states(kind, rows, batch, H=H, P=options.get("proj_size", 0), dtype=dtype)
    sequence = packed(I, [4, 6, 1]).to(dtype)
    for isa in runtime.available_isas():
        with runtime.use_isa(isa), torch.no_grad():
            frozen = lstm_fused.freeze(ours)
            for args in ((x,), (x, hx), (x[:1],), (x[0],), (sequence,)):
                assert same_bits(frozen(*args), ours(*args))
            lengths = torch.tensor([2, 0, 5, 4, 1, 3][:batch]).clamp(
                max=x.shape[1 if options.get("batch_first") else 0]
            )
            assert same_bits(frozen(x, lengths=lengths), ours(x, lengths=lengths))
            if not options.get("bidirectional"):
                assert same_bits(frozen.step(x[0]), ours.step(x[0]))


@each_layer
def test_it_follows_no_change(kind: str) -> None:
    ours, _ = pair(kind, I, H, dtype=torch.float32)
    frozen, x = lstm_fused.freeze(ours), torch.randn(T, B, I)
    before = ours(x)
    with torch.no_grad():
        for p in ours.parameters():
            p.zero_()
    assert same_bits(frozen(x), before)
    ours.load_state_dict(frozen.state_dict())
    assert same_bits(ours(x), before)


@each_layer
def test_it_refuses_to_change(kind: str) -> None:
    frozen = lstm_fused.freeze(pair(kind, I, H)[0])
    x = torch.randn(T, B, I, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="cannot be trained"):
        frozen.train()
    assert frozen.eval() is frozen and not frozen.training and not list(frozen.parameters())
    with pytest.raises(RuntimeError, match="no gradients"):
        frozen(x.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="no gradients"):
        frozen.step(x[0].clone().requires_grad_())
    sequence = packed(I, [2, 3])
    with pytest.raises(RuntimeError, match="no gradients"):
        frozen(sequence._replace(data=sequence.data.requires_grad_()))
    restart = states(kind, 1, H=H)
    tensors(restart)[0].requires_grad_()
    with pytest.raises(RuntimeError, match="no gradients"):
        frozen(x, resets=torch.zeros(T, B, dtype=torch.bool), reset_state=restart)
    with torch.no_grad():
        frozen(x.clone().requires_grad_())
    with pytest.raises(AttributeError, match="weight_hh_l0 cannot be set"):
        frozen.weight_hh_l0 = torch.zeros(1)
    with pytest.raises(RuntimeError, match="loads no state_dict"):
        frozen.load_state_dict(frozen.state_dict())
    with pytest.raises(RuntimeError, match="dtype and device cannot change"):
        frozen.float()
    assert frozen.double() is frozen and frozen.to("cpu") is frozen
    with pytest.raises(ValueError, match="bidirectional"):
        lstm_fused.freeze(pair(kind, I, H, bidirectional=True)[0]).step(x[0])
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, got list"):
        lstm_fused.freeze([])  # type: ignore[arg-type]


@each_layer
def test_copies_pack_again_where_they_are_loaded(kind: str) -> None:
    frozen, x = lstm_fused.freeze(pair(kind, I, H, dtype=torch.float32)[0]), torch.randn(T, B, I)
    saved = io.BytesIO()
    torch.save(frozen, saved)
    saved.seek(0)
    for other in (
        copy.deepcopy(frozen),
        pickle.loads(pickle.dumps(frozen)),
        torch.load(saved, weights_only=False),
    ):
        assert same_bits(other(x), frozen(x))
        with pytest.raises(AttributeError):
            other.num_layers = 2
    isas = runtime.available_isas()
    if len(isas) > 1:
        other_isa = next(isa for isa in isas if isa != runtime.isa())
        with runtime.use_isa(other_isa):
            with pytest.raises(RuntimeError, match=f"packed for {other_isa}, the active instruction set"):
                frozen(x)
            assert pickle.loads(pickle.dumps(frozen))(x)[0].shape == (T, B, H)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([lstm_fused.LSTM(I, I), lstm_fused.GRU(I, I)])
        self.again = self.body[0]
        self.cell, self.head = lstm_fused.LSTMCell(I, I), nn.Linear(I, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.body, self.again):
            x, _ = layer(x)
        return self.head(self.cell(x[-1])[0])


def test_a_whole_model() -> None:
    model, x = Model(), torch.randn(T, B, I)
    frozen = lstm_fused.freeze(model)
    assert torch.equal(frozen(x), model(x)) and model.training and not frozen.training
    assert frozen.again is frozen.body[0] and "LSTM(5, 5)" in repr(frozen)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert frozen.state_dict().keys() == model.state_dict().keys()


def test_compiled() -> None:
    torch._dynamo.reset()
    frozen, x = lstm_fused.freeze(lstm_fused.LSTM(I, H, 2)), torch.randn(T, B, I)
    with torch.no_grad():
        assert same_bits(torch.compile(frozen, backend="aot_eager", fullgraph=True)(x), frozen(x))


@each_layer
def test_raw_packed_weights_are_checked(kind: str) -> None:
    ours, _ = pair(kind, I, H, dtype=torch.float32)
    ops, weights, cell = torch.ops.lstm_fused, [w.detach() for w in ours.parameters()], kind.lower()
    right = ops.pack(cell, weights, False)

    def call(packed: list[Tensor]) -> None:
        ops.packed_layer(cell, torch.randn(T, B, I), [], weights, packed, runtime.isa(), None, False)

    call(right)
    for wrong in ([], right[:1], [right[0][1:], right[1]], [right[0].double(), right[1]], [right[0], right[1][::2]]):
        with pytest.raises(RuntimeError, match="packed: expected"):
            call(wrong)


def test_layers_elsewhere_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="freeze: expected layers on the CPU, got one on meta"):
        lstm_fused.freeze(lstm_fused.LSTM(I, H, device="meta"))


class Doubled(lstm_fused.GRU):
    def forward(self, *args: Any, **keywords: Any) -> Any:
        output, hx = super().forward(*args, **keywords)
        return 2 * output, hx


def test_what_has_a_forward_of_its_own_is_left_alone() -> None:
    x = torch.randn(T, B, I)
    for module in (Doubled(I, H), nn.Sequential(Doubled(I, H))):
        frozen = lstm_fused.freeze(module)
        assert frozen is not module and same_bits(frozen(x), module(x))


@each_layer
def test_parametrised_and_in_two_places(kind: str) -> None:
    ours, _ = pair(kind, H, H)
    nn.utils.parametrizations.weight_norm(ours, "weight_hh_l0")
    frozen = lstm_fused.freeze(nn.ModuleList([ours, ours]))
    assert isinstance(frozen, nn.ModuleList) and frozen[0] is frozen[1]
    x = torch.randn(T, B, H, dtype=torch.float64)
    assert isinstance(frozen[0], lstm_fused.freeze(ours).__class__) and same_bits(frozen[0](x), ours(x))


@each_option
def test_it_has_the_layers_attributes(kind: str, options: dict[str, Any]) -> None:
    ours, _ = pair(kind, I, H, **options)
    frozen: Any = lstm_fused.freeze(ours)
    for name in ours.__constants__:
        if name not in ("mode", "nonlinearity"):
            assert getattr(frozen, name) == getattr(ours, name), name
    frozen.flatten_parameters()


@each_layer
def test_no_tangents(kind: str) -> None:
    frozen, x = lstm_fused.freeze(lstm_fused.convert(getattr(nn, kind)(I, H))), torch.randn(T, B, I)
    with pytest.raises(RuntimeError, match="no derivatives"):
        torch.func.jvp(lambda x: frozen(x)[0], (x,), (x,))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="no derivatives"):
        frozen(forward_ad.make_dual(x, x))


@each_layer
def test_vmap(kind: str) -> None:
    frozen, x = lstm_fused.freeze(pair(kind, I, H)[0]), torch.randn(2, T, B, I, dtype=torch.float64)
    hx = states(kind, 1, B, H=H)
    found = torch.vmap(lambda x: frozen(x, hx))(x)
    for v in range(2):
        for a, b in zip(tensors(found), tensors(frozen(x[v], hx)), strict=True):
            torch.testing.assert_close(a[v], b)
