"""The layers as the ONNX operators LSTM and GRU, which stand in for the kernels while ``torch.onnx.export`` traces.

Equations and the order of gates: the ONNX operator schemas, LSTM and GRU. PyTorch's GRU is theirs with
``linear_before_reset``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ._stack import Options

# Gates in ONNX's order, by their places in PyTorch's: i o f c of i f g o, and z r h of r z n.
_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}


def exporting() -> bool:
    """Whether ``torch.onnx.export`` traces the caller."""
    return torch.compiler.is_exporting() and _in_onnx_export()


def _in_onnx_export() -> bool:  # Dynamo, which a second attempt of the exporter uses, takes torch's own for False
    return torch.onnx.is_in_onnx_export()


# What torch.compiler.assume_constant_result does, which would import all of Dynamo: more than a second.
_in_onnx_export._dynamo_marked_constant = True  # type: ignore[attr-defined]


def unsupported(option: str, instead: str) -> RuntimeError:
    """The error for what ONNX has no operator for."""
    return RuntimeError(f"lstm_fused: ONNX has no recurrent operator with {option}; {instead}")


def layer(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    options: Options,
) -> list[Tensor]:
    """``_ops.layer`` on a padded batch [T, B, I], with the rows' ``lengths`` [B] or None as ``sequence_lens``."""
    bidirectional = options.layer.bidirectional
    gates, D = _ORDER[cell], 2 if bidirectional else 1
    if options.layer.cell_clip is not None:
        raise unsupported("a limited cell state (cell_clip)", "export a model without one")
    if options.return_cells or options.return_gates:
        raise unsupported("cells or gates as results (return_cells, return_gates)", "leave them out")
    per_direction = len(weights) // D
    if per_direction % 2:
        raise unsupported("a projection (proj_size)", "export a model without one")
    T, B, _ = input.shape
    H = weights[1].shape[1]

    def of_both_directions(k: int) -> Tensor:
        chunks = [weights[d * per_direction + k].chunk(len(gates)) for d in range(D)]
        return torch.stack([torch.cat([parts[g] for g in gates]) for parts in chunks])

    inputs: list[Tensor | None] = [input, of_both_directions(0), of_both_directions(1)]
    inputs.append(torch.cat([of_both_directions(2), of_both_directions(3)], 1) if per_direction == 4 else None)
    inputs.append(None if lengths is None else lengths.to(torch.int32))
    inputs += states
    while inputs[-1] is None:
        inputs.pop()
    attributes: dict[str, int | str] = {"hidden_size": H, "direction": "bidirectional" if bidirectional else "forward"}
    if cell == "gru":
        attributes["linear_before_reset"] = 1
    finals = [(D, B, H)] * (2 if cell == "lstm" else 1)
    output, *final = torch.onnx.ops.symbolic_multi_out(
        cell.upper(),
        inputs,
        attributes,  # type: ignore[arg-type]
        dtypes=[input.dtype] * (1 + len(finals)),
        shapes=[(T, D, B, H), *finals],
    )
    return [output.transpose(1, 2).reshape(T, B, D * H), *final]
