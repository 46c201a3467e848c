"""What tests of the CUDA backend run on: a card, or tensors in the host's memory that stand for one (``emulated``)."""

from __future__ import annotations

import emulated
import torch

from lstm_fused import runtime

PLANS = ("block", "grid", "step")  # of the CUDA backend, as LSTM_FUSED_CUDA_PLAN names them
NO_CARD = "the emulated device has no streams, graphs, allocator or second device"


def why_none() -> str:
    """Why the CUDA backend cannot run here; empty if it can."""
    if emulated.running():
        return ""
    why = str(torch.ops.lstm_fused.why_no_cuda())
    if why:
        return f"the package has no CUDA kernels: {why}"
    return "" if torch.cuda.is_available() else "no CUDA device"


def describe() -> str:
    """The device in a line."""
    if emulated.running():
        return "emulated"
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, sm_{properties.major}{properties.minor}, lstm_fused {runtime.info()['version']}"
