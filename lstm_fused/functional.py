"""LSTM and GRU as pure functions of input, states and weights.

Shapes: T steps, B rows, I input size, H hidden size, P output size (the LSTM's projection, else H), D
directions (1 or 2), L layers, G gates (LSTM 4: i f g o, GRU 3: r z n).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ._stack import LayerOptions, Options, Packed, run, step

__all__ = ["gru", "gru_cell", "lstm", "lstm_cell"]

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
        lengths: int64 [B], 0 to T, in any order: row b has lengths[b] steps. Its output beyond them is zero, its final
            state that of its last step (without a step: its initial one), where the reverse direction begins. Nothing
            is computed for the padding and no value in it, NaN included, reaches a result or a gradient. On a CUDA
            device the values stay there, nothing waits for them, and they are clamped (LSTM_FUSED_CHECK=1: checked);
            products over all steps then take the padding's time, too, and second derivatives need lengths on the CPU.
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
            memory, more time, the same gradients up to rounding. With ``return_cells`` or ``return_gates`` the gates
            are made and kept all the same.
        return_cells, return_gates: return what is described below, too.
        packed: for ``freeze``: the same weights rearranged. No gradients then.

    The kernels set a state back between two steps. With ``lengths``, ``recompute`` or ``packed`` as well, the parts
    between resets are cut out and run side by side, as rows of one batch.

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


def lstm_cell(input: Tensor, hx: tuple[Tensor, Tensor] | None, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """One time step of ``lstm``, without projection.

    Args:
        input: [B, I], or unbatched [I].
        hx: (h_0 [B, H], c_0 [B, H]), unbatched [H] each; None is zeros.
        weights: w_ih [4*H, I], w_hh [4*H, H] and, both or neither, b_ih [4*H], b_hh [4*H].

    Returns:
        (h_1, c_1), shaped as ``hx``. Autocast and errors: as for ``lstm``.
    """
    h_1, c_1 = step("lstm", input, hx, weights)
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
    return step("gru", input, hx, weights)[0]
