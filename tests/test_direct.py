"""Calls without the way through ``torch.ops``: the same results and errors, and left to it where it has a say."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import lstm_fused
from lstm_fused import _direct

T, B, I, H = 4, 3, 5, 8
X, LENGTHS = torch.randn(T, B, I), torch.tensor([2, 4, 1])
RESETS = torch.rand(T, B) < 0.5
OPERATORS = {name: getattr(torch.ops.lstm_fused, name).default for name in ("layer", "packed_layer", "step")}


def calls(kind: str) -> dict[str, tuple[str, tuple[Any, ...]]]:
    """Operators' names and arguments."""
    cell = kind.lower()
    weights = getattr(lstm_fused, kind)(I, H)._weights()
    states = [torch.randn(1, B, H) for _ in range(2 if kind == "LSTM" else 1)]
    clips = (0.5 if kind == "LSTM" else None, 0.5)
    packed = torch.ops.lstm_fused.pack(cell, weights, False)
    return {
        "plain": ("layer", (cell, X, (), weights, None, False, None, None, False)),
        "everything": ("layer", (cell, X, states, weights, LENGTHS, False, *clips, False)),
        "resets": ("layer", (cell, X, states, weights, None, False, None, None, False, RESETS)),
        "defaults": ("layer", (cell, X, tuple(states), tuple(weights), None, False, None, None, False)),
        "packed": ("packed_layer", (cell, X, states, weights, packed, lstm_fused.runtime.isa(), None, False, None)),
        "step": ("step", (cell, X[0], [s[0] for s in states], weights)),
    }


def replaced(arguments: tuple[Any, ...], i: int, value: object) -> tuple[Any, ...]:
    return (*arguments[:i], value, *arguments[i + 1 :])


each_call = pytest.mark.parametrize("call", sorted(calls("LSTM")))
each_kind = pytest.mark.parametrize("kind", ["LSTM", "GRU"])


@each_kind
@each_call
def test_results_are_those_of_torch_ops(kind: str, call: str) -> None:
    name, arguments = calls(kind)[call]
    with torch.no_grad():
        results = getattr(_direct, name)(*arguments)
        expected = OPERATORS[name](*arguments)
    assert type(results) is type(expected) is list
    assert len(results) == len(expected)
    for a, b in zip(results, expected, strict=True):
        assert torch.equal(a, b)


@each_kind
def test_gradients_are_those_of_torch_ops(kind: str) -> None:
    name, arguments = calls(kind)["everything"]
    x = X.clone().requires_grad_()
    given, weights = replaced(arguments, 1, x), arguments[3]

    def gradients(way: Callable[..., list[Tensor]]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(sum(r.square().sum() for r in way(*given)), [x, *weights])

    for a, b in zip(gradients(getattr(_direct, name)), gradients(OPERATORS[name]), strict=True):
        assert torch.equal(a, b)


def test_states_are_reordered() -> None:
    states = [torch.randn(2, B, H, requires_grad=True), torch.randn(2, B, I)]
    order = torch.tensor([2, 0, 1])
    results = _direct.reorder(states, order)
    for a, b in zip(results, states, strict=True):
        assert torch.equal(a, b[:, order])
    seed = torch.randn(2, B, H)
    (gradient,) = torch.autograd.grad(results[0], states[0], seed)
    assert torch.equal(gradient[:, order], seed)
    for wrong in (order + 1, order - 1):
        for some in (states[:1], states[1:]):
            with pytest.raises((IndexError, RuntimeError)):
                _direct.reorder(some, wrong)
    assert _direct.reorder(states, None) is _direct.reorder(states) is None
    with TorchFunctionMode():
        assert _direct.reorder(states, order) is None


@each_call
def test_errors_are_those_of_torch_ops(call: str) -> None:
    name, arguments = calls("LSTM")[call]
    wrong = replaced(arguments, 1, arguments[1][..., :-1])
    with torch.no_grad():
        with pytest.raises(RuntimeError, match="w_ih") as ours:
            getattr(_direct, name)(*wrong)
        with pytest.raises(RuntimeError) as theirs:
            OPERATORS[name](*wrong)
    assert str(ours.value) == str(theirs.value)


class Subclass(Tensor):
    """Sees the functions that are called with it."""

    seen: ClassVar[list[Any]] = []

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(function)
        return super().__torch_function__(function, types, args, kwargs)


@each_call
def test_what_others_have_a_say_in_is_left_to_torch_ops(call: str) -> None:
    name, arguments = calls("LSTM")[call]
    direct: Callable[..., Any] = getattr(_direct, name)
    x = arguments[1].as_subclass(Subclass)
    assert direct(*replaced(arguments, 1, x)) is None
    assert (
        direct(*replaced(arguments, 3, [*arguments[3][:-1], arguments[3][-1].detach().as_subclass(Subclass)])) is None
    )
    with TorchFunctionMode():
        assert direct(*arguments) is None


WRONG = [(0, 1), (1, None), (1, "x"), (2, None), (2, [1]), (2, iter([])), (3, X), (4, 1), (5, None), (6, 1), (8, 0)]


@pytest.mark.parametrize(("i", "wrong"), WRONG)
def test_arguments_of_other_kinds_are_left_to_torch_ops(i: int, wrong: object) -> None:
    name, arguments = calls("LSTM")["everything"]
    assert getattr(_direct, name)(*replaced(arguments, i, wrong)) is None


@each_call
def test_another_number_of_arguments_is_left_to_torch_ops(call: str) -> None:
    name, arguments = calls("LSTM")[call]
    assert getattr(_direct, name)(*arguments, *[None] * 4) is None
    assert getattr(_direct, name)(*arguments[:3]) is None
    assert getattr(_direct, name)() is None


class Functions(TorchFunctionMode):
    """Sees the functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    """Sees the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["LSTM", "LSTMCell"])
def test_modules_show_their_call_to_subclasses_and_modes(kind: str) -> None:
    module = getattr(lstm_fused, kind)(I, H)
    x = X if kind == "LSTM" else X[0]
    operator = OPERATORS["layer" if kind == "LSTM" else "step"]
    Subclass.seen.clear()
    module(x.as_subclass(Subclass))
    assert operator in Subclass.seen
    for mode in (Functions(), Operators()):
        with mode, torch.no_grad():
            module(x)
        assert operator in mode.seen, mode


def test_modes_see_states_being_reordered() -> None:
    """A mode that traces takes for a constant what it does not see."""
    module = lstm_fused.LSTM(I, H)
    packed = pack_padded_sequence(X, LENGTHS, enforce_sorted=False)
    with (mode := Operators()), torch.no_grad():
        module(packed)
    assert mode.seen == [OPERATORS["layer"], *[torch.ops.aten.index_select.default] * 2]


def test_nothing_is_kept_of_a_call() -> None:
    name, arguments = calls("LSTM")["everything"]
    own = [X.clone(), *arguments[2], *arguments[3]]
    right, wrong = (replaced(arguments, 1, x) for x in (own[0], own[0][..., :-1]))

    def references() -> list[int]:
        gc.collect()  # what errors before have kept
        return [sys.getrefcount(tensor) for tensor in own]

    before = references()
    for _ in range(100):
        with torch.no_grad():
            results = getattr(_direct, name)(*right)
        assert all(sys.getrefcount(r) == 3 for r in results)  # by the list, the loop and the call
        with pytest.raises(RuntimeError):
            getattr(_direct, name)(*wrong)
    assert references() == before
