"""What depends on a tensor's device: autocast, and ``_ops.segments`` made of operations there, with nobody waiting."""

from __future__ import annotations

import os

import torch
from torch import Tensor


def segments(
    lengths: Tensor, T: int, B: int, batch_first: bool, layers: int, bidirectional: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A padded batch of rows with ``lengths`` [B] as packed data, each row a segment.

    How many data rows there are is known to the device alone, so all tensors have room for T*B; ``data_rows`` has a
    number that no row has beyond them. Lengths are clamped to 0 and T.

    Returns:
        As ``_ops.segments`` does, but ``batch_sizes`` int32 on the device.

    Raises:
        RuntimeError: lengths of wrong shape or dtype; with LSTM_FUSED_CHECK=1, which waits for the device, or of values
            out of range.
    """
    if lengths.shape != (B,) or lengths.dtype != torch.int64:
        raise RuntimeError(f"lengths: expected int64 [{B}], got {lengths.dtype} {list(lengths.shape)}")
    if os.environ.get("LSTM_FUSED_CHECK") == "1" and ((lengths < 0) | (lengths > T)).any():
        raise RuntimeError(f"lengths: expected values from 0 to {T}, got {lengths.tolist()}")
    K = 2 * layers if bidirectional else layers
    lengths = lengths.clamp(0, T)
    order = torch.argsort(lengths, descending=True, stable=True)  # the row that is segment s
    step, row = torch.arange(T, device=lengths.device), torch.arange(B, device=lengths.device)
    runs = lengths[order] > step.unsqueeze(1)  # [T, B]: whether segment s has step t
    of_row = order * T + step.unsqueeze(1) if batch_first else step.unsqueeze(1) * B + order
    nobodys = torch.full_like(of_row, T * B)
    packed = torch.argsort(runs.flatten().logical_not(), stable=True)  # those that run first, in the order of steps
    data_rows = torch.where(runs, of_row, nobodys).flatten()[packed]
    layer = torch.arange(K, device=lengths.device).unsqueeze(1)
    segment_of = torch.empty_like(order).scatter_(0, order, row)
    endings = torch.where(lengths > 0, layer * B + segment_of, (K + layer) * B + row)
    return runs.sum(1, dtype=torch.int32), data_rows, layer * B + order, endings


def autocasts(tensor: Tensor) -> bool:
    """Whether ``torch.autocast`` is on where ``tensor`` is."""
    return not tensor.is_meta and torch.is_autocast_enabled(tensor.device.type)
