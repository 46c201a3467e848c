"""Constructor, parameters, checkpoints and copies are torch.nn's; weights are looked up at each call."""

from __future__ import annotations

import copy
import io
import pickle
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pairs import CELLS, F64, LAYERS, assert_close, assert_same, pair, states, tensors
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import lstm_fused
from lstm_fused import functional

T, B, I, H, P = 4, 3, 5, 7, 2

pytestmark = pytest.mark.filterwarnings("ignore:dropout option adds dropout")

# -- construction ------------------------------------------------------------------------

CONSTRUCTIONS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((5, 7), {}),
    ((5, 7, 2), {"bidirectional": True}),
    ((5, 7, 2, False, True, 0.5, True), {}),
    ((1, 1), {"bias": False}),
    ((5, 7), {"dtype": F64, "device": "cpu"}),
    ((), {"input_size": 3, "hidden_size": 4, "num_layers": 3, "dropout": 0.25, "batch_first": True}),
    ((5, 7), {"bidirectional": 1}),
    ((5, 7), {"device": "meta"}),
]
PROJECTIONS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((5, 7, 3), {"proj_size": 3, "bias": False, "bidirectional": True}),
    ((5, 7, 1, True, False, 0.0, False, 2), {}),
]


@pytest.mark.parametrize(
    ("kind", "args", "options"),
    [(kind, *c) for kind in LAYERS for c in CONSTRUCTIONS] + [("LSTM", *c) for c in PROJECTIONS],
)
def test_construction(kind: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    assert_constructed_alike(kind, args, options)


@pytest.mark.parametrize(
    ("args", "options"),
    [((5, 7), {}), ((5, 7, False), {}), ((5, 7), {"dtype": F64}), ((5, 7, None), {}), ((5, 0), {})],
)
@pytest.mark.parametrize("kind", CELLS)
def test_construction_of_cells(kind: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    assert_constructed_alike(kind, args, options)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def assert_constructed_alike(kind: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    made = []
    for library in (lstm_fused, nn):
        torch.manual_seed(3)
        module = getattr(library, kind)(*args, **options)
        made.append((module, torch.rand(1)))
    (ours, after), (theirs, their_after) = made
    assert torch.equal(after, their_after), "the same number of random draws"
    ours_state, theirs_state = ours.state_dict(), theirs.state_dict()
    assert list(ours_state) == list(theirs_state)
    for name, value in theirs_state.items():
        assert ours_state[name].shape == value.shape and ours_state[name].dtype == value.dtype
        assert value.is_meta or torch.equal(ours_state[name], value)
    assert repr(ours) == repr(theirs) and ours.extra_repr() == theirs.extra_repr()
    if kind in LAYERS:
        assert [[w.shape for w in ws] for ws in ours.all_weights] == [
            [w.shape for w in ws] for ws in theirs.all_weights
        ]
        assert ours.flatten_parameters() is None
    theirs.reset_parameters(), ours.reset_parameters()


BAD_CONSTRUCTIONS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((0, 7), {}),
    ((5, -1), {}),
    ((5.0, 7), {}),
    ((5, 7.0), {}),
    ((5, 7, 0), {}),
    ((5, 7, "a"), {}),
    ((5, 7), {"dropout": 2}),
    ((5, 7), {"dropout": True}),
    ((5, 7), {"dropout": "a"}),
    ((5, 7), {"bias": 1}),
    ((5, 7), {"batch_first": 1}),
    ((5, 7), {"proj_size": -1}),
    ((5, 7), {"proj_size": 7}),
    ((5, 7), {"unknown": 3}),
    ((5, 7), {"mode": "GRU"}),
    ((5,), {}),
]


@pytest.mark.parametrize(("args", "options"), BAD_CONSTRUCTIONS)
@pytest.mark.parametrize("kind", LAYERS)
def test_wrong_construction_fails_as_torch_does(kind: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(Exception) as theirs:  # noqa: PT011, the type is what is compared
        getattr(nn, kind)(*args, **options)
    with pytest.raises(theirs.type, match=f"^{re.escape(str(theirs.value))}$"):
        getattr(lstm_fused, kind)(*args, **options)


def test_dropout_on_one_layer_warns() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lstm_fused.LSTM(5, 7, dropout=0.5)
    assert "dropout option adds dropout after all but last" in str(caught[0].message)


# -- checkpoints and copies --------------------------------------------------------------


@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_checkpoints_move_both_ways(kind: str) -> None:
    options = {"num_layers": 2, "bidirectional": True} if kind in LAYERS else {}
    x = torch.randn(*((B, I) if kind in CELLS else (T, B, I)), dtype=F64)
    for source, target in ((lstm_fused, nn), (nn, lstm_fused)):
        saved = getattr(source, kind)(I, H, dtype=F64, **options)
        loaded = getattr(target, kind)(I, H, dtype=F64, **options)
        file = io.BytesIO()
        torch.save(saved.state_dict(), file)
        file.seek(0)
        assert loaded.load_state_dict(torch.load(file)) == nn.Module().load_state_dict({})  # all keys matched
        ours, theirs = (saved, loaded) if source is lstm_fused else (loaded, saved)
        assert_same(ours, theirs, x)


def by_torch_save(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    copied: nn.Module = torch.load(file, weights_only=False)
    return copied


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), by_torch_save],
    ids=["deepcopy", "pickle", "save"],
)
@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_copies_are_whole_and_independent(kind: str, duplicate: Callable[[nn.Module], nn.Module]) -> None:
    ours, theirs = pair(kind, I, H)
    x = torch.randn(*((B, I) if kind in CELLS else (T, B, I)), dtype=F64)
    copied = duplicate(ours)
    assert type(copied) is type(ours) and repr(copied) == repr(ours)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    assert_same(copied, theirs, x)


# -- weights are looked up at each call --------------------------------------------------


def old_weight_norm(module: nn.Module, name: str) -> nn.Module:
    return nn.utils.weight_norm(module, name)


def orthogonal(module: nn.Module, name: str) -> nn.Module:
    return parametrizations.orthogonal(module, name)


def pruned(module: nn.Module, name: str) -> nn.Module:
    prune.l1_unstructured(module, name, amount=0.5)
    return module


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(
    "wrap",
    [parametrizations.weight_norm, parametrizations.spectral_norm, orthogonal, old_weight_norm, pruned],
    ids=lambda f: f"{f.__module__.rpartition('.')[2]}.{f.__name__}",
)
@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_parametrised_weights(kind: str, wrap: Callable[[nn.Module, str], nn.Module]) -> None:
    ours, theirs = pair(kind, I, H)
    suffix = "_l0" if kind in LAYERS else ""
    for name in (f"weight_hh{suffix}", f"weight_ih{suffix}"):
        for module in (ours, theirs):
            torch.manual_seed(1)
            wrap(module, name)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(*((B, I) if kind in CELLS else (T, B, I)), dtype=F64)
    # In training spectral_norm iterates whenever a weight is read, which torch's layer does more than once.
    ours.eval(), theirs.eval()
    assert_same(ours, theirs, x)
    with torch.no_grad():
        for module in (ours, theirs):
            for parameter in module.parameters():
                parameter.mul_(0.5)
    assert_same(ours, theirs, x)


def old_spectral_norm(module: nn.Module, name: str) -> nn.Module:
    return nn.utils.spectral_norm(module, name)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:.*spectral_norm:FutureWarning")
@pytest.mark.parametrize("wrap", [old_weight_norm, old_spectral_norm, pruned], ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", LAYERS)
def test_weights_made_by_hooks_are_those_of_now(kind: str, wrap: Callable[[nn.Module, str], nn.Module]) -> None:
    ours = wrap(pair(kind, I, H)[0], "weight_hh_l0").eval()
    x, hx = torch.randn(T, B, I, dtype=F64), states(kind, 1, B, H=H)
    ours(x, hx)  # the weight of before
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(0.5)
    step, frozen = ours.step(x[0], hx)[0], lstm_fused.freeze(ours)
    with torch.no_grad():
        wanted = ours(x, hx)[0]
        assert torch.equal(frozen(x, hx)[0], wanted)
    torch.testing.assert_close(step, wanted[0])


def set_data(module: nn.Module, name: str, value: Tensor) -> None:
    getattr(module, name).data.copy_(value)  # does not bump the version counter


def set_attribute(module: nn.Module, name: str, value: Tensor) -> None:
    setattr(module, name, nn.Parameter(value.clone()))


def set_by_load(module: nn.Module, name: str, value: Tensor) -> None:
    module.load_state_dict({**module.state_dict(), name: value.clone()}, assign=True)


@pytest.mark.parametrize("change", [set_data, set_attribute, set_by_load])
@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_changed_weights_are_seen(kind: str, change: Callable[[nn.Module, str, Tensor], None]) -> None:
    ours, theirs = pair(kind, I, H)
    x = torch.randn(*((B, I) if kind in CELLS else (T, B, I)), dtype=F64)
    assert_same(ours, theirs, x)
    for name, parameter in list(theirs.named_parameters()):
        value = torch.randn_like(parameter)
        for module in (ours, theirs):
            change(module, name, value)
        assert_same(ours, theirs, x)


@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_moved_to_another_dtype_and_back(kind: str) -> None:
    ours, theirs = pair(kind, I, H)
    x = torch.randn(*((B, I) if kind in CELLS else (T, B, I)), dtype=F64)
    ours.to(torch.bfloat16), theirs.to(torch.bfloat16)
    assert tensors(ours(x.to(torch.bfloat16)))[0].dtype == torch.bfloat16
    assert_same(ours.double(), theirs.double(), x)


@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_functional_call_and_shared_weights(kind: str) -> None:
    ours, theirs = pair(kind, H, H)
    x = torch.randn(*((B, H) if kind in CELLS else (T, B, H)), dtype=F64)
    replacements = {name: torch.randn_like(p) for name, p in theirs.named_parameters()}
    results = [torch.func.functional_call(module, replacements, (x,)) for module in (ours, theirs)]
    for a, b in zip(tensors(results[0]), tensors(results[1]), strict=True):
        assert_close(a, b)
    suffix = "_l0" if kind in LAYERS else ""
    for module in (ours, theirs):  # one matrix as both, so its gradients add up
        setattr(module, f"weight_ih{suffix}", getattr(module, f"weight_hh{suffix}"))
    assert_same(ours, theirs, x)


def test_helpers_of_the_base_class() -> None:
    x, hx = torch.randn(T, B, I, dtype=F64), states("LSTM", 2, B, H=H, P=P)
    for library in (lstm_fused, nn):
        module = library.LSTM(I, H, proj_size=P, num_layers=2, dtype=F64)
        assert module.get_expected_hidden_size(x, None) == (2, B, P)
        assert module.get_expected_cell_size(x, None) == (2, B, H)
        module.check_forward_args(x, hx, None)
        with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size"):
            module.check_forward_args(x, (hx[0], hx[0]), None)
        h, c = module.permute_hidden(hx, torch.tensor([2, 0, 1]))
        assert torch.equal(h, hx[0][:, [2, 0, 1]]) and torch.equal(c, hx[1][:, [2, 0, 1]])
        assert module.permute_hidden(hx, None) is hx


# -- functional --------------------------------------------------------------------------


def test_functional_takes_the_parameters_in_order() -> None:
    x = torch.randn(T, B, I, dtype=F64)
    lstm = nn.LSTM(I, H, 2, bidirectional=True, proj_size=P, dtype=F64)
    output, (h_n, c_n) = functional.lstm(x, None, list(lstm.parameters()), num_layers=2, bidirectional=True)
    expected, (h, c) = lstm(x)
    for a, b in ((output, expected), (h_n, h), (c_n, c)):
        assert_close(a, b)

    gru = nn.GRU(I, H, 2, bias=False, dtype=F64)
    for a, b in zip(functional.gru(x, None, tuple(gru.parameters()), num_layers=2), gru(x), strict=True):
        assert_close(a, b)

    h0, c0 = states("LSTM", B, H=H)
    lstm_cell, gru_cell = nn.LSTMCell(I, H, dtype=F64), nn.GRUCell(I, H, dtype=F64)
    for a, b in zip(
        functional.lstm_cell(x[0], (h0, c0), list(lstm_cell.parameters())),
        lstm_cell(x[0], (h0, c0)),
        strict=True,
    ):
        assert_close(a, b)
    assert_close(functional.gru_cell(x[0], h0, list(gru_cell.parameters())), gru_cell(x[0], h0))
