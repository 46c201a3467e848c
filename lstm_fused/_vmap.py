"""What ``torch.vmap`` makes of the operators: the vmapped dimension joins the batch.

Rows of a batch do not know of each other, so V calls on B rows are one call on B*V rows, row b of call v being row
b*V + v. That keeps every tensor's order: data of [T, B, I] and packed [N, I] alike get the dimension beside the rows,
and what forward saved can be viewed either way. Weight gradients are sums over rows: those of each call apart are
what backward's argument ``samples`` is for. Calls whose weights differ have nothing in common and are done in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

# A rule is called as rule(info, in_dims, *arguments) and returns the results and where they have the dimension.
Dim = int | None
Results = tuple[list[Tensor], list[Dim]]


def _join(tensor: Tensor, dim: Dim, size: int) -> Tensor:
    """[..., rows, width] with V at ``dim``, or without V, as [..., rows*V, width]."""
    if dim is None:
        *outer, width = tensor.shape
        return tensor.unsqueeze(-2).expand(*outer, size, width).flatten(-3, -2)
    return tensor.movedim(dim, -2).flatten(-3, -2)


def _join_all(tensors: Sequence[Tensor], dims: Sequence[Dim], size: int) -> list[Tensor]:
    return [_join(t, d, size) for t, d in zip(tensors, dims, strict=True)]


def _split(tensor: Tensor, size: int) -> tuple[Tensor, Dim]:
    """[..., rows*V, width] as [..., rows, V, width], and where V is."""
    return tensor.unflatten(-2, (tensor.shape[-2] // size, size)), tensor.dim() - 1


def _any_batched(dims: object) -> bool:
    return any(dim is not None for dim in pytree.tree_leaves(dims))


def _in_turn(op: Callable[..., list[Tensor]], info: Any, in_dims: Any, arguments: Any) -> Results:
    """One call after the other."""
    flat, structure = pytree.tree_flatten(arguments)
    dims = structure.flatten_up_to(in_dims)
    calls = [
        op(*structure.unflatten([a if d is None else a.select(d, v) for a, d in zip(flat, dims, strict=True)]))
        for v in range(info.batch_size)
    ]
    results = [torch.stack(parts) for parts in zip(*calls, strict=True)]
    return results, [0] * len(results)


def _forward_rule(op: Callable[..., list[Tensor]]) -> Callable[..., Results]:
    def rule(info: Any, in_dims: Any, *arguments: Any) -> Results:
        cell, input, states, weights, batch_sizes, bidirectional = arguments
        _, input_dim, state_dims, weight_dims, batch_sizes_dim, _ = in_dims
        if _any_batched((weight_dims, batch_sizes_dim)):
            return _in_turn(op, info, in_dims, arguments)
        V = info.batch_size
        joined = op(
            cell,
            _join(input, input_dim, V),
            _join_all(states, state_dims, V),
            weights,
            None if batch_sizes is None else batch_sizes * V,
            bidirectional,
        )
        results, dims = zip(*(_split(t, V) for t in joined), strict=True)
        return list(results), list(dims)

    return rule


def _backward_rule(info: Any, in_dims: Any, *arguments: Any) -> Results:
    op = torch.ops.lstm_fused.backward.default
    cell, grads, input, states, weights, batch_sizes, bidirectional, output, saved, needed, *rest = arguments
    _, grad_dims, input_dim, state_dims, weight_dims, batch_sizes_dim, _, output_dim, saved_dims, *_ = in_dims
    if _any_batched((weight_dims, batch_sizes_dim)):
        return _in_turn(op, info, in_dims, arguments)
    V, first_weight = info.batch_size, 1 + len(states)
    samples = rest[0] if rest else 0
    weights_needed = any(needed[first_weight:])
    joined = op(
        cell,
        [None if g is None else _join(g, d, V) for g, d in zip(grads, grad_dims, strict=True)],
        _join(input, input_dim, V),
        _join_all(states, state_dims, V),
        weights,
        None if batch_sizes is None else batch_sizes * V,
        bidirectional,
        _join(output, output_dim, V),
        _join_all(saved, saved_dims, V),
        needed,
        max(samples, 1) * V if weights_needed else 0,
    )
    results: list[Tensor] = []
    dims: list[Dim] = []
    for k, (result, need) in enumerate(zip(joined, needed, strict=True)):
        dim: Dim = None
        if need and k < first_weight:
            result, dim = _split(result, V)
        elif need:  # [samples*V, *], the samples of an outer vmap first
            result, dim = (result.unflatten(0, (samples, V)), 1) if samples else (result, 0)
        results.append(result)
        dims.append(dim)
    return results, dims


def register() -> None:
    """Registers the rules; the operators must have been loaded."""
    torch.library.register_vmap("lstm_fused::layer", _forward_rule(torch.ops.lstm_fused.layer.default))
    torch.library.register_vmap("lstm_fused::forward", _forward_rule(torch.ops.lstm_fused.forward.default))
    torch.library.register_vmap("lstm_fused::backward", _backward_rule)
