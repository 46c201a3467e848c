"""LSTM and GRU as pure functions of input, states and weights: stacking, dropout between layers, autocast.

Shapes: T steps, B rows, I input size, H hidden size, P output size (the LSTM's projection, else H), D
directions (1 or 2), L layers, G gates (LSTM 4: i f g o, GRU 3: r z n).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch._C import _is_any_autocast_enabled
from torch.nn.functional import dropout as zero_elements
from torch.nn.utils.rnn import PackedSequence

from . import _checks, _onnx, _ops

__all__ = ["gru", "gru_cell", "lstm", "lstm_cell"]


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


# Input of either form; the output has the same.
Steps = TypeVar("Steps", Tensor, PackedSequence)


def lstm(
    input: Steps,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_state: tuple[Tensor, Tensor] | None = None,
    cell_clip: float | None = None,
    grad_clip: float | None = None,
    recompute: bool = False,
    return_cells: bool = False,
    return_gates: bool = False,
    packed: Packed | None = None,
) -> Any:
    """A stack of LSTM layers (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000).

        i_t = sigmoid(W_i x_t + U_i h_{t-1} + b_i)
        f_t = sigmoid(W_f x_t + U_f h_{t-1} + b_f)
        g_t = tanh   (W_g x_t + U_g h_{t-1} + b_g)
        o_t = sigmoid(W_o x_t + U_o h_{t-1} + b_o)
        c_t = f_t * c_{t-1} + i_t * g_t
        h_t = o_t * tanh(c_t), or W_hr (o_t * tanh(c_t)) with a projection

    Args:
        input: [T, B, I] ([B, T, I] if ``batch_first``), unbatched [T, I], or a PackedSequence; float32,
            float64, bfloat16 or float16, like all other tensors.
        hx: (h_0 [L*D, B, P], c_0 [L*D, B, H]), unbatched without B; None is zeros. Beside a PackedSequence,
            rows in the order of the batch before it was sorted.
        weights: layer by layer and within it direction by direction, as
            ``list(torch.nn.LSTM(...).parameters())``: w_ih [4*H, I or D*P], w_hh [4*H, P], then b_ih [4*H]
            and b_hh [4*H] or neither, then w_hr [P, H] or not.
        num_layers: L; the output of a layer is the input of the next.
        dropout: probability with which an element between two layers is zeroed, if ``training``.
        bidirectional: each layer runs both ways, its outputs side by side.
        lengths: int64 [B] on the CPU, 0 to T, in any order: row b has lengths[b] steps. Its output beyond them is zero,
            its final state that of its last step (without a step: its initial one), where the reverse direction begins.
            Nothing is computed for the padding and no value in it, NaN included, reaches a result or a gradient.
        resets: bool [T, B] ([B, T] if ``batch_first``), the episode or document boundaries: where true, the row's state
            is set back before that step, and no gradient crosses. The reverse direction is set back between the same
            steps. resets[0] discards ``hx``; those past a row's length are ignored.
        reset_state: (h [L*D, P], c [L*D, H]), the state that a reset sets, to be learned perhaps; None is zeros.
        cell_clip: c_t is kept in [-cell_clip, cell_clip], before h_t is computed from it (Sak et al. 2014); no gradient
            goes through an element at either end. None is no limit.
        grad_clip: in backward, every element of the gradients at the gates before their activations is kept in
            [-grad_clip, grad_clip], before it goes on to x_t, h_{t-1} and the weights (Graves 2013, section 2.1).
            Higher derivatives are those of this backward; forward mode is an error then. None is no limit.
        recompute: keep only h_t and c_t for backward, which then computes the gates again, some steps at a time: less
            memory, more time, the same gradients up to rounding.
        return_cells, return_gates: return what is described below, too.
        packed: for ``freeze``: the same weights rearranged. No gradients then.

    The parts between resets run side by side, as rows of one batch.

    Returns:
        output [T, B, D*P], laid out as ``input``, and (h_n [L*D, B, P], c_n [L*D, B, H]). With ``return_cells``, then a
        list of every layer's c_t [T, B, D*H]; with ``return_gates``, then a list of every layer's activated gates i f g
        o [T, B, D, 4, H], which take no gradient. Both are laid out as ``output``, and zero in the padding.

    Under ``torch.autocast`` the tensors are cast to its dtype (float64 is left alone), and so are the
    results.

    Raises:
        TypeError, ValueError, RuntimeError: an argument of wrong kind, shape, dtype or device, by name.
    """
    layer = LayerOptions(bool(bidirectional), cell_clip, grad_clip, recompute)
    options = Options(num_layers, dropout if training else 0.0, layer, packed, return_cells, return_gates)
    return run("lstm", input, hx, weights, options, batch_first, lengths, resets, reset_state)


def gru(
    input: Steps,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_state: Tensor | None = None,
    grad_clip: float | None = None,
    recompute: bool = False,
    return_gates: bool = False,
    packed: Packed | None = None,
) -> Any:
    """A stack of GRU layers (Cho et al. 2014; in PyTorch's form the reset gate acts after the product).

        r_t = sigmoid(W_r x_t + b_ir + U_r h_{t-1} + b_hr)
        z_t = sigmoid(W_z x_t + b_iz + U_z h_{t-1} + b_hz)
        n_t = tanh   (W_n x_t + b_in + r_t * (U_n h_{t-1} + b_hn))
        h_t = (1 - z_t) * n_t + z_t * h_{t-1}

    Args:
        input: as for ``lstm``.
        hx: h_0 [L*D, B, H], unbatched [L*D, H]; None is zeros.
        weights: as for ``lstm``, with 3*H rows and no w_hr.
        num_layers, dropout, training, bidirectional, batch_first, lengths, resets: as for ``lstm``.
        reset_state: [L*D, H]; None is zeros.
        grad_clip, recompute, return_gates, packed: as for ``lstm``; gradients at the gates are those at x_r, x_z, x_n
            and, of the recurrent part, u_n = U_n h_{t-1} + b_hn.

    Returns:
        output [T, B, D*H], laid out as ``input``, and h_n [L*D, B, H]. With ``return_gates``, then a list of every
        layer's activated gates r z n [T, B, D, 3, H], as ``lstm``'s.

    Autocast and errors: as for ``lstm``.
    """
    layer = LayerOptions(bool(bidirectional), None, grad_clip, recompute)
    options = Options(num_layers, dropout if training else 0.0, layer, packed, False, return_gates)
    return run("gru", input, hx, weights, options, batch_first, lengths, resets, reset_state)


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
    """``lstm`` or ``gru``, for the modules: a single time step is short, and so should be the way to it."""
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


def _states(cell: str, hx: Any, argument: str) -> Sequence[Tensor]:
    if hx is None:
        return ()
    return _checks.pair("lstm", hx, argument) if cell == "lstm" else (hx,)


def lstm_cell(input: Tensor, hx: tuple[Tensor, Tensor] | None, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """One time step of ``lstm``, without projection.

    Args:
        input: [B, I], or unbatched [I].
        hx: (h_0 [B, H], c_0 [B, H]), unbatched [H] each; None is zeros.
        weights: w_ih [4*H, I], w_hh [4*H, H] and, both or neither, b_ih [4*H], b_hh [4*H].

    Returns:
        (h_1, c_1), shaped as ``hx``. Autocast and errors: as for ``lstm``.
    """
    h_1, c_1 = _step("lstm", input, () if hx is None else _checks.pair("lstm_cell", hx), weights)
    return h_1, c_1


def gru_cell(input: Tensor, hx: Tensor | None, weights: Sequence[Tensor]) -> Tensor:
    """One time step of ``gru``.

    Args:
        input: [B, I], or unbatched [I].
        hx: h_0 [B, H], unbatched [H]; None is zeros.
        weights: w_ih [3*H, I], w_hh [3*H, H] and, both or neither, b_ih [3*H], b_hh [3*H].

    Returns:
        h_1, shaped as ``hx``. Autocast and errors: as for ``lstm``.
    """
    return _step("gru", input, () if hx is None else (hx,), weights)[0]


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
        _checks.packed(cell, data, batch_sizes, states, weights, L, bidirectional)
        if sorted_indices is not None:
            states = [s.index_select(1, sorted_indices) for s in states]
        rows, states = _layers(cell, data, states, weights, batch_sizes, options)
        if unsorted_indices is not None:
            states = [s.index_select(1, unsorted_indices) for s in states]
        return [PackedSequence(r, batch_sizes, sorted_indices, unsorted_indices) for r in rows], states

    if L == 1 and isinstance(input, Tensor) and input.dim() == 3:
        # One layer, the path of streaming: the operator checks; what it refuses is then put into torch's words.
        try:
            return _batched(cell, input, states, weights, options, batch_first)
        except RuntimeError:
            _checks.sequence(cell, input, states, weights, L, bidirectional, batch_first)
            raise

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
    lengths: Tensor | None = None,  # in an export to ONNX
) -> Rows:
    if batch_first:
        rows, states = _layers(cell, input.transpose(0, 1), states, weights, lengths, options)
        return [r.transpose(0, 1) for r in rows], states
    return _layers(cell, input, states, weights, lengths, options)


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
    """Runs what ``lengths`` and ``resets`` leave of a padded batch: each part between them is a row of its own."""
    L, bidirectional = options.num_layers, options.layer.bidirectional
    _checks.padded(cell, input, lengths, resets, reset_state, weights, L, bidirectional)
    _checks.sequence(cell, input, states, weights, L, bidirectional, batch_first)
    if _onnx.exporting():
        if resets is not None:
            raise _onnx.unsupported("resets", "run the parts between them apart")
        return _batched(cell, input, states, weights, options, batch_first, lengths)
    B, T = input.shape[:2] if batch_first else (input.shape[1], input.shape[0])
    batch_sizes, data_rows, sources, endings = _ops.segments(lengths, resets, T, B, batch_first)
    traced = torch.compiler.is_compiling()  # then numbers in tensors decide nothing, and shapes come from states
    nothing_cut = not traced and data_rows.shape[0] == T * B and sources.shape[1] == B
    if nothing_cut and (resets is None or not states or not (resets[:, 0] if batch_first else resets[0]).any()):
        return _batched(cell, input, states, weights, options, batch_first)

    D = 2 if bidirectional else 1
    from_zero = not (states or reset_state or traced)
    hx = states or _zero_states(cell, input.transpose(0, 1) if batch_first else input, weights, L, bidirectional)
    initial: Sequence[Tensor] = ()
    if not from_zero:
        restart = reset_state or [s.new_zeros(L * D, s.shape[2]) for s in hx]
        initial = [_take(torch.cat([s, r.unsqueeze(1)], 1), sources, D) for s, r in zip(hx, restart, strict=True)]
    data = input.flatten(0, 1).index_select(0, data_rows)
    rows, final = _layers(cell, data, initial, weights, batch_sizes, options)
    if lengths is not None:  # a row without a step ends as it began
        final = [torch.cat([f, s.to(f.dtype)], 1) for f, s in zip(final, hx, strict=True)]

    def padded(row: Tensor) -> Tensor:
        sizes = (T * B, *row.shape[1:])
        empty = row.new_empty(sizes) if lengths is None else row.new_zeros(sizes)
        return empty.index_copy_(0, data_rows, row).view(*input.shape[:2], *row.shape[1:])

    return [padded(r) for r in rows], [_take(f, endings, D) for f in final]


def _zero_states(cell: str, x: Tensor, weights: Sequence[Tensor], L: int, bidirectional: bool) -> Sequence[Tensor]:
    """hx for x [T, B, I]."""
    sizes = (weights[1].shape[1], weights[1].shape[0] // _ops.GATES[cell])[: 2 if cell == "lstm" else 1]
    return [x.new_zeros(2 * L if bidirectional else L, x.shape[1], size) for size in sizes]


def _take(states: Tensor, rows: Tensor, D: int) -> Tensor:
    """Of ``states`` [L*D, *, size] the rows [2, *] of each direction."""
    if D == 1:
        return states.index_select(1, rows[0])
    forward, reverse = (states[d::2].index_select(1, rows[d]) for d in range(2))
    return torch.stack([forward, reverse], 1).flatten(0, 1)


def _layers(
    cell: str,
    x: Tensor,  # [T, B, I], or packed [N, I]
    states: Sequence[Tensor],  # none, or [L*D, B, P] and for the LSTM [L*D, B, H]
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,  # the lengths of rows, in an export to ONNX
    options: Options,
) -> Rows:
    if _is_any_autocast_enabled() and torch.is_autocast_enabled(x.device.type):
        return cast(Rows, _autocast(_layers, cell, x, states, weights, batch_sizes, options._replace(packed=None)))
    L, dropout, layer_options, packed, return_cells, return_gates = options
    D = 2 if layer_options.bidirectional else 1
    if not states and batch_sizes is None and torch.compiler.is_exporting() and not _onnx.exporting():
        states = _zero_states(cell, x, weights, L, D == 2)  # AOTInductor takes an empty list for None
    all_kept = return_cells or return_gates
    if L == 1 and not packed and not all_kept and not _onnx.exporting():
        output, *finals = _ops.layer(cell, x, states, weights, batch_sizes, layer_options)
        return [output], finals

    def layer(k: int, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
        if _onnx.exporting():
            return _onnx.layer(cell, x, states, weights, batch_sizes, options)
        if all_kept:
            return _ops.forward(cell, x, states, weights, batch_sizes, layer_options)
        if packed:
            return _ops.packed_layer(cell, x, states, weights, packed.layers[k], packed.isa, batch_sizes, layer_options)
        return _ops.layer(cell, x, states, weights, batch_sizes, layer_options)

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


def _step(cell: str, input: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> Sequence[Tensor]:
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
            if _is_any_autocast_enabled() and torch.is_autocast_enabled(input.device.type):
                return cast("Sequence[Tensor]", _autocast(_ops.step, cell, input, states, weights))
            return _ops.step(cell, input, states, weights)
        except RuntimeError:
            _checks.step(cell, input, states, weights)
            raise

    _checks.step(cell, input, states, weights)
    unbatched = _step(cell, input.unsqueeze(0), [s.unsqueeze(0) for s in states], weights)
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

    with torch.autocast(device, enabled=False):
        return function(cell, lower(input), [lower(s) for s in states], [lower(w) for w in weights], *rest)
