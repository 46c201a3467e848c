"""Layers whose rows begin anew on the way, by the kernels and by torch's cells in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from cases import Case, build, data
from torch import Tensor


@dataclass(frozen=True)
class ResetCase(Case):
    """Of one layer."""

    restart: bool = True  # in given states, not in zeros
    nan: bool = False  # these, and some initial ones, have all bits set, as memory that nobody has written yet

    @property
    def id(self) -> str:
        return f"{super().id}-resets{'' if self.restart else '0'}{'-nan' if self.nan else ''}"


class Given:
    """The case's tensors, and before which steps which rows begin anew."""

    def __init__(self, case: ResetCase, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(1)
        self.case, of = case, data(case, 0)
        self.resets = torch.rand(case.T, case.B, generator=generator) < 0.4
        states = ("h0", "c0") if case.cell == "lstm" else ("h0",)
        restart = torch.randn(2, case.D, case.H, generator=generator).to(case.dtype).to(dtype)
        names = ["x", *states, "d_output", *(f"d_{state[0]}_n" for state in states)]
        self.tensors = {name: torch.from_numpy(of.arrays[name]).to(dtype).clone() for name in names}
        self.states = [self.tensors[name] for name in states]
        self.restart = [restart[i].clone() for i in range(len(states))] if case.restart else []
        self.weights = {name: torch.from_numpy(array).to(dtype).clone() for name, array in of.parameters.items()}
        if case.nan:
            words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
            for tensor in (self.states[0][:, 1], self.restart[0]):
                tensor.fill_(torch.full((), -1, dtype=words).view(dtype))
        for tensor in self.leaves.values():
            tensor.requires_grad_()

    @property
    def leaves(self) -> dict[str, Tensor]:
        states = {f"state{i}": state for i, state in enumerate(self.states)}
        return {
            "x": self.tensors["x"],
            **states,
            **{f"restart{i}": t for i, t in enumerate(self.restart)},
            **self.weights,
        }

    def results(self, output: Tensor, final: list[Tensor]) -> dict[str, Any]:
        """With the gradients; of a case without states to restart in, those of its last states alone."""
        found = {"output": output, **{f"final{i}": state for i, state in enumerate(final)}}
        if self.case.nan:  # whose gradients say little: what is 0 times NaN?
            return {name: tensor.detach().double().numpy() for name, tensor in found.items()}
        cotangents = [tensor for name, tensor in self.tensors.items() if name.startswith("d_")]
        first = int(not self.case.restart)
        grads = torch.autograd.grad([output, *final][first:], list(self.leaves.values()), cotangents[first:])
        found |= {f"d_{name}": grad for name, grad in zip(self.leaves, grads, strict=True)}
        return {name: tensor.detach().double().numpy() for name, tensor in found.items()}


def ours(case: ResetCase) -> dict[str, Any]:
    import lstm_fused

    given, several = Given(case, case.dtype), case.cell == "lstm"
    module = build(case, lstm_fused, case.dtype)
    restart = (tuple(given.restart) if several else given.restart[0]) if case.restart else None
    arguments = given.tensors["x"], tuple(given.states) if several else given.states[0]
    keywords = {"resets": given.resets, "reset_state": restart}
    output, final = torch.func.functional_call(module, given.weights, arguments, keywords)
    return given.results(output, list(final) if several else [final])


def wanted(case: ResetCase) -> dict[str, Any]:
    """Step by step."""
    given = Given(case, torch.float64)
    outputs, finals = [], []
    for direction, suffix in enumerate(("_l0", "_l0_reverse")[: case.D]):
        weights = [given.weights[f"{name}{suffix}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        state, output = [initial[direction] for initial in given.states], [torch.empty(0)] * case.T
        for t in reversed(range(case.T)) if direction else range(case.T):
            cut = t + direction  # in reverse, what follows a cut came first
            if cut < case.T:
                anew = given.resets[cut, :, None]
                again = [r[direction] for r in given.restart] or [torch.zeros_like(s) for s in state]
                state = [torch.where(anew, a, s) for a, s in zip(again, state, strict=True)]
            if case.cell == "lstm":
                state = list(torch.lstm_cell(given.tensors["x"][t], state, *weights))
            else:
                state = [torch.gru_cell(given.tensors["x"][t], state[0], *weights)]
            output[t] = state[0]
        outputs.append(torch.stack(output))
        finals.append(state)
    final = [torch.stack(states) for states in zip(*finals, strict=True)]
    return given.results(torch.cat(outputs, 2), final)
