"""Copies for inference whose weights are packed once, and not at every call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from . import _ops, _stack, functional, runtime
from .convert import own_class
from .modules import GRU, LSTM

__all__ = ["FrozenLayer", "freeze"]

_ARGUMENTS = (
    "input_size",
    "hidden_size",
    "num_layers",
    "bias",
    "batch_first",
    "dropout",
    "bidirectional",
    "proj_size",
)


def freeze(module: nn.Module) -> nn.Module:
    """A copy for inference: every ``LSTM`` and ``GRU`` in it with its weights packed once, all else as it was.

    A call of a layer rearranges the weights for its kernels first. For long sequences or large batches that is little;
    for a few steps of one row it is most of the time. A frozen layer has done it already. Results are the same bits.

    Args:
        module: a model in any mode, or a layer itself; it is left as it is. ``torch.nn``'s layers: ``convert`` first. A
            subclass of ``LSTM`` or ``GRU`` is copied as it is: its own ``forward`` is not known here.

    Returns:
        A deep copy in eval mode, without gradients, whose layers are ``FrozenLayer``; their hooks are not kept.

    Raises:
        TypeError: ``module`` is not a ``torch.nn.Module``.
        NotImplementedError: a layer is not on the CPU: only the kernels there read packed weights.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"freeze: expected module to be a torch.nn.Module, got {type(module).__name__}")
    if own_class(module) in (LSTM, GRU):
        return FrozenLayer(cast("LSTM | GRU", module))
    copied = copy.deepcopy(module).eval().requires_grad_(False)
    frozen: dict[nn.Module, FrozenLayer] = {}  # one for a layer that stands in several places
    for parent in list(copied.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and own_class(child) in (LSTM, GRU):
                if child not in frozen:
                    frozen[child] = FrozenLayer(cast("LSTM | GRU", child))
                setattr(parent, name, frozen[child])
    return copied


class FrozenLayer(nn.Module):
    """What ``freeze`` makes of an ``LSTM`` or ``GRU``: the same calls and results, inference only, immutable.

    Its ``state_dict`` is the layer's, so an ``LSTM`` can load it, and its attributes are the arguments of the layer's
    constructor. The copy follows neither the layer it was made from nor any change to its own buffers: change the
    layer, then freeze that again.

    Raises:
        RuntimeError: on training mode, on a tensor that requires a gradient while gradients are enabled or that has a
            tangent of forward mode, on loading a state_dict, on a change of dtype or device, and where another
            instruction set has been made the active one since.
        AttributeError: when one of its attributes is set.
    """

    num_layers: int
    bidirectional: bool
    batch_first: bool

    def __init__(self, layer: LSTM | GRU) -> None:
        super().__init__()
        self.mode = layer.mode.lower()
        for name in _ARGUMENTS:
            setattr(self, name, getattr(layer, name))
        self.clips = {"cell_clip": layer.cell_clip} if self.mode == "lstm" else {}
        self.description = layer.extra_repr()
        weights = [w.detach().clone() for w in layer._current_weights()]
        if weights[0].device.type != "cpu":
            raise NotImplementedError(f"freeze: expected layers on the CPU, got one on {weights[0].device}")
        for name, weight in zip(layer._flat_weights_names, weights, strict=True):
            self.register_buffer(name, weight)
        self.weights = weights
        self._finish()

    def _finish(self) -> None:
        """Packs the weights for the instruction set that is active here and now."""
        per_layer = len(self.weights) // self.num_layers
        by_layer = [self.weights[k * per_layer : (k + 1) * per_layer] for k in range(self.num_layers)]
        packed = [_ops.pack(self.mode, weights, self.bidirectional) for weights in by_layer]
        self.packed = _stack.Packed(runtime.isa(), packed)
        super().train(False)
        self.frozen = True

    def forward(self, input: Any, hx: Any = None, **keywords: Any) -> Any:
        """As the layer's: ``input``, ``hx``, and all keywords."""
        return self._run(input, hx, batch_first=self.batch_first, **keywords)

    def _run(self, input: Any, hx: Any, **options: Any) -> Any:
        given = tree_leaves((input, hx, options)) if torch.is_grad_enabled() else []
        if any(isinstance(t, Tensor) and t.requires_grad for t in given):
            raise RuntimeError("frozen layer: it has no gradients; call it under torch.no_grad(), or train the layer")
        run: Callable[..., Any] = functional.lstm if self.mode == "lstm" else functional.gru
        return run(
            input,
            hx,
            self.weights,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            packed=self.packed,
            **self.clips,
            **options,
        )

    def step(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """As the layer's ``step``."""
        if self.bidirectional:
            raise ValueError("step: expected one direction, got a bidirectional layer")
        output, hx = self._run(input.unsqueeze(0), hx)
        return output.squeeze(0), hx

    def flatten_parameters(self) -> None:
        """Does nothing, as the layer's."""

    def train(self, mode: bool = True) -> FrozenLayer:
        """Raises RuntimeError for training mode."""
        if mode:
            raise RuntimeError("frozen layer: it cannot be trained; train the layer that it was made from")
        return self

    def extra_repr(self) -> str:
        """The layer's."""
        return f"{self.mode.upper()}({self.description})"

    def __setattr__(self, name: str, value: Any) -> None:
        # torch.compile sets training as it is, and adds marks of its own
        if self.__dict__.get("frozen") and hasattr(self, name) and (name, value) != ("training", False):
            raise AttributeError(f"frozen layer: {name} cannot be set; change the layer, and freeze it again")
        super().__setattr__(name, value)

    def _load_from_state_dict(self, *_: Any, **__: Any) -> NoReturn:
        raise RuntimeError("frozen layer: it loads no state_dict; load it into the layer, and freeze that again")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenLayer:
        weight = self.weights[0]
        moved = fn(weight)
        if (moved.dtype, moved.device) != (weight.dtype, weight.device):
            raise RuntimeError("frozen layer: its dtype and device cannot change; move the layer, and freeze it again")
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenLayer:
        return self

    # Another machine packs anew: it may have another instruction set.
    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("packed", "frozen")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._finish()
