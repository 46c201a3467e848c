"""Our layer beside itself: rows of different lengths, resets and torch.compile, each against a plain run in eager mode;
the gradients of each sample apart, by torch.vmap against a loop; and a step with a gradient penalty against torch's.

The plain run is over the whole padded batch. Lengths are uniform in 1..T, a reset comes before 2 per cent of the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from lstm_fused.bench.cases import VARIANTS, Case, parse_grid
from lstm_fused.bench.measure import interleave
from lstm_fused.bench.report import Failure, VariantRow
from lstm_fused.bench.run import Settings
from lstm_fused.bench.workload import Workload, build, fused_library, make_inputs

#: Part of the steps that a reset comes before.
RESETS = 0.02

#: Batch and hidden size for which the gradients of each sample apart, and a gradient penalty, are measured.
SAMPLES = (64, 128)


class Given(nn.Module):
    """A layer with keyword arguments that stay the same."""

    def __init__(self, layer: Callable[..., Any], **keywords: Any) -> None:
        super().__init__()
        self.layer, self.keywords = layer, keywords

    def forward(self, x: Any) -> Any:
        """The layer's results."""
        return self.layer(x, **self.keywords)


def allowed(variant: str, case: Case) -> float:
    """The most that a variant may take, in plain runs; 0: no bound. Of fewer steps that is nearly their share."""
    if variant in ("lengths", "PackedSequence"):
        return 1.15 * replace(case, packed=True).tokens / case.tokens + 0.10
    return {"resets": 1.05, "vmap(grad) / loop": 1 / 3, "penalty / torch": 1.0}.get(variant, 0.0)


def workloads(case: Case, mode: str, dtype: torch.dtype) -> dict[str, Workload]:
    """ "plain" and every variant, on one layer."""
    torch.manual_seed(0)
    layer = build(fused_library(), case, dtype)
    packed = replace(case, packed=True)
    resets = torch.rand(case.T, case.B, generator=torch.Generator().manual_seed(0)) < RESETS
    padded_input = make_inputs(case, dtype)
    modules = {
        "plain": Given(layer),
        "lengths": Given(layer, lengths=torch.tensor(packed.lengths)),
        "PackedSequence": Given(layer),
        "resets": Given(layer, resets=resets),
        "torch.compile": Given(torch.compile(layer)),
    }
    inputs = {"PackedSequence": make_inputs(packed, dtype)}
    return {name: Workload(case, mode, module, inputs.get(name, padded_input)) for name, module in modules.items()}


def measure(case: Case, mode: str, dtype: torch.dtype, budget: float) -> list[VariantRow]:
    """Times the plain run and every variant in turn."""
    works = workloads(case, mode, dtype)
    with works["plain"].context():
        timings = interleave({name: work.call for name, work in works.items()}, budget)
    plain = timings.pop("plain")
    rows = [VariantRow(case, mode, name, plain, timing, allowed(name, case)) for name, timing in timings.items()]
    if mode == "training" and (case.B, case.H) == SAMPLES:
        rows += [measure_samples(case, dtype, budget), measure_penalty(case, dtype, budget)]
    return rows


def measure_samples(case: Case, dtype: torch.dtype, budget: float) -> VariantRow:
    """The weights' gradients of each row of the batch: one call of ``vmap(grad(...))`` beside one of ``grad`` a row."""
    layer, x = build(fused_library(), case, dtype), make_inputs(case, dtype).data.transpose(0, 1).unsqueeze(2)
    weights = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        output: Tensor = functional_call(layer, weights, (x,))[0]
        return output.square().sum()

    def in_turn() -> dict[str, Tensor]:
        gradients = [grad(loss)(weights, row) for row in x]
        return {name: torch.stack([g[name] for g in gradients]) for name in weights}

    together = torch.vmap(grad(loss), in_dims=(None, 0))
    timings = interleave({"loop": in_turn, "vmap": lambda: together(weights, x)}, budget)
    name = "vmap(grad) / loop"
    return VariantRow(case, "training", name, timings["loop"], timings["vmap"], allowed(name, case))


def measure_penalty(case: Case, dtype: torch.dtype, budget: float) -> VariantRow:
    """A training step whose loss has the norm of the input's gradient in it, as WGAN-GP has: ours beside torch's."""
    ours, theirs = build(fused_library(), case, dtype), build(nn, case, dtype)
    theirs.load_state_dict(ours.state_dict())
    x = make_inputs(case, dtype).data.detach().requires_grad_()

    def step(layer: nn.Module) -> list[Tensor]:
        loss = layer(x)[0].square().sum()
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        penalised = loss + (gradient.norm() - 1).square()
        return list(torch.autograd.grad(penalised, list(layer.parameters())))

    timings = interleave({"torch": lambda: step(theirs), "ours": lambda: step(ours)}, budget)
    name = "penalty / torch"
    return VariantRow(case, "training", name, timings["torch"], timings["ours"], allowed(name, case))


def variant_cases(settings: Settings) -> list[tuple[Case, str]]:
    """The shapes that variants are measured on, for the cells and modes of `settings`."""
    cells = tuple(dict.fromkeys(case.cell for case in settings.cases))
    return [(case, mode) for case in parse_grid(VARIANTS, cells) for mode in settings.modes]


def variant_rows(settings: Settings) -> Iterator[list[VariantRow] | Failure]:
    """The variants of each shape in turn. A layer that raises gives a Failure, and the run goes on."""
    for case, mode in variant_cases(settings):
        try:
            yield measure(case, mode, getattr(torch, settings.dtype), settings.budget)
        except Exception as error:
            yield Failure(case, mode, f"{type(error).__name__}: {error}")
