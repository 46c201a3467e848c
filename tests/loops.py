"""LSTM and GRU as loops over time in torch's own operations, with the options that ``torch.nn``'s layers lack.

For these they stand where ``torch.nn`` stands for the others: their errors, in each dtype, are what ours may be twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Loop(nn.Module):
    states: int

    def __init__(
        self, *args: Any, cell_clip: float | None = None, grad_clip: float | None = None, **options: Any
    ) -> None:
        super().__init__()
        self.layer: Any = getattr(nn, type(self).__name__)(*args, **options)
        self.cell_clip, self.grad_clip = cell_clip, grad_clip

    def named_parameters(self, *_: Any, **__: Any) -> Any:
        return self.layer.named_parameters()

    def limited(self, preactivations: Tensor) -> Tensor:
        """The same, with the gradient that comes back limited."""
        clip = self.grad_clip
        if clip is not None and preactivations.requires_grad:
            preactivations.register_hook(lambda gradient: gradient.clamp(-clip, clip))
        return preactivations

    def forward(
        self, x: Tensor, hx: Any = None, return_cells: bool = False, return_gates: bool = False
    ) -> tuple[Any, ...]:
        layer = self.layer
        D = 2 if layer.bidirectional else 1
        states = [] if hx is None else [hx] if isinstance(hx, Tensor) else list(hx)
        finals: list[list[Tensor]] = [[] for _ in range(self.states)]
        all_cells, all_gates = [], []
        for k in range(layer.num_layers):
            outputs, cells, gates = [], [], []
            for d in range(D):
                weights = layer.all_weights[k * D + d]
                size = (layer.hidden_size,) * self.states
                now = [s[k * D + d] for s in states] or [x.new_zeros(x.shape[1], n) for n in size]
                by_step: dict[int, tuple[Tensor, ...]] = {}
                for t in range(len(x)) if d == 0 else reversed(range(len(x))):
                    *now, step_gates = self.step(x[t], now, weights)
                    by_step[t] = (now[0], now[-1], step_gates)
                for final, state in zip(finals, now, strict=True):
                    final.append(state)
                rows = [torch.stack([by_step[t][i] for t in range(len(x))]) for i in range(3)]
                outputs.append(rows[0])
                cells.append(rows[1])
                gates.append(rows[2])
            x = torch.cat(outputs, 2)
            all_cells.append(torch.cat(cells, 2))
            all_gates.append(torch.stack(gates, 2).detach())
        final_states = tuple(torch.stack(f) for f in finals)
        kept = [*([all_cells] if return_cells else []), *([all_gates] if return_gates else [])]
        return (x, final_states if self.states == 2 else final_states[0], *kept)

    def step(self, x: Tensor, states: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
        raise NotImplementedError


class LSTM(_Loop):
    states = 2

    def step(self, x: Tensor, states: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
        (h, c), (w_ih, w_hh, b_ih, b_hh) = states, weights
        i, f, g, o = self.limited(x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, 1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = f * c + i * g
        if self.cell_clip is not None:
            c = c.clamp(-self.cell_clip, self.cell_clip)
        return o * c.tanh(), c, torch.stack([i, f, g, o], 1)


class GRU(_Loop):
    states = 1

    def step(self, x: Tensor, states: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
        (h,), (w_ih, w_hh, b_ih, b_hh) = states, weights
        x_r, x_z, x_n = (x @ w_ih.T + b_ih).chunk(3, 1)
        u_r, u_z, u_n = (h @ w_hh.T + b_hh).chunk(3, 1)
        r, z = self.limited(x_r + u_r).sigmoid(), self.limited(x_z + u_z).sigmoid()
        n = (self.limited(x_n * 1) + r * self.limited(u_n * 1)).tanh()
        return (1 - z) * n + z * h, torch.stack([r, z, n], 1)
