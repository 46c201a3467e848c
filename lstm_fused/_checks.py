"""Argument checks, in the words of torch.nn's layers, so that code which matches on them goes on working.

What the operators check themselves (devices, dtypes of states and weights, the weights' shapes) is left to
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor
from torch._C import _is_any_autocast_enabled

from ._ops import GATES


def pair(name: str, hx: object, argument: str = "hx") -> Sequence[Tensor]:
    """``hx`` of an LSTM: a tuple (or list) of two. (torch.nn.LSTM fails on ``hx[1]`` with an IndexError or later.)"""
    if not isinstance(hx, (tuple, list)):
        kind = type(hx).__name__
        raise TypeError(f"{name}(): argument '{argument}' must be tuple of Tensors (h_0, c_0), not {kind}")
    if len(hx) != 2:
        raise RuntimeError(f"{name} expects two hidden states: {argument} must be (h_0, c_0), got {len(hx)} elements")
    return hx


def sequence(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    L: int,
    bidirectional: bool,
    batch_first: bool,
) -> None:
    """Checks ``input`` [T, B, I], [B, T, I] or [T, I], the number of weights, and ``states`` as given."""
    if not isinstance(input, Tensor):
        raise TypeError(
            f"{cell.upper()}: Expected input to be a Tensor or a PackedSequence, got {type(input).__name__}"
        )
    shape = input.shape
    dims = len(shape)
    if dims != 3 and dims != 2:
        raise ValueError(f"{cell.upper()}: Expected input to be 2D or 3D, got {dims}D instead")
    I, H, P = _sizes(cell, weights, L, bidirectional)
    if input.dtype != weights[0].dtype:
        _wrong_dtype(input, weights[0])
    if shape[-1] != I:
        _wrong_input_size(input, I)
    if states:
        rows = 2 * L if bidirectional else L
        batch = () if dims == 2 else (shape[0],) if batch_first else (shape[1],)
        _states(cell, states, (rows, *batch, P), (rows, *batch, H))
    if shape[1 if batch_first and dims == 3 else 0] == 0:
        raise RuntimeError(
            "Expected sequence length to be larger than 0 in RNN: input must have at least one time step, "
            f"got shape {list(shape)}"
        )


def padded(
    cell: str,
    input: object,
    lengths: object,
    resets: object,
    reset_state: Sequence[Tensor],
    weights: Sequence[Tensor],
    L: int,
    bidirectional: bool,
) -> None:
    """Checks what comes with ``lengths`` or ``resets``, but for lengths' shape and values: the operator does that."""
    if not isinstance(input, Tensor):
        got = type(input).__name__
        raise TypeError(f"{cell.upper()}: Expected input to be a padded Tensor beside lengths or resets, got {got}")
    if input.dim() != 3:
        raise ValueError(
            f"{cell.upper()}: Expected input to be 3D beside lengths or resets, got {input.dim()}D instead"
        )
    for name, value, kind in (("lengths", lengths, "int64 [B]"), ("resets", resets, "bool [T, B]")):
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"{cell.upper()}: Expected {name} to be a Tensor, {kind}, got {type(value).__name__}")
    if isinstance(resets, Tensor) and resets.shape != input.shape[:2]:
        raise RuntimeError(f"resets: expected shape {list(input.shape[:2])}, got {list(resets.shape)}")
    if not reset_state:
        return
    if resets is None:
        raise ValueError(f"{cell.upper()}: Expected resets beside reset_state, got None")
    _, H, P = _sizes(cell, weights, L, bidirectional)
    for k, (state, size) in enumerate(zip(reset_state, (P, H), strict=False)):
        name, expected = f"reset_state{_index(cell, k)}", (2 * L if bidirectional else L, size)
        if not isinstance(state, Tensor):
            raise TypeError(f"{cell.upper()}: Expected {name} to be a Tensor, got {type(state).__name__}")
        if state.shape != expected:
            raise RuntimeError(f"Expected {name} size {expected}, got {list(state.shape)}")


def packed(
    cell: str,
    data: Tensor,
    batch_sizes: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    L: int,
    bidirectional: bool,
) -> None:
    """As ``sequence``, for a PackedSequence; how ``batch_sizes`` fit ``data`` is left to the operator."""
    I, H, P = _sizes(cell, weights, L, bidirectional)
    if data.dtype != weights[0].dtype:
        _wrong_dtype(data, weights[0])
    if data.dim() != 2:
        raise RuntimeError(f"input must have 2 dimensions, got {data.dim()} (the data of a PackedSequence)")
    if data.shape[1] != I:
        _wrong_input_size(data, I)
    if batch_sizes.dim() != 1 or batch_sizes.shape[0] == 0:
        raise RuntimeError(
            "Expected sequence length to be larger than 0 in RNN: batch_sizes of the PackedSequence must "
            f"have shape [T] with T >= 1, got {list(batch_sizes.shape)}"
        )
    if states:
        # While a graph is traced, how many rows there are is not known; the operator will check.
        traced = torch.compiler.is_compiling()
        rows, B = 2 * L if bidirectional else L, states[0].shape[1] if traced else int(batch_sizes[0])
        _states(cell, states, (rows, B, P), (rows, B, H))


def step(cell: str, input: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Checks ``input`` [B, I] or [I] of a cell, and ``states`` [B, H] or [H] against it."""
    name = f"{cell.upper()}Cell"
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}: Expected input to be a Tensor, got {type(input).__name__}")
    shape = input.shape
    dims = len(shape)
    if dims != 2 and dims != 1:
        raise ValueError(f"{name}: Expected input to be 1D or 2D, got {dims}D instead")
    I, H, _ = _sizes(cell, weights, 1, False)
    if shape[-1] != I:
        raise RuntimeError(f"input has inconsistent input_size: got {shape[-1]} expected {I}")
    expected = (shape[0], H) if dims == 2 else (H,)
    for k, state in enumerate(states):
        if not isinstance(state, Tensor) or state.shape != expected:
            _only_tensors(name, cell, states)
            _wrong_cell_state(cell, k, state, shape[0] if dims == 2 else None, H)


def _sizes(cell: str, weights: Sequence[Tensor], L: int, bidirectional: bool) -> tuple[int, int, int]:
    """Input size, hidden size and output size, as the first two weights have them."""
    if L < 1:
        raise ValueError(f"num_layers must be greater than zero, got {L}")
    count, remainder = divmod(len(weights), 2 * L if bidirectional else L)
    if remainder or not 2 <= count <= 5:
        raise ValueError(
            f"weights: expected w_ih, w_hh and optionally b_ih, b_hh, w_hr for each of {L} layers in "
            f"{2 if bidirectional else 1} directions, got {len(weights)} tensors"
        )
    w_ih, w_hh = weights[0].shape, weights[1].shape
    if len(w_ih) != 2 or len(w_hh) != 2:
        raise RuntimeError(f"weights: expected matrices w_ih and w_hh first, got shapes {list(w_ih)}, {list(w_hh)}")
    return w_ih[1], w_ih[0] // GATES[cell], w_hh[1]


def _states(cell: str, states: Sequence[Tensor], h: tuple[int, ...], c: tuple[int, ...]) -> None:
    for state, expected in zip(states, (h, c), strict=False):
        if not isinstance(state, Tensor) or state.shape != expected:
            _wrong_states(cell, states, (h, c))


def _index(cell: str, k: int) -> str:
    return f"[{k}]" if cell == "lstm" else ""


def _wrong_states(cell: str, states: Sequence[Tensor], expected: Sequence[tuple[int, ...]]) -> NoReturn:
    _only_tensors(cell.upper(), cell, states)
    dims, got = len(expected[0]), [s.dim() for s in states]
    if set(got) != {dims}:
        batched = "batched 3-D" if dims == 3 else "unbatched 2-D"
        if cell == "gru":
            raise RuntimeError(f"For {batched} input, hx should also be {dims}-D but got {got[0]}-D tensor")
        raise RuntimeError(
            f"For {batched} input, hx and cx should also be {dims}-D but got ({got[0]}-D, {got[1]}-D) tensors"
        )
    k = 0 if states[0].shape != expected[0] else 1
    index, shape = _index(cell, k), list(states[k].shape)
    raise RuntimeError(f"Expected hidden{index} size {expected[k]}, got {shape} (argument hx{index})")


def _only_tensors(name: str, cell: str, states: Sequence[Tensor]) -> None:
    for k, state in enumerate(states):
        if not isinstance(state, Tensor):
            got = type(state).__name__
            raise TypeError(f"{name}: Expected hx{_index(cell, k)} to be a Tensor, got {got}")


def _wrong_dtype(input: Tensor, weight: Tensor) -> None:
    if not _is_any_autocast_enabled():
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({input.dtype})"
        )


def _wrong_input_size(input: Tensor, expected: int) -> NoReturn:
    raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {expected}, got {input.shape[-1]}")


def _wrong_cell_state(cell: str, k: int, state: Tensor, batch: int | None, H: int) -> NoReturn:
    name, index = f"{cell.upper()}Cell", _index(cell, k)
    if state.dim() not in (1, 2):
        called = f"hx{index}" if index else "hidden"
        raise ValueError(f"{name}: Expected {called} to be 1D or 2D, got {state.dim()}D instead")
    shape: Sequence[int] = state.shape if batch is not None else (1, *state.shape)
    rows = 1 if batch is None else batch
    argument = f"(argument hx{index}: expected {[H] if batch is None else [batch, H]}, got {list(state.shape)})"
    if shape[0] != rows:
        raise RuntimeError(f"Input batch size {rows} doesn't match hidden{k} batch size {shape[0]} {argument}")
    raise RuntimeError(f"hidden{k} has inconsistent hidden_size: got {shape[1]}, expected {H} {argument}")
