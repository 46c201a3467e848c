"""Changing a whole model between torch.nn's recurrent layers and the fused ones, in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from . import modules

Model = TypeVar("Model", bound=nn.Module)

_FUSED: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.LSTM: modules.LSTM,
    nn.GRU: modules.GRU,
    nn.LSTMCell: modules.LSTMCell,
    nn.GRUCell: modules.GRUCell,
}
_ORIGINAL = {fused: original for original, fused in _FUSED.items()}


def convert(model: Model) -> Model:
    """Turns every ``nn.LSTM``, ``nn.GRU``, ``nn.LSTMCell`` and ``nn.GRUCell`` of a model into the fused one.

    The modules stay the same objects and change their class, as torch's own parametrisations do it. So
    parameters (optimizers made before go on working), hooks, train or eval mode, extra attributes,
    parametrisations, and every other reference to a module, from a second parent say, are kept.

    Only these exact types change, for a subclass may override what the fused layer would do; modules out of
    reach of ``model.modules()``, as in a plain list, are not found.

    Args:
        model: any module; a recurrent layer itself, too.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is not a ``torch.nn.Module``.
    """
    return _change_classes("convert", model, _FUSED)


def revert(model: Model) -> Model:
    """Undoes ``convert``: every fused layer of ``model`` becomes ``torch.nn``'s; arguments as there.

    Raises:
        ValueError: a layer has ``cell_clip`` or ``grad_clip``, which ``torch.nn`` does not know; nothing is changed.
    """
    for name, module in model.named_modules() if isinstance(model, nn.Module) else ():
        for option in ("cell_clip", "grad_clip"):
            if getattr(module, option, None) is not None and isinstance(module, (modules.LSTM, modules.GRU)):
                raise ValueError(
                    f"revert: expected layers without {option}, which torch.nn has not; got {name or module}"
                )
    return _change_classes("revert", model, _ORIGINAL)


def _change_classes(caller: str, model: Model, classes: Mapping[type[nn.Module], type[nn.Module]]) -> Model:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}: expected model to be a torch.nn.Module, got {type(model).__name__}")
    for module in list(model.modules()):
        cls, own = type(module), own_class(module)
        if own not in classes:
            continue
        if cls is own:
            _become(module, classes[own])
        else:
            namespace = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__", "__doc__")}
            _become(module, type(cls.__name__, (classes[own],), namespace))
    return model


def own_class(module: nn.Module) -> type[nn.Module]:
    """The module's class, without the one that parametrize derives from it, with the weights as properties."""
    cls = type(module)
    return cls.__bases__[0] if is_parametrized(module) else cls


def _become(module: nn.Module, cls: type[nn.Module]) -> None:
    # nn.LSTM and nn.GRU keep a second list of their weights; the fused layers do not
    module.__dict__.pop("_flat_weights", None)
    module.__dict__.pop("_flat_weight_refs", None)
    module.__class__ = cls
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()
