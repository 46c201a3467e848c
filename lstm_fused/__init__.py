"""Fused LSTM and GRU layers for PyTorch: ``torch.nn``'s constructor, parameters and results, in less time.

    import lstm_fused
    layer = lstm_fused.LSTM(80, 320, num_layers=2, bidirectional=True)   # as torch.nn.LSTM
    model = lstm_fused.convert(model)                                    # or: every such layer of a model

``lstm_fused.functional`` holds the same layers as pure functions, ``lstm_fused.runtime`` says what runs
(instruction set, plan) and forces it.
"""

from . import functional, runtime
from .convert import convert, revert
from .freeze import freeze
from .modules import GRU, LSTM, GRUCell, LSTMCell
from .truncated import truncated_bptt

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "GRUCell",
    "LSTMCell",
    "__version__",
    "convert",
    "freeze",
    "functional",
    "revert",
    "runtime",
    "truncated_bptt",
]
