"""Truncated backpropagation through time: a long sequence in chunks that carry the state, but no gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from .modules import GRU, LSTM

__all__ = ["truncated_bptt"]


def truncated_bptt(
    layer: LSTM | GRU,
    input: Tensor,
    size: int,
    hx: Any = None,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_state: Any = None,
) -> Iterator[tuple[Tensor, Any]]:
    """Runs ``layer`` over chunks of time (Williams and Peng 1990); each begins in the state where the last one ended.

        for output, hx in truncated_bptt(layer, input, 35):
            loss_of(output).backward()
            optimizer.step()

    The values are those of one long run, as long as the parameters stay what they are. Gradients end where a chunk
    begins: the state goes on detached from its history. It is the caller's to keep for the next sequence.

    Args:
        layer: an ``LSTM`` or ``GRU`` in one direction.
        input: [T, B, I], [B, T, I] for a layer with ``batch_first``, or unbatched [T, I].
        size: steps of a chunk; the last one takes what is left.
        hx, lengths, resets, reset_state: as for the layer, over the whole of ``input``.

    Yields:
        (output of the chunk, state at its end), as the layer returns them.

    Raises:
        ValueError: ``size`` below 1, or a bidirectional layer, whose reverse direction begins at the end.
    """
    if size < 1:
        raise ValueError(f"size: expected at least 1 step, got {size}")
    if layer.bidirectional:
        raise ValueError("layer: expected one direction, got a bidirectional layer: its reverse one begins at the end")
    time = 1 if layer.batch_first and input.dim() == 3 else 0
    for begin in range(0, input.shape[time], size):
        steps = min(size, input.shape[time] - begin)
        output, hx = layer(
            input.narrow(time, begin, steps),
            hx,
            lengths=None if lengths is None else (lengths - begin).clamp(0, steps),
            resets=None if resets is None else resets.narrow(time, begin, steps),
            reset_state=reset_state,
        )
        yield output, hx
        hx = tuple(s.detach() for s in hx) if isinstance(hx, tuple) else hx.detach()
