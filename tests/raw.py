"""Arguments for the raw operators, ``torch.ops.lstm_fused.layer`` and ``step``, beneath the modules."""

from __future__ import annotations

from dataclasses import dataclass

import cases
import numpy as np
import oracles
import torch
from cases import Case
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence


@dataclass
class Arguments:
    """Arguments of ``torch.ops.lstm_fused.layer``, random, with names for the tensors that can take a gradient."""

    cell: str
    input: Tensor  # [T, B, I] or [N, I]
    states: list[Tensor]
    weights: list[Tensor]
    batch_sizes: Tensor | None  # or lengths, in the case of a padded batch
    bidirectional: bool
    names: list[str]  # of [input, *states, *weights]
    options: tuple[float | None, float | None, bool] = (None, None, False)  # cell_clip, grad_clip, recompute
    kept: bool = False  # c_t is among the results

    @property
    def tensors(self) -> list[Tensor]:
        return [self.input, *self.states, *self.weights]

    def call(self, tensors: list[Tensor] | tuple[Tensor, ...] | None = None) -> list[Tensor]:
        """Runs the operator, on other tensors in the place of [input, *states, *weights] if given."""
        x, *rest = self.tensors if tensors is None else tensors
        states, weights = rest[: len(self.states)], rest[len(self.states) :]
        op = torch.ops.lstm_fused.forward if self.kept else torch.ops.lstm_fused.layer
        out: list[Tensor] = op(self.cell, x, states, weights, self.batch_sizes, self.bidirectional, *self.options)
        if not self.kept:
            return out
        count = 3 if self.cell == "lstm" else 2
        cells = out[count if self.options[2] else count + 1 :: 1 if self.options[2] else 2]
        return [*out[:count], *(cells if self.cell == "lstm" else [])]


def arguments(case: Case, seed: int = 0, requires_grad: bool = True, device: str = "cpu") -> Arguments:
    """The raw operator's arguments for a case of one layer (rows of packed data come sorted)."""
    given = cases.data(case, seed)
    assert case.layers == 1

    def tensor(array: oracles.Array) -> Tensor:
        t = torch.from_numpy(array).to(case.dtype).to(device)
        return (cases.as_strided(t) if case.layout == "strided" else t.clone()).requires_grad_(requires_grad)

    x, batch_sizes = torch.from_numpy(given.arrays["x"]).to(case.dtype), None
    if case.padded:
        batch_sizes = torch.tensor(given.lengths)
    elif case.packed:
        packed = pack_padded_sequence(x, torch.tensor(sorted(given.lengths, reverse=True)))
        x, batch_sizes = packed.data, packed.batch_sizes
    state_names = (["h0", "c0"] if case.cell == "lstm" else ["h0"]) if case.hx else []
    return Arguments(
        case.cell,
        tensor(np.asarray(x.double().numpy())),
        [tensor(given.arrays[name]) for name in state_names],
        [tensor(array) for array in given.parameters.values()],
        batch_sizes,
        case.bidirectional,
        ["input", *state_names, *given.parameters],
        (case.cell_clip, case.grad_clip, case.recompute),
        case.kept,
    )
