"""The two layers side by side: what one row of the benchmark runs.

A `Workload` is the same input, the same weights and the same Python around the call, for torch's module
and for ours.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from lstm_fused.bench.cases import Case


def module_kind(library: Any, case: Case) -> Callable[..., nn.Module]:
    """The class of `library` (torch.nn or lstm_fused) that runs `case`."""
    name = case.cell.upper() + ("Cell" if case.module == "cell" else "")
    kind: Callable[..., nn.Module] = getattr(library, name)
    return kind


def build(library: Any, case: Case, dtype: torch.dtype) -> nn.Module:
    """A module of `library` for `case`, with the library's own initial weights."""
    kind = module_kind(library, case)
    if case.module == "cell":
        return kind(case.I, case.H, dtype=dtype)
    options: dict[str, Any] = {"proj_size": case.proj} if case.cell == "lstm" else {}
    return kind(case.I, case.H, num_layers=case.layers, bidirectional=case.bidirectional, dtype=dtype, **options)


def fused_library() -> Any:
    """The library under test. Apart, so that tests can put another one here; nothing falls back."""
    import lstm_fused

    return lstm_fused


@dataclass(frozen=True)
class Inputs:
    """What goes into both modules, and the gradient that comes back into each output."""

    data: Tensor  # [T, B, I]; packed: [sum(lengths), I]; cell: [B, I]
    packing: PackedSequence | None  # batch sizes and order, if packed
    states: tuple[Tensor, ...]  # given for a streaming step only: layers [layers*D, B, H], cells [B, H]
    padded: Tensor  # [T, B, I]: the same values for peers that do not know PackedSequence

    def arguments(self, case: Case, data: Tensor) -> tuple[Any, ...]:
        """Positional arguments of the module's forward, with `data` in the input's place."""
        first: Any = data
        if self.packing is not None:
            first = self.packing._replace(data=data)
        if not self.states:
            return (first,)
        return first, self.states if case.cell == "lstm" else self.states[0]


def make_inputs(case: Case, dtype: torch.dtype, seed: int = 0, device: str = "cpu") -> Inputs:
    """Normal inputs from a fixed seed; lengths as the case draws them, rows not sorted by length."""
    generator = torch.Generator(device).manual_seed(seed)
    drawn = partial(torch.randn, generator=generator, device=device)  # there: a host takes longer than the layers
    padded = drawn(case.T, case.B, case.I).to(dtype)
    if case.packed:
        packing = pack_padded_sequence(padded, torch.tensor(case.lengths), enforce_sorted=False)
        return Inputs(packing.data, packing, (), padded)
    states: tuple[Tensor, ...] = ()
    if case.streaming:
        leading = () if case.module == "cell" else (case.layers * case.directions,)
        sizes = [case.visible, case.H] if case.cell == "lstm" else [case.H]
        states = tuple(drawn(*leading, case.B, size).to(dtype) for size in sizes)
    return Inputs(padded[0] if case.module == "cell" else padded, None, states, padded)


def tensors(value: Any) -> list[Tensor]:
    """Every tensor of a module's return value, in order: output, then final states."""
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in tensors(part)]


class Workload:
    """One case in one mode on one module: `call()` is what is timed, `results()` what is compared."""

    def __init__(self, case: Case, mode: str, module: Callable[..., Any], inputs: Inputs) -> None:
        self.case, self.mode, self.module = case, mode, module
        if isinstance(module, nn.Module):
            module.train(mode == "training")
            self.parameters = list(module.parameters())
        else:
            self.parameters = []
        # A leaf of its own for each module: the gradient of the input is part of the training row.
        self.data = inputs.data.clone().requires_grad_(mode == "training")
        self.arguments = inputs.arguments(case, self.data)
        self.gradient: list[Tensor] = []
        if mode == "training":
            with torch.no_grad():
                outputs = self.differentiated(module(*self.arguments))
            generator = torch.Generator(self.data.device).manual_seed(1)
            self.gradient = [torch.randn(y.shape, generator=generator, device=y.device).to(y) for y in outputs]
        self.call: Callable[[], Any] = self.train if mode == "training" else partial(module, *self.arguments)

    def differentiated(self, value: Any) -> list[Tensor]:
        """The outputs that a loss is put on: a layer's output sequence, a cell's new states."""
        return tensors(value) if self.case.module == "cell" else tensors(value)[:1]

    def context(self) -> AbstractContextManager[Any]:
        """What calls run in: inference mode, entered once and not timed; nothing in training."""
        return nullcontext() if self.mode == "training" else torch.inference_mode()

    def train(self) -> Any:
        """Forward and backward, with gradients for the input and every weight, as a training step does it."""
        self.data.grad = None
        for parameter in self.parameters:
            parameter.grad = None
        value = self.module(*self.arguments)
        torch.autograd.backward(self.differentiated(value), self.gradient)
        return value

    def results(self) -> list[Tensor]:
        """Outputs, final states and, in training, every gradient: same order for every module."""
        with self.context():
            value = self.call()
            converted = getattr(self.module, "converted", tensors)  # a runtime returns arrays of its own
            found = [tensor.detach().clone() for tensor in converted(value)]
        if self.mode == "training":
            leaves = [self.data, *self.parameters]
            found += [leaf.grad.detach().clone() for leaf in leaves if leaf.grad is not None]
        return found


def pair(case: Case, mode: str, dtype: torch.dtype) -> dict[str, Workload]:
    """Workloads "torch" and "lstm_fused" of one case, with the same weights and input."""
    torch.manual_seed(0)
    reference = build(nn, case, dtype)
    ours = build(fused_library(), case, dtype)
    ours.load_state_dict(reference.state_dict())
    inputs = make_inputs(case, dtype)
    return {
        "torch": Workload(case, mode, reference, inputs),
        "lstm_fused": Workload(case, mode, ours, inputs),
    }


@dataclass(frozen=True)
class Difference:
    """Largest |a - b| over all results, and the largest over max |b| of its own tensor (at least 1)."""

    absolute: float
    relative: float


def difference(found: list[Tensor], wanted: list[Tensor]) -> Difference:
    """Compares two modules' results; NaN counts as inf. Raises RuntimeError where number or shapes differ."""
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in wanted]:
        raise RuntimeError(
            f"results differ in shape: expected {[tuple(t.shape) for t in wanted]}, "
            f"got {[tuple(t.shape) for t in found]}"
        )
    absolute = relative = 0.0
    for a, b in zip(found, wanted, strict=True):
        if not b.numel():
            continue
        gap = (a.double() - b.double()).abs().nan_to_num(nan=float("inf")).max().item()
        absolute = max(absolute, gap)
        relative = max(relative, gap / max(1.0, b.double().abs().max().item()))
    return Difference(absolute, relative)
