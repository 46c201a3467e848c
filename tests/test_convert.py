"""convert and revert keep everything about a model but the classes of its recurrent layers."""

from __future__ import annotations

import copy
import io
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pairs import CELLS, F64, LAYERS, assert_close, assert_same, packed, tensors
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import lstm_fused
from lstm_fused import convert, revert

T, B, I, H = 4, 3, 5, 7
KINDS = LAYERS + CELLS


def example(kind: str) -> Tensor:
    return torch.randn(*((B, I) if kind in CELLS else (T, B, I)), dtype=F64)


def make(kind: str, **options: Any) -> nn.Module:
    module: nn.Module = getattr(nn, kind)(I, H, dtype=F64, **options)
    return module


class Model(nn.Module):
    """Every kind of layer, one of them under two names, and one that a plain attribute refers to as well."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(I, H, 2, bidirectional=True, dropout=0.25, batch_first=True, dtype=F64)
        self.blocks = nn.ModuleList([nn.GRU(2 * H, H, dtype=F64), nn.Linear(H, H, dtype=F64)])
        self.cells = nn.ModuleDict(
            {"lstm": nn.LSTMCell(H, H, dtype=F64), "gru": nn.GRUCell(H, H, bias=False, dtype=F64)}
        )
        self.again = self.blocks[0]
        self.untracked = (self.cells["lstm"],)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(x)
        y, _ = self.blocks[0](y)
        z = self.blocks[1](y[:, -1])
        h, _ = self.untracked[0](z)
        result: Tensor = self.cells["gru"](h)
        return result


def classes(model: nn.Module) -> dict[str, type]:
    return {name: type(m) for name, m in model.named_modules(remove_duplicate=False)}


def test_a_model_there_and_back() -> None:
    model = Model()
    before, modules = classes(model), list(model.modules())
    parameters = dict(model.named_parameters())
    kept = copy.deepcopy(model)
    x = torch.randn(B, T, I, dtype=F64)

    assert convert(model) is model
    after = classes(model)
    for name in ("lstm", "blocks.0", "again", "cells.lstm", "cells.gru"):
        assert after[name] is getattr(lstm_fused, before[name].__name__)
    assert after["blocks.1"] is nn.Linear
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert model.again is model.blocks[0] and model.untracked[0] is model.cells["lstm"]
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert str(model) == str(kept)
    assert_same(model.eval(), kept.eval(), x)

    model.train()
    assert revert(model) is model
    assert classes(model) == before
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert vars(model.lstm).keys() == vars(kept.lstm).keys()
    for module, other in ((model, kept), (copy.deepcopy(model), kept)):
        assert_same(module.eval(), other.eval(), x)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_by_itself(kind: str) -> None:
    layer = make(kind)
    kept, x = copy.deepcopy(layer), example(kind)
    assert convert(layer) is layer
    assert type(layer) is getattr(lstm_fused, kind)
    assert_same(layer, kept, x)
    assert convert(layer) is layer and type(layer) is getattr(lstm_fused, kind)  # twice is once
    assert type(revert(layer)) is getattr(nn, kind)
    assert_same(layer, kept, x)
    assert type(revert(layer)) is getattr(nn, kind)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_converted_layer_takes_packed_input(kind: str) -> None:
    layer = make(kind, num_layers=2, bidirectional=True)
    kept = copy.deepcopy(layer)
    assert_same(convert(layer), kept, packed(I, [2, 4, 1]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_made_fused_becomes_torchs(kind: str) -> None:
    layer = getattr(lstm_fused, kind)(I, H, dtype=F64)
    kept = copy.deepcopy(layer)
    revert(layer)
    assert type(layer) is getattr(nn, kind)
    assert_same(kept, layer, example(kind))
    layer.to(torch.float32).to(F64)  # nn.LSTM's own upkeep of its weight list runs
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert_same(kept.to(torch.float32).to(F64), torch.load(file, weights_only=False), example(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimizer_made_before_goes_on(kind: str, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    layer = make(kind)
    kept = copy.deepcopy(layer)
    optimizers = [optimizer(module.parameters(), lr=0.1) for module in (layer, kept)]
    x = example(kind)
    for step in range(4):
        if step == 1:
            convert(layer)
        if step == 3:
            revert(layer)
        for module, opt in zip((layer, kept), optimizers, strict=True):
            opt.zero_grad()
            tensors(module(x))[0].square().sum().backward()
            opt.step()
        for a, b in zip(layer.parameters(), kept.parameters(), strict=True):
            assert torch.allclose(a, b, rtol=1e-7, atol=1e-9)  # Adam divides by a root of small squares


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_stay(kind: str) -> None:
    layer, calls = make(kind), []

    def note(name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: calls.append(name)

    layer.register_forward_pre_hook(note("forward_pre"))
    layer.register_forward_hook(note("forward"))
    layer.register_full_backward_pre_hook(note("backward_pre"))
    layer.register_full_backward_hook(note("backward"))
    layer.register_state_dict_pre_hook(note("state_dict_pre"))
    layer._register_state_dict_hook(note("state_dict"))
    layer.register_load_state_dict_pre_hook(note("load_pre"))
    layer.register_load_state_dict_post_hook(note("load_post"))
    next(layer.parameters()).register_hook(note("parameter"))

    def use() -> list[str]:
        calls.clear()
        tensors(layer(example(kind).requires_grad_()))[0].sum().backward()
        layer.load_state_dict(layer.state_dict())
        return list(calls)

    expected = use()
    assert len(expected) == 9
    convert(layer)
    assert sorted(use()) == sorted(expected)
    handle = layer.register_forward_hook(lambda module, args, result: None)
    handle.remove()
    revert(layer)
    assert sorted(use()) == sorted(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_state_beside_the_parameters_stays(kind: str) -> None:
    layer: Any = make(kind).eval()
    layer.note, layer.child = "kept", nn.Linear(2, 2)
    layer.register_buffer("counter", torch.tensor(3))
    list(layer.parameters())[1].requires_grad_(False)
    reference: Callable[[], Any] = weakref.ref(layer)
    for change in (convert, revert):
        change(layer)
        assert not layer.training and layer.note == "kept" and layer.counter.item() == 3
        assert isinstance(layer.child, nn.Linear) and reference() is layer
        assert [p.requires_grad for p in layer.parameters()][:3] == [True, False, True]


def test_dtype_and_device_stay() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        lstm = convert(nn.LSTM(I, H, dtype=dtype))
        assert {p.dtype for p in lstm.parameters()} == {dtype}
    gru = convert(nn.GRU(I, H, device="meta"))
    assert gru(torch.zeros(T, B, I, device="meta"))[0].shape == (T, B, H)


def test_bare_layers_of_an_old_pickle_are_found_without_their_weight_list() -> None:
    """convert does not rely on the private lists that torch's layers keep."""
    layer = make("LSTM")
    del layer.__dict__["_flat_weight_refs"]
    kept = make("LSTM")
    kept.load_state_dict(layer.state_dict())
    assert_same(convert(layer), kept, example("LSTM"))


class Overriding(nn.LSTM):
    def forward(self, input: Tensor, hx: Any = None) -> Any:  # type: ignore[override]
        return super().forward(input * 2, hx)


def test_subclasses_are_left_alone() -> None:
    model = nn.ModuleList([Overriding(I, H), nn.RNN(I, H), nn.Linear(I, H)])
    before = classes(model)
    assert classes(convert(model)) == before

    class FusedSubclass(lstm_fused.LSTM):
        pass

    fused = nn.ModuleList([FusedSubclass(I, H)])
    assert classes(revert(fused)) == classes(nn.ModuleList([FusedSubclass(I, H)]))


@pytest.mark.parametrize("kind", KINDS)
def test_parametrised_layers(kind: str) -> None:
    layer, name = make(kind), "weight_hh_l0" if kind in LAYERS else "weight_hh"
    parametrizations.weight_norm(layer, name)
    kept = copy.deepcopy(layer)
    parameters = list(layer.parameters())
    convert(layer)
    assert isinstance(layer, getattr(lstm_fused, kind)) and parametrize.is_parametrized(layer, name)
    assert all(a is b for a, b in zip(layer.parameters(), parameters, strict=True))
    assert_same(layer, kept, example(kind))
    assert_same(copy.deepcopy(layer), kept, example(kind))
    revert(layer)
    assert isinstance(layer, getattr(nn, kind)) and parametrize.is_parametrized(layer, name)
    assert_same(layer, kept, example(kind))
    convert(layer)
    x = example(kind)
    parametrize.remove_parametrizations(layer, name)
    assert type(layer) is getattr(lstm_fused, kind)
    for a, b in zip(tensors(layer(x)), tensors(kept(x)), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_pruned_layers(kind: str) -> None:
    layer, name = make(kind), "weight_hh_l0" if kind in LAYERS else "weight_hh"
    prune.random_unstructured(layer, name, amount=0.5)
    x = example(kind)
    expected = [r.detach() for r in tensors(layer(x))]
    convert(layer)
    for a, b in zip(tensors(layer(x)), expected, strict=True):
        assert_close(a, b)
    prune.remove(layer, name)
    for a, b in zip(tensors(layer(x)), expected, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("change", [convert, revert])
@pytest.mark.parametrize("model", [None, "model", [nn.LSTM(I, H)], nn.LSTM])
def test_only_modules(change: Callable[[Any], Any], model: Any) -> None:
    with pytest.raises(TypeError, match=f"{change.__name__}: expected model to be a torch.nn.Module, got"):
        change(model)
