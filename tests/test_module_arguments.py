"""Wrong arguments raise what torch.nn raises; where that says little, an error that names the argument."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pairs import CELLS, F64, LAYERS, pair
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

import lstm_fused
from lstm_fused import functional


def zeros(*shape: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.zeros(*shape, dtype=dtype)


# Arguments of a layer (5, 7); `S(...)` makes the state of the kind.
Make = Callable[..., Any]
AS_TORCH: dict[str, Callable[[Make], tuple[Any, ...]]] = {
    "1-D input": lambda S: (zeros(5),),
    "4-D input": lambda S: (zeros(2, 2, 2, 5),),
    "input size": lambda S: (zeros(4, 3, 6),),
    "input size, unbatched": lambda S: (zeros(4, 6),),
    "input dtype": lambda S: (zeros(4, 3, 5, dtype=torch.float32),),
    "input of integers": lambda S: (zeros(4, 3, 5, dtype=torch.int64),),
    "no time": lambda S: (zeros(0, 3, 5),),
    "no time, unbatched": lambda S: (zeros(0, 5),),
    "no time, no rows": lambda S: (zeros(0, 0, 5),),
    "hx of another batch": lambda S: (zeros(4, 3, 5), S(1, 2, 7)),
    "hx of more layers": lambda S: (zeros(4, 3, 5), S(2, 3, 7)),
    "hx of another size": lambda S: (zeros(4, 3, 5), S(1, 3, 8)),
    "2-D hx": lambda S: (zeros(4, 3, 5), S(3, 7)),
    "3-D hx, unbatched": lambda S: (zeros(4, 5), S(1, 1, 7)),
}


def state_maker(kind: str) -> Make:
    def make(*shape: int) -> Any:
        return (zeros(*shape), zeros(*shape)) if kind.startswith("LSTM") else zeros(*shape)

    return make


@pytest.mark.parametrize("what", AS_TORCH)
@pytest.mark.parametrize("kind", LAYERS)
def test_wrong_arguments_fail_as_torch_does(kind: str, what: str) -> None:
    ours, theirs = pair(kind, 5, 7)
    args = AS_TORCH[what](state_maker(kind))
    with pytest.raises(Exception) as their_error:  # noqa: PT011, the type is what is compared
        theirs(*args)
    with pytest.raises(their_error.type, match=f"^{re.escape(str(their_error.value))}"):
        ours(*args)


CELL_AS_TORCH: dict[str, Callable[[Make], tuple[Any, ...]]] = {
    "0-D input": lambda S: (torch.tensor(0.0, dtype=F64),),
    "3-D input": lambda S: (zeros(2, 2, 5),),
    "input size": lambda S: (zeros(3, 6),),
    "input size, unbatched": lambda S: (zeros(6),),
    "hx of another batch": lambda S: (zeros(3, 5), S(2, 7)),
    "hx of one row": lambda S: (zeros(3, 5), S(1, 7)),
    "hx of another size": lambda S: (zeros(3, 5), S(3, 8)),
    "3-D hx": lambda S: (zeros(3, 5), S(1, 3, 7)),
    "1-D hx": lambda S: (zeros(1, 5), S(7)),
    "2-D hx, unbatched": lambda S: (zeros(5), S(1, 7)),
}


@pytest.mark.parametrize("what", CELL_AS_TORCH)
@pytest.mark.parametrize("kind", CELLS)
def test_wrong_arguments_of_cells_fail_as_torch_does(kind: str, what: str) -> None:
    ours, theirs = pair(kind, 5, 7)
    args = CELL_AS_TORCH[what](state_maker(kind))
    with pytest.raises(Exception) as their_error:  # noqa: PT011
        theirs(*args)
    with pytest.raises(their_error.type, match=f"^{re.escape(str(their_error.value))}"):
        ours(*args)


X = zeros(4, 3, 5)
H0 = zeros(1, 3, 7)
STEPS = torch.tensor([3, 3, 1])

# Where torch's own error comes from somewhere inside, or is none: ours names the argument.
BETTER: list[tuple[str, str, tuple[Any, ...], type[Exception], str]] = [
    ("LSTM", "input None", (None,), TypeError, "input to be a Tensor.*NoneType"),
    ("LSTM", "input list", ([1.0],), TypeError, "input to be a Tensor.*list"),
    ("GRU", "input str", ("abc",), TypeError, "input to be a Tensor.*str"),
    ("LSTM", "hx one tensor", (X, H0), TypeError, "'hx' must be tuple.*Tensor"),
    ("LSTM", "hx a number", (X, 3), TypeError, "'hx' must be tuple.*int"),
    ("LSTM", "hx empty", (X, ()), RuntimeError, "hx.*0 elements"),
    ("LSTM", "hx of one", (X, (H0,)), RuntimeError, "lstm expects two hidden states.*hx.*1 elements"),
    ("LSTM", "hx of three", (X, (H0, H0, H0)), RuntimeError, "lstm expects two hidden states.*3 elements"),
    ("LSTM", "c_0 None", (X, (H0, None)), TypeError, r"hx\[1\] to be a Tensor.*NoneType"),
    ("LSTM", "h_0 None, c_0 flat", (X, (zeros(7), None)), TypeError, r"hx\[1\] to be a Tensor.*NoneType"),
    ("LSTM", "c_0 of another size", (X, (H0, zeros(1, 3, 8))), RuntimeError, r"hidden\[1\] size.*hx\[1\]"),
    ("GRU", "hx tuple", (X, (H0, H0)), TypeError, "hx to be a Tensor, got tuple"),
    ("LSTM", "h_0 dtype", (X, (H0.float(), H0)), RuntimeError, "h0|states|hx"),
    ("LSTM", "c_0 dtype", (X, (H0, H0.float())), RuntimeError, "c0|states|hx"),
    ("GRU", "h_0 dtype", (X, H0.float()), RuntimeError, "h0|states|hx"),
    ("LSTM", "input on meta", (X.to("meta"),), RuntimeError, "device"),
    ("GRU", "h_0 on meta", (X, H0.to("meta")), RuntimeError, "device"),
    (
        "LSTM",
        "packed hx batch",
        (PackedSequence(zeros(7, 5), STEPS), (zeros(1, 4, 7),) * 2),
        RuntimeError,
        "hidden.0.",
    ),
    (
        "GRU",
        "packed hx batch",
        (PackedSequence(zeros(7, 5), STEPS), zeros(1, 2, 7)),
        RuntimeError,
        "hidden size",
    ),
    ("GRU", "packed hx 2-D", (PackedSequence(zeros(7, 5), STEPS), zeros(3, 7)), RuntimeError, "hx"),
    (
        "LSTM",
        "packed size",
        (PackedSequence(zeros(7, 6), STEPS),),
        RuntimeError,
        r"input_size. Expected 5, got 6",
    ),
    ("LSTM", "packed 3-D", (PackedSequence(zeros(7, 1, 5), STEPS),), RuntimeError, "2 dimensions, got 3"),
    (
        "LSTM",
        "packed dtype",
        (PackedSequence(zeros(7, 5).float(), STEPS),),
        ValueError,
        "input dtype .torch.float32",
    ),
    ("LSTM", "packed rows few", (PackedSequence(zeros(6, 5), STEPS),), RuntimeError, "batch_sizes"),
    ("LSTM", "packed rows many", (PackedSequence(zeros(8, 5), STEPS),), RuntimeError, "batch_sizes"),
    (
        "GRU",
        "packed rising",
        (PackedSequence(zeros(7, 5), torch.tensor([1, 3, 3])),),
        RuntimeError,
        "batch_sizes",
    ),
    (
        "GRU",
        "packed negative",
        (PackedSequence(zeros(3, 5), torch.tensor([4, -1])),),
        RuntimeError,
        "batch_sizes",
    ),
    (
        "LSTM",
        "packed empty",
        (PackedSequence(zeros(0, 5), torch.empty(0, dtype=torch.int64)),),
        RuntimeError,
        "T >= 1",
    ),
    ("LSTM", "packed int32", (PackedSequence(zeros(7, 5), STEPS.int()),), RuntimeError, "batch_sizes"),
    ("LSTMCell", "input None", (None,), TypeError, "input to be a Tensor.*NoneType"),
    ("LSTMCell", "hx one tensor", (X[0], H0[0]), TypeError, "'hx'.* must be tuple of Tensors.*not Tensor"),
    (
        "LSTMCell",
        "hx of one",
        (X[0], (H0[0],)),
        RuntimeError,
        "lstm_cell expects two hidden states.*1 elements",
    ),
    ("GRUCell", "hx tuple", (X[0], (H0[0],)), TypeError, "hx to be a Tensor, got tuple"),
    ("LSTMCell", "input dtype", (X[0].float(),), RuntimeError, "input|dtype"),
    ("GRUCell", "h_0 dtype", (X[0], H0[0].float()), RuntimeError, "h0|states|hx"),
    (
        "GRUCell",
        "input packed",
        (PackedSequence(zeros(7, 5), STEPS),),
        TypeError,
        "input to be a Tensor.*PackedSeq",
    ),
]


@pytest.mark.parametrize(
    ("kind", "args", "error", "message"),
    [pytest.param(k, *rest, id=f"{k}-{what}") for k, what, *rest in BETTER],
)
def test_wrong_arguments_are_named(kind: str, args: tuple[Any, ...], error: type[Exception], message: str) -> None:
    ours, _ = pair(kind, 5, 7)
    with pytest.raises(error, match=message):
        ours(*args)


def test_unsupported_dtype_is_named() -> None:
    ours = lstm_fused.LSTM(5, 7, dtype=torch.complex64)
    with pytest.raises(RuntimeError, match=r"(?i)complex"):
        ours(torch.zeros(4, 3, 5, dtype=torch.complex64))


def broken(change: Callable[[list[Tensor]], list[Tensor]]) -> list[Tensor]:
    return change([zeros(28, 5), zeros(28, 7), zeros(28), zeros(28)])


@pytest.mark.parametrize(
    ("weights", "options", "error", "message"),
    [
        ([], {}, ValueError, "weights: expected.*got 0 tensors"),
        (broken(lambda w: w[:1]), {}, ValueError, "weights: expected.*got 1 tensors"),
        (broken(lambda w: w[:3]), {"num_layers": 2}, ValueError, "weights: .*2 layers.*got 3 tensors"),
        (broken(lambda w: w + w), {}, ValueError, "weights: expected.*got 8 tensors"),
        (broken(lambda w: w), {"num_layers": 0}, ValueError, "num_layers must be greater than zero, got 0"),
        (broken(lambda w: [w[2], *w[1:]]), {}, RuntimeError, "weights: expected matrices"),
        (broken(lambda w: [w[0], zeros(27, 7), *w[2:]]), {}, RuntimeError, "w_hh|weight"),
        (broken(lambda w: [*w[:3], zeros(27)]), {}, RuntimeError, "b_hh|weight"),
        (broken(lambda w: [*w[:3], zeros(28, dtype=torch.float32)]), {}, RuntimeError, "b_hh|weight"),
        (broken(lambda w: [zeros(27, 5), *w[1:]]), {}, RuntimeError, "w_ih|weight"),
    ],
)
def test_wrong_weights_are_named(
    weights: list[Tensor], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        functional.lstm(zeros(4, 3, 5), None, weights, **options)
