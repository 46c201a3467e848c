"""A stack of layers on every form of input: padded, packed, unbatched, in segments; dropout in between, autocast.

Shapes: as in ``functional``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch._C import _is_any_autocast_enabled
from torch.nn.functional import dropout as zero_elements
from torch.nn.utils.rnn import PackedSequence

from . import _checks, _device, _onnx, _ops


class Packed(NamedTuple):
    """Weights of every layer as one instruction set's kernels read them, of a module that is frozen."""

    isa: str
    layers: Sequence[Sequence[Tensor]]


LayerOptions = _ops.Options


class Options(NamedTuple):
    """What goes with the weights of a stack."""

    num_layers: int
    dropout: float
    layer: LayerOptions
    packed: Packed | None = None
    return_cells: bool = False
    return_gates: bool = False


def run(
    cell: str,
    input: Any,
    hx: Any,
    weights: Sequence[Tensor],
    options: Options,
    batch_first: bool = False,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_state: Any = None,
) -> Any:
    """``lstm`` or ``gru``, for the modules."""
    result = _one_layer(cell, input, hx, weights, options, batch_first, lengths, resets, reset_state)
    if result:
        return result
    states = _states(cell, hx, "hx")
    if lengths is None and resets is None and reset_state is None:
        rows, final = _sequence(cell, input, states, weights, options, batch_first)
    else:
        restart = _states(cell, reset_state, "reset_state")
        rows, final = _segments(cell, input, states, weights, options, batch_first, lengths, resets, restart)
    final_hx = tuple(final) if cell == "lstm" else final[0]
    if len(rows) == 1:
        return rows[0], final_hx
    kinds = options.return_cells + options.return_gates
    return rows[0], final_hx, *(rows[1 + kind :: kinds] for kind in range(kinds))


def _one_layer(
    cell: str,
    input: Any,
    hx: Any,
    weights: Sequence[Tensor],
    options: Options,
    batch_first: bool,
    lengths: Any,
    resets: Any,
    reset_state: Any,
) -> Any:
    """``run`` of one layer and no more, in as few steps as can be: a single time step is short, and so should be the
    way to it. None where there is more, or where the operator refuses: ``run`` then puts that into torch's words.
    """
    L, _, layer, packed, return_cells, return_gates = options
    if L != 1 or packed or return_cells or return_gates or _is_any_autocast_enabled() or torch.compiler.is_compiling():
        return None
    if type(input) is PackedSequence:
        only = hx is None and lengths is None and resets is None and reset_state is None
        return _one_packed_layer(cell, input, weights, layer) if only else None
    states = _plain_states(cell, hx)
    if states is None or type(input) is not Tensor or input.dim() != 3:
        return None
    cuts: tuple[Tensor, ...] = ()
    if resets is not None or reset_state is not None:
        restart = _plain_states(cell, reset_state)
        if restart is None or type(resets) is not Tensor or resets.dim() != 2 or lengths is not None:
            return None
        cuts = (resets.t() if batch_first else resets, *restart)
    elif lengths is not None and (
        layer.recompute or type(lengths) is not Tensor or not lengths.is_cpu or stays_on_device(lengths)
    ):
        return None
    x = input.transpose(0, 1) if batch_first else input
    try:
        found = _ops.direct_layer(cell, x, states, weights, lengths, *layer, *cuts)
    except RuntimeError:
        return None
    if not found:
        return None
    output = found[0].transpose(0, 1) if batch_first else found[0]
    return output, found[1] if cell == "gru" else (found[1], found[2])


def _one_packed_layer(cell: str, input: PackedSequence, weights: Sequence[Tensor], options: LayerOptions) -> Any:
    """The same on packed input."""
    data, batch_sizes, _, order = input
    try:
        found = _ops.direct_layer(cell, data, (), weights, batch_sizes, *options)
    except RuntimeError:
        return None
    if not found:
        return None
    finals = found[1:]
    if order is not None:
        finals = _ops.direct_reorder(finals, order) or [state.index_select(1, order) for state in finals]
    return input._replace(data=found[0]), finals[0] if cell == "gru" else tuple(finals)


def _plain_states(cell: str, hx: Any) -> tuple[Tensor, ...] | None:
    """``hx`` as operators take states; None where it is no pair."""
    if hx is None:
        return ()
    if cell == "gru":
        return (hx,)
    return hx if type(hx) is tuple and len(hx) == 2 else None


def _states(cell: str, hx: Any, argument: str, caller: str = "lstm") -> Sequence[Tensor]:
    if hx is None:
        return ()
    return _checks.pair(caller, hx, argument) if cell == "lstm" else (hx,)


# What _sequence, _batched, _segments and _layers return: the output, followed by what else has a row for each step and
# is asked for, layer by layer c_t and gates; and the final states.
Rows = tuple[list[Any], Sequence[Tensor]]


def _sequence(
    cell: str,
    input: Any,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    options: Options,
    batch_first: bool,
) -> Rows:
    """Brings every form of input to the one the kernels take, and the results back."""
    L, bidirectional = options.num_layers, options.layer.bidirectional
    if isinstance(input, PackedSequence):
        if _onnx.exporting():
            raise _onnx.unsupported("a PackedSequence", "pass the padded batch and lengths=")
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if L > 1 or states:
            _checks.packed(cell, data, batch_sizes, states, weights, L, bidirectional)
        if sorted_indices is not None:
            states = [s.index_select(1, sorted_indices) for s in states]
        try:
            rows, states = _layers(cell, data, states, weights, batch_sizes, options)
        except RuntimeError:  # what the operator refuses is put into words
            _checks.packed(cell, data, batch_sizes, states, weights, L, bidirectional)
            raise
        if unsorted_indices is not None:
            states = [s.index_select(1, unsorted_indices) for s in states]
        return [PackedSequence(r, batch_sizes, sorted_indices, unsorted_indices) for r in rows], states

    _checks.sequence(cell, input, states, weights, L, bidirectional, batch_first)
    if input.dim() == 3:
        return _batched(cell, input, states, weights, options, batch_first)
    states = [s.unsqueeze(1) for s in states]
    rows, states = _layers(cell, input.unsqueeze(1), states, weights, None, options)
    return [r.squeeze(1) for r in rows], [s.squeeze(1) for s in states]


def _batched(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    options: Options,
    batch_first: bool,
    lengths: Tensor | None = None,
    resets: _ops.Resets | None = None,
) -> Rows:
    if batch_first:
        rows, states = _layers(cell, input.transpose(0, 1), states, weights, lengths, options, resets)
        return [r.transpose(0, 1) for r in rows], states
    return _layers(cell, input, states, weights, lengths, options, resets)


def _segments(
    cell: str,
    input: Any,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    options: Options,
    batch_first: bool,
    lengths: Tensor | None,
    resets: Tensor | None,
    reset_state: Sequence[Tensor],
) -> Rows:
    """Runs what ``lengths`` and ``resets`` leave of a padded batch: each part between them is a row of its own.

    Either alone is the kernels' own affair, but for what does not take it.
    """
    L, bidirectional = options.num_layers, options.layer.bidirectional
    alone = _alone(input, options, batch_first, lengths, resets, reset_state)
    _checks.padded(cell, input, lengths, resets, reset_state, weights, L, bidirectional)
    _checks.sequence(cell, input, states, weights, L, bidirectional, batch_first)
    if _onnx.exporting():
        if resets is not None:
            raise _onnx.unsupported("resets", "run the parts between them apart")
        return _batched(cell, input, states, weights, options, batch_first, lengths)
    if alone:
        return _batched(cell, input, states, weights, options, batch_first, *alone)
    B, T = input.shape[:2] if batch_first else (input.shape[1], input.shape[0])
    if lengths is not None and resets is None and stays_on_device(lengths):
        batch_sizes, data_rows, sources, endings = _device.segments(lengths, T, B, batch_first, L, bidirectional)
        traced = True
    else:
        cut = _ops.segments(_host(lengths), _host(resets), T, B, batch_first, L, bidirectional)
        batch_sizes, (data_rows, sources, endings) = cut[0], (t.to(input.device, non_blocking=True) for t in cut[1:])
        traced = torch.compiler.is_compiling()  # then numbers in tensors decide nothing, and shapes come from states
    nothing_cut = not traced and data_rows.shape[0] == T * B and sources.shape[1] == B
    if nothing_cut and (resets is None or not states or not (resets[:, 0] if batch_first else resets[0]).any()):
        return _batched(cell, input, states, weights, options, batch_first)

    if not states and (reset_state or traced):
        states = _zero_states(cell, input.transpose(0, 1) if batch_first else input, weights, L, bidirectional)
    starts = zip(states, reset_state, strict=True) if reset_state else zip(states)
    initial = [_ops.take_rows(s, sources) for s in starts]
    rows, final = _layers(cell, _ops.take_rows([input], data_rows), initial, weights, batch_sizes, options)

    def padded(row: Tensor) -> Tensor:
        if row.dim() == 2:
            return _ops.put_rows(row, data_rows, input.shape[:2])
        return padded(row.flatten(1)).view(*input.shape[:2], *row.shape[1:])

    before = [s.to(f.dtype) for s, f in zip(states, final, strict=True)] if states and lengths is not None else ()
    ends = zip(final, before, strict=True) if before else zip(final)  # a row without a step ends as it began
    return [padded(r) for r in rows], [_ops.take_rows(e, endings) for e in ends]


def _alone(
    input: Any,
    options: Options,
    batch_first: bool,
    lengths: Tensor | None,
    resets: Tensor | None,
    reset_state: Sequence[Tensor],
) -> tuple[Tensor | None, _ops.Resets | None] | None:
    """``lengths`` or ``resets`` as the operator takes either without the other; None: it does not."""
    if not (isinstance(input, Tensor) and input.dim() == 3) or options.layer.recompute or _onnx.exporting():
        return None
    if lengths is None and isinstance(resets, Tensor) and resets.dim() == 2 and not options.packed:
        before = resets.t() if batch_first else resets
        return None, _ops.Resets(before if before.device == input.device else before.to(input.device), *reset_state)
    if resets is not None or reset_state or options.return_cells or options.return_gates:
        return None
    # Not while compiling: how many rows are kept for backward is the sum of the lengths, which shapes do not tell.
    if not isinstance(lengths, Tensor) or torch.compiler.is_compiling() or stays_on_device(lengths):
        return None
    return lengths if lengths.is_cpu else lengths.cpu(), None


def _host(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.cpu()


def stays_on_device(lengths: Tensor) -> bool:
    """Whether their values are left where they are, and nothing waits for them."""
    return lengths.is_cuda and not torch._C._are_functorch_transforms_active()


def _zero_states(cell: str, x: Tensor, weights: Sequence[Tensor], L: int, bidirectional: bool) -> Sequence[Tensor]:
    """hx for x [T, B, I]."""
    sizes = (weights[1].shape[1], weights[1].shape[0] // _ops.GATES[cell])[: 2 if cell == "lstm" else 1]
    return [x.new_zeros(2 * L if bidirectional else L, x.shape[1], size) for size in sizes]


def _layers(
    cell: str,
    x: Tensor,  # [T, B, I], or packed [N, I]
    states: Sequence[Tensor],  # none, or [L*D, B, P] and for the LSTM [L*D, B, H]
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,  # of packed data, or the lengths of rows
    options: Options,
    resets: _ops.Resets | None = None,  # with the states of all layers, [L*D, *]
) -> Rows:
    if _is_any_autocast_enabled() and _device.autocasts(x):
        return cast(
            Rows, _autocast(_layers, cell, x, states, weights, batch_sizes, options._replace(packed=None), resets)
        )
    L, dropout, layer_options, packed, return_cells, return_gates = options
    D = 2 if layer_options.bidirectional else 1
    if not states and x.dim() == 3 and torch.compiler.is_exporting() and not _onnx.exporting():
        states = _zero_states(cell, x, weights, L, D == 2)  # AOTInductor takes an empty list for None
    all_kept = return_cells or return_gates
    if L == 1 and not packed and not all_kept and not _onnx.exporting():
        output, *finals = _ops.layer(cell, x, states, weights, batch_sizes, layer_options, resets)
        return [output], finals

    def layer(k: int, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
        if _onnx.exporting():
            return _onnx.layer(cell, x, states, weights, batch_sizes, options)
        cuts = resets and resets.with_states(lambda s: s[k * D : k * D + D])
        if all_kept:
            return _ops.forward(cell, x, states, weights, batch_sizes, layer_options, cuts)
        if packed:
            return _ops.packed_layer(cell, x, states, weights, packed.layers[k], packed.isa, batch_sizes, layer_options)
        return _ops.layer(cell, x, states, weights, batch_sizes, layer_options, cuts)

    per_layer = len(weights) // L
    initial = [torch.split(s, D) for s in states]
    final: list[Sequence[Tensor]] = []
    rows: list[Tensor] = []
    for k in range(L):
        if dropout and k:
            x = zero_elements(x, dropout)
        layer_weights = weights[k * per_layer : (k + 1) * per_layer]
        x, *finals = layer(k, x, [s[k] for s in initial], layer_weights)
        if all_kept:
            finals, saved = finals[: 2 if cell == "lstm" else 1], finals[2 if cell == "lstm" else 1 :]
            if return_cells:
                rows.append(torch.cat(saved[1::2], 1).to(x.dtype).view(*x.shape[:-1], -1))
            if return_gates:
                gates = torch.stack(saved[:: len(finals)], 1).view(*x.shape[:-1], D, _ops.SAVED, -1)
                rows.append(gates[..., : _ops.GATES[cell], :])
        final.append(finals)
    return [x, *rows], [torch.cat(s) for s in zip(*final, strict=True)]


def step(cell: str, input: Tensor, hx: Any, weights: Sequence[Tensor]) -> Sequence[Tensor]:
    """One time step of ``input`` [B, I] or [I], for the cells: the new states."""
    # The way of streams, as short as can be. What it does not take, or the operator refuses, goes on below.
    states = _plain_states(cell, hx)
    if states is not None and type(input) is Tensor and input.dim() == 2 and not _is_any_autocast_enabled():
        try:
            if not torch.compiler.is_compiling() and (new := _ops.direct_step(cell, input, states, weights)):
                return new
        except RuntimeError:
            pass
    return _any_step(cell, input, _states(cell, hx, "hx", "lstm_cell"), weights)


def _any_step(cell: str, input: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> Sequence[Tensor]:
    if _onnx.exporting() and input.dim() == 2:
        _checks.step(cell, input, states, weights)
        _, *finals = _onnx.layer(
            cell,
            input.unsqueeze(0),
            [s.unsqueeze(0) for s in states],
            weights,
            None,
            Options(1, 0.0, LayerOptions(False)),
        )
        return [s.squeeze(0) for s in finals]
    if isinstance(input, Tensor) and input.dim() == 2:
        try:  # as in _sequence
            if _is_any_autocast_enabled() and _device.autocasts(input):
                return cast("Sequence[Tensor]", _autocast(_ops.step, cell, input, states, weights))
            return _ops.step(cell, input, states, weights)
        except RuntimeError:
            _checks.step(cell, input, states, weights)
            raise

    _checks.step(cell, input, states, weights)
    unbatched = _any_step(cell, input.unsqueeze(0), [s.unsqueeze(0) for s in states], weights)
    return [s.squeeze(0) for s in unbatched]


def _autocast(
    function: Callable[..., Any],
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    *rest: object,
) -> object:
    """Calls ``function`` on tensors in the autocast dtype, but without autocast for the products inside."""
    device = input.device.type
    dtype = torch.get_autocast_dtype(device)

    def lower(tensor: Tensor) -> Tensor:
        # float64 was asked for by name; torch's autocast leaves it alone, too
        return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor

    rest = tuple(r.with_states(lower) if isinstance(r, _ops.Resets) else r for r in rest)
    with torch.autocast(device, enabled=False):
        return function(cell, lower(input), [lower(s) for s in states], [lower(w) for w in weights], *rest)
