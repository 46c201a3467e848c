"""What ``torch.vmap`` makes of the operators: the vmapped dimension joins the batch.

Rows of a batch do not know of each other, so V calls on B rows are one call on B*V rows, row b of call v being row
b*V + v. That keeps every tensor's order: data of [T, B, I] and packed [N, I] alike get the dimension beside the rows,
and what forward saved can be viewed either way. Weight gradients are sums over rows: those of each call apart are
what backward's argument ``samples`` is for. Calls whose weights differ have nothing in common and are done in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.utils import _pytree as pytree

# A rule is called as rule(info, in_dims, *arguments) and returns the results and where they have the dimension.
Dim = int | None
Results = tuple[list[Tensor], list[Dim]]


def _join(tensor: Tensor, dim: Dim, size: int | torch.SymInt) -> Tensor:
    """[..., rows, width] with V at ``dim``, or without V, as [..., rows*V, width]."""
    if dim is None:
        *outer, rows, width = tensor.shape
        tensor = tensor.unsqueeze(-2).expand(*outer, rows, size, width)
    else:
        tensor = tensor.movedim(dim, -2)
        *outer, rows, _, width = tensor.shape
    return tensor.reshape(*outer, rows * size, width)


def _join_all(tensors: Sequence[Tensor], dims: Sequence[Dim], size: int | torch.SymInt) -> list[Tensor]:
    return [_join(t, d, size) for t, d in zip(tensors, dims, strict=True)]


def _join_resets(resets: Tensor | None, dim: Dim, size: int | torch.SymInt) -> Tensor | None:
    """[T, rows] as [T, rows*V]."""
    return None if resets is None else _join(resets.unsqueeze(-1), dim, size).squeeze(-1)


def _join_sizes(sizes: Tensor | None, joined: Tensor, V: int | torch.SymInt) -> Tensor | None:
    """What goes with the joined input: the rows at each step of packed data, or lengths."""
    if sizes is None:
        return None
    return sizes.repeat_interleave(V) if joined.dim() == 3 else sizes.mul(V)


def _filled(arguments: Sequence[Any], defaults: Sequence[Any]) -> list[Any]:
    """With the defaults of the last arguments, which a call need not give."""
    return [*arguments, *defaults[len(arguments) :]]


def _split(tensor: Tensor, size: int | torch.SymInt) -> tuple[Tensor, Dim]:
    """[..., rows*V, width] as [..., rows, V, width], and where V is."""
    *outer, rows, width = tensor.shape
    return tensor.reshape(*outer, rows // size, size, width), tensor.dim() - 1


def _size(info: Any) -> int | torch.SymInt:
    if info.batch_size == 0:
        raise RuntimeError("lstm_fused: torch.vmap over a dimension of size 0 is not supported")
    size: int | torch.SymInt = info.batch_size
    return size


def _any_batched(dims: object) -> bool:
    return any(dim is not None for dim in pytree.tree_leaves(dims))


def _in_turn(op: Callable[..., list[Tensor]], info: Any, in_dims: Any, arguments: Any) -> Results:
    """One call after the other."""
    flat, structure = pytree.tree_flatten(arguments)
    dims = structure.flatten_up_to(in_dims)
    calls = [
        op(*structure.unflatten([a if d is None else a.select(d, v) for a, d in zip(flat, dims, strict=True)]))
        for v in range(_size(info))
    ]
    results = [torch.stack(parts) for parts in zip(*calls, strict=True)]
    return results, [0] * len(results)


def _forward_rule(op: Callable[..., list[Tensor]]) -> Callable[..., Results]:
    def rule(info: Any, in_dims: Any, *arguments: Any) -> Results:
        defaults = (*[None] * 8, False, *[None] * 3)
        cell, input, states, weights, batch_sizes, *options, resets, h, c = _filled(arguments, defaults)
        given_dims = _filled(in_dims, [None] * len(defaults))
        _, input_dim, state_dims, weight_dims, batch_sizes_dim, *_, resets_dim, h_dim, c_dim = given_dims
        if _any_batched((weight_dims, batch_sizes_dim, h_dim, c_dim)):
            return _in_turn(op, info, in_dims, arguments)
        V = _size(info)
        rows = _join(input, input_dim, V)
        joined = op(
            cell,
            rows,
            _join_all(states, state_dims, V),
            weights,
            _join_sizes(batch_sizes, rows, V),
            *options,
            _join_resets(resets, resets_dim, V),
            h,
            c,
        )
        results, dims = zip(*(_split(t, V) for t in joined), strict=True)
        return list(results), list(dims)

    return rule


def _packed_rule(info: Any, in_dims: Any, *arguments: Any) -> Results:
    """As ``layer``'s, with what stands between the weights and the options: the packed weights and their set."""
    packed_layer: Callable[..., list[Tensor]] = torch.ops.lstm_fused.packed_layer.default

    def op(*joined: Any) -> list[Tensor]:
        return packed_layer(*joined[:4], *arguments[4:6], *joined[4:7])

    return _forward_rule(op)(info, (*in_dims[:4], *in_dims[6:]), *arguments[:4], *arguments[6:])


def _backward_rule(info: Any, in_dims: Any, *arguments: Any) -> Results:
    op = torch.ops.lstm_fused.backward.default
    defaults = (*[None] * 12, 0, *[None] * 3)
    cell, grads, input, states, weights, batch_sizes, *given = _filled(arguments, defaults)
    *options, output, saved, needed, samples, resets, h, c = given
    _, grad_dims, input_dim, state_dims, weight_dims, batch_sizes_dim, *dims = _filled(in_dims, [None] * len(defaults))
    *_, output_dim, saved_dims, _, _, resets_dim, h_dim, c_dim = dims
    if _any_batched((weight_dims, batch_sizes_dim, h_dim, c_dim)):
        return _in_turn(op, info, in_dims, arguments)
    V, first_weight = _size(info), 1 + len(states)
    weights_needed = any(needed[first_weight:])
    rows = _join(input, input_dim, V)
    joined = op(
        cell,
        [None if g is None else _join(g, d, V) for g, d in zip(grads, grad_dims, strict=True)],
        rows,
        _join_all(states, state_dims, V),
        weights,
        _join_sizes(batch_sizes, rows, V),
        *options,
        _join(output, output_dim, V),
        _join_all(saved, saved_dims, V),
        needed,
        max(samples, 1) * V if weights_needed else 0,
        _join_resets(resets, resets_dim, V),
        h,
        c,
    )
    results: list[Tensor] = []
    out_dims: list[Dim] = []
    for k, (result, need) in enumerate(zip(joined, needed, strict=True)):
        dim: Dim = None
        if need and k < first_weight:
            result, dim = _split(result, V)
        elif need:  # [samples*V, *], the samples of an outer vmap first
            result, dim = (result.reshape(samples, V, *result.shape[1:]), 1) if samples else (result, 0)
        results.append(result)
        out_dims.append(dim)
    return results, out_dims


def _without(tensor: object, level: int) -> Tensor | None:
    """A tensor of the older vmap with the dimension of this level as its first; None where there is no such."""
    if not (isinstance(tensor, Tensor) and is_legacy_batchedtensor(tensor)):
        return None
    # A tensor that lacks the dimension is given one, of the size that one asks for.
    found, again = (torch._remove_batch_dim(tensor, level, size, 0) for size in (1, 2))
    return found if found.shape == again.shape else None


def _older_vmap(rule: Callable[..., Results]) -> Callable[..., list[Tensor]]:
    """The rule for the older vmap, which ``is_grads_batched=True`` still goes through: it wraps tensors itself."""

    def kernel(*arguments: Any) -> list[Tensor]:
        level: int = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        flat, structure = pytree.tree_flatten(arguments)
        inner = [_without(a, level) for a in flat]
        while all(t is None for t in inner):
            level -= 1  # of a vmap further out
            inner = [_without(a, level) for a in flat]
        dims = [None if t is None else 0 for t in inner]
        info = SimpleNamespace(batch_size=next(t.shape[0] for t in inner if t is not None))
        flat = [a if t is None else t for a, t in zip(flat, inner, strict=True)]
        results, out_dims = rule(info, structure.unflatten(dims), *structure.unflatten(flat))
        return [r if d is None else torch._add_batch_dim(r, d, level) for r, d in zip(results, out_dims, strict=True)]

    return kernel


def register(library: torch.library.Library) -> None:
    """Registers the rules in ``library``, a fragment of the operators' own."""
    torch.library.register_vmap("lstm_fused::layer", _forward_rule(torch.ops.lstm_fused.layer.default), lib=library)
    torch.library.register_vmap("lstm_fused::forward", _forward_rule(torch.ops.lstm_fused.forward.default), lib=library)
    torch.library.register_vmap("lstm_fused::packed_layer", _packed_rule, lib=library)
    torch.library.register_vmap("lstm_fused::backward", _backward_rule, lib=library)
    library.impl("backward", _older_vmap(_backward_rule), "Batched")  # type: ignore[no-untyped-call]
