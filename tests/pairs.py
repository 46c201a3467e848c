"""A fused module beside torch.nn's with the same weights, and their comparison in values and all gradients.

In float64 the two differ by rounding only, so one tight bound says that they compute the same thing; how
large an error may be in each dtype is the matter of ``tolerances``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import lstm_fused

LAYERS = ("LSTM", "GRU")
CELLS = ("LSTMCell", "GRUCell")
F64 = torch.float64

# Relative, in the norm of each result: float64 rounding over the few steps of these tests, with room.
BOUND = 1e-12


def pair(kind: str, *args: Any, dtype: torch.dtype = F64, **options: Any) -> tuple[nn.Module, nn.Module]:
    """``lstm_fused``'s and ``torch.nn``'s module of this kind, same weights."""
    theirs = getattr(nn, kind)(*args, dtype=dtype, **options)
    ours = getattr(lstm_fused, kind)(*args, dtype=dtype, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def states(kind: str, *shape: int, H: int, P: int = 0, dtype: torch.dtype = F64) -> Any:
    """Random hx of the module: a tensor [*shape, P or H] and, for the LSTM, its [*shape, H]."""
    h = torch.randn(*shape, P or H, dtype=dtype)
    return (h, torch.randn(*shape, H, dtype=dtype)) if kind.startswith("LSTM") else h


def packed(I: int, lengths: list[int], enforce_sorted: bool = False) -> PackedSequence:
    return pack_sequence([torch.randn(n, I, dtype=F64) for n in lengths], enforce_sorted=enforce_sorted)


def tensors(nested: Any) -> list[Tensor]:
    """The floating-point tensors in a structure of results or arguments."""
    if isinstance(nested, Tensor):
        return [nested]
    if isinstance(nested, PackedSequence):
        return [nested.data]
    return [t for part in nested if part is not None for t in tensors(part)]


def leaves(nested: Any) -> Any:
    """The same structure with tensors that take gradients of their own."""
    if isinstance(nested, Tensor):
        return nested.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    if isinstance(nested, PackedSequence):
        return nested._replace(data=leaves(nested.data))
    return None if nested is None else tuple(leaves(part) for part in nested)


def run(module: Callable[..., Any], parameters: Sequence[Tensor], args: Any) -> tuple[Any, list[Tensor | None]]:
    """Results, and gradients of ``args`` and ``parameters`` under cotangents that depend on shapes alone."""
    args = leaves(args)
    results = module(*args)
    outputs = tensors(results)
    generator = torch.Generator().manual_seed(7)
    cotangents = [torch.randn(o.shape, generator=generator, dtype=F64).to(o.dtype) for o in outputs]
    wanted = [t for t in [*tensors(args), *parameters] if t.requires_grad]
    if not any(o.requires_grad for o in outputs):
        return results, []
    return results, list(torch.autograd.grad(outputs, wanted, cotangents, allow_unused=True))


def total(results: Sequence[Tensor]) -> Tensor:
    """The sum of all elements of all results, as a loss."""
    return torch.stack([r.float().sum() if r.dtype.itemsize < 4 else r.sum() for r in results]).sum()


def assert_close(ours: Tensor, theirs: Tensor, what: str = "") -> None:
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, (what, ours, theirs)
    error, scale = (ours - theirs).norm().item(), theirs.norm().item()
    assert error <= BOUND * scale, f"{what}: error {error:.3g} at a norm of {scale:.3g}"


def assert_same(ours: nn.Module, theirs: nn.Module, *args: Any) -> None:
    """The two modules agree on ``args`` in structure, values and every gradient."""
    our_results, our_grads = run(ours, list(ours.parameters()), args)
    their_results, their_grads = run(theirs, list(theirs.parameters()), args)
    assert_same_structure(our_results, their_results)
    for k, (a, b) in enumerate(zip(tensors(our_results), tensors(their_results), strict=True)):
        assert_close(a, b, f"result {k}")
    for k, (da, db) in enumerate(zip(our_grads, their_grads, strict=True)):
        assert (da is None) == (db is None), f"gradient {k}: {da} and {db}"
        if da is not None and db is not None:
            assert_close(da, db, f"gradient {k}")


def assert_same_structure(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(ours, PackedSequence):
        for a, b in zip(ours[1:], theirs[1:], strict=True):
            assert (a is None) == (b is None) and (a is None or torch.equal(a, b))
    elif isinstance(ours, tuple):
        for a, b in zip(ours, theirs, strict=True):
            assert_same_structure(a, b)
