"""The table of cases, and how one case runs: through a torch-like module, or through the oracle.

Both roads lead to ``Results``: float64 (or extended) NumPy arrays by name, ``output``, ``h_n``, ``c_n`` and one
``d_<argument>`` for every input, state and parameter, so that any two can be compared by ``tolerances``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import emulated
import loops
import numpy as np
import oracles
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lstm_fused import runtime

Results = dict[str, oracles.Array]

CELLS = ("lstm", "gru")
PLANS = ("block", "grid", "step") if emulated.running() else ("rows", "units", "serial")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
GATES = {"lstm": 4, "gru": 3}
SEEDS = range(20)


@dataclass(frozen=True)
class Case:
    """A layer, its options and the shape of its input."""

    cell: str = "lstm"
    T: int = 2
    B: int = 3
    I: int = 5
    H: int = 7
    dtype: torch.dtype = torch.float32
    layers: int = 1
    bidirectional: bool = False
    proj: int = 0
    bias: bool = True
    packed: bool = False  # ragged lengths in 1..T, unsorted
    padded: bool = False  # these as a padded batch and lengths, which torch.nn has not
    hx: bool = True  # initial states given
    layout: str = "contiguous"  # or "batch_first", or "strided": no tensor contiguous
    cell_clip: float | None = None
    grad_clip: float | None = None
    recompute: bool = False
    kept: bool = False  # c_t and gates are results, too
    gain: float = 1.0  # weights are uniform in gain * [-1, 1] / sqrt(H): 8 saturates the gates

    @property
    def id(self) -> str:
        """Name of the case: the shape and each option that is not the default."""
        options = [
            f"l{self.layers}" if self.layers > 1 else "",
            "bidir" if self.bidirectional else "",
            f"proj{self.proj}" if self.proj else "",
            "" if self.bias else "nobias",
            ("lengths" if self.padded else "packed") if self.packed else "",
            "" if self.hx else "nohx",
            "" if self.layout == "contiguous" else self.layout,
            "" if self.cell_clip is None else f"cellclip{self.cell_clip:g}",
            "" if self.grad_clip is None else f"gradclip{self.grad_clip:g}",
            "recompute" if self.recompute else "",
            "kept" if self.kept else "",
            "" if self.gain == 1.0 else f"gain{self.gain:g}",
        ]
        shape = f"T{self.T}B{self.B}I{self.I}H{self.H}"
        return "-".join([self.cell, short(self.dtype), shape, *filter(None, options)])

    @property
    def D(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def P(self) -> int:
        return self.proj or self.H

    @property
    def library_of_torch(self) -> Any:
        """Who has this case in torch's own operations."""
        needs_loop = self.kept or self.cell_clip is not None or self.grad_clip is not None
        return loops if needs_loop else torch.nn


@contextmanager
def use_plan(plan: str) -> Iterator[None]:
    """Forces one of ``PLANS``."""
    if not emulated.running():
        with runtime.use_plan(plan):
            yield
        return
    before = os.environ.pop("LSTM_FUSED_CUDA_PLAN", None)
    os.environ["LSTM_FUSED_CUDA_PLAN"] = plan
    yield
    os.environ.pop("LSTM_FUSED_CUDA_PLAN")
    if before is not None:
        os.environ["LSTM_FUSED_CUDA_PLAN"] = before


def short(dtype: torch.dtype) -> str:
    return {torch.float64: "f64", torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]


# Sizes chosen so that each of H = 1, 7, 33, 64, 100, T = 1, 2, 9 and B = 1, 3, 17 meets each other axis's extremes:
# below one vector, one vector and a tail, several vectors and a tail; less and more rows than a register block.
SHAPES = (
    Case(T=1, B=1, I=1, H=1),
    Case(T=9, B=17, I=2, H=1),
    Case(T=2, B=3, I=5, H=7),
    Case(T=9, B=1, I=7, H=7),
    Case(T=1, B=17, I=3, H=33),
    Case(T=9, B=3, I=33, H=33),
    Case(T=9, B=17, I=5, H=64),
    Case(T=2, B=17, I=9, H=100),
    Case(T=9, B=1, I=100, H=100),
)

# Every option alone and those that meet in the same code, on shapes small enough to repeat over seeds.
OPTIONS = (
    Case(T=9, B=3, I=5, H=7, hx=False),
    Case(T=9, B=3, I=5, H=17, bias=False),
    Case(T=9, B=3, I=5, H=33, bidirectional=True),
    Case(T=9, B=17, I=5, H=7, packed=True),
    Case(T=9, B=5, I=5, H=33, packed=True, bidirectional=True),
    Case(T=9, B=5, I=5, H=7, packed=True, hx=False, bias=False, layers=2),
    Case(T=9, B=17, I=5, H=33, packed=True, padded=True),
    Case(T=9, B=5, I=5, H=7, packed=True, padded=True, bidirectional=True, layers=2),
    Case(T=2, B=3, I=5, H=7, layers=3),
    Case(T=9, B=3, I=1, H=17, layers=2, bidirectional=True),
    Case(T=9, B=3, I=5, H=7, layout="batch_first"),
    Case(T=9, B=3, I=5, H=33, layout="strided"),
    Case(T=2, B=17, I=5, H=9, gain=8.0),  # over more steps such weights are chaotic: one seed decides
)

# Of both cells; their own are below.
EXTRAS = (
    Case(T=9, B=3, I=5, H=17, recompute=True, bidirectional=True),
    Case(T=9, B=5, I=5, H=17, recompute=True, packed=True),
    Case(T=9, B=3, I=5, H=33, grad_clip=0.05, bidirectional=True),
    Case(T=9, B=3, I=5, H=17, kept=True, layers=2),
)

OF_THE_LSTM = (
    Case(T=9, B=3, I=5, H=33, cell_clip=0.2),
    Case(T=9, B=17, I=5, H=9, cell_clip=0.3, grad_clip=0.1, recompute=True, bidirectional=True),
    Case(T=1, B=3, I=5, H=33, cell_clip=0.2, kept=True),
    Case(T=9, B=3, I=5, H=33, proj=5, recompute=True),
)

PROJECTIONS = (
    Case(T=2, B=3, I=5, H=7, proj=1),
    Case(T=9, B=17, I=5, H=33, proj=7),
    Case(T=9, B=3, I=5, H=17, proj=9, bidirectional=True, bias=False),
    Case(T=9, B=5, I=5, H=17, proj=16, bidirectional=True, packed=True, layers=2),
    Case(T=9, B=5, I=5, H=33, proj=17, bidirectional=True, packed=True, padded=True),
    Case(T=9, B=3, I=5, H=33, proj=5, layout="strided", hx=False),
)


# What the 16-bit types add is conversion at the edges of a kernel: every size, and the options with edges of their own.
SIXTEEN_BIT_OPTIONS = (
    *(c for c in OPTIONS if c.bidirectional or c.layout == "strided" or c.gain > 1),
    Case(T=2, B=3, I=5, H=136),  # more units than tensor cores take at once
)


def table(dtypes: tuple[torch.dtype, ...] = DTYPES) -> list[Case]:
    """Every case in every dtype; projection is the LSTM's alone."""
    cases = []
    for dtype in dtypes:
        options = OPTIONS if dtype.itemsize > 2 else SIXTEEN_BIT_OPTIONS
        both = [replace(c, cell=cell) for cell in CELLS for c in SHAPES + options + EXTRAS]
        of_the_lstm = OF_THE_LSTM + PROJECTIONS[:: 1 if dtype.itemsize > 2 else 2]
        cases += [replace(c, dtype=dtype) for c in [*both, *of_the_lstm]]
    return cases


@dataclass
class Data:
    """Inputs, cotangents and parameters of a case as float64 arrays whose values are exact in the case's dtype."""

    arrays: dict[str, oracles.Array]  # x [T,B,I], h0 c0 [L*D,B,P|H], d_output d_h_n d_c_n
    parameters: dict[str, oracles.Array]  # by the names of torch.nn's parameters
    lengths: list[int]  # [B]


@functools.lru_cache(maxsize=4096)
def data(case: Case, seed: int) -> Data:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> oracles.Array:
        return rounded(torch.randn(shape, generator=generator))

    def uniform(*shape: int) -> oracles.Array:
        return rounded((torch.rand(shape, generator=generator) * 2 - 1) * case.gain / case.H**0.5)

    def rounded(values: Tensor) -> oracles.Array:
        return np.asarray(values.to(case.dtype).double().numpy())

    T, B, D, P, H = case.T, case.B, case.D, case.P, case.H
    given = float(case.hx)
    arrays = {
        "x": normal(T, B, case.I),
        "h0": normal(case.layers * D, B, P) * given,
        "c0": normal(case.layers * D, B, H) * given * (case.cell == "lstm"),
        "d_output": normal(T, B, D * P),
        "d_h_n": normal(case.layers * D, B, P),
        "d_c_n": normal(case.layers * D, B, H) * (case.cell == "lstm"),
    }
    parameters = {}
    for layer in range(case.layers):
        for suffix in ("", "_reverse")[:D]:
            inputs = case.I if layer == 0 else D * P
            parameters[f"weight_ih_l{layer}{suffix}"] = uniform(GATES[case.cell] * H, inputs)
            parameters[f"weight_hh_l{layer}{suffix}"] = uniform(GATES[case.cell] * H, P)
            if case.bias:
                parameters[f"bias_ih_l{layer}{suffix}"] = uniform(GATES[case.cell] * H)
                parameters[f"bias_hh_l{layer}{suffix}"] = uniform(GATES[case.cell] * H)
            if case.proj:
                parameters[f"weight_hr_l{layer}{suffix}"] = uniform(case.proj, H)
    lengths = torch.randint(1, T + 1, (B,), generator=generator).tolist() if case.packed else [T] * B
    if case.kept and case.cell == "lstm":
        arrays.update((f"d_cells_l{k}", normal(T, B, D * H)) for k in range(case.layers))
    return Data(arrays, parameters, lengths)


def run_oracle(case: Case, seed: int, num: oracles.Arithmetic) -> Results:
    """The case by the oracle, in the given arithmetic."""
    given = data(case, seed)
    a = {name: num.enter(array) for name, array in given.arrays.items()}
    net = oracles.Network(case.cell, [
        [oracle_weights(case, given, num, f"_l{layer}{suffix}") for suffix in ("", "_reverse")[: case.D]]
        for layer in range(case.layers)
    ], case.cell_clip, case.grad_clip)  # fmt: skip
    run = oracles.forward(num, net, a["x"], a["h0"], a["c0"], given.lengths)
    d_cells = [a[name] for name in a if name.startswith("d_cells")]
    grads = oracles.backward(num, net, run, a["d_output"], a["d_h_n"], a["d_c_n"], d_cells or None)
    results = {"output": run.output, "h_n": run.h_n, "d_x": grads.x}
    if case.hx:
        results["d_h0"] = grads.h0
    if case.cell == "lstm":
        results["c_n"] = run.c_n
        if case.hx:
            results["d_c0"] = grads.c0
    for layer in range(case.layers) if case.kept else ():
        results[f"gates_l{layer}"] = oracles.gates(num, net, run, layer)
        if case.cell == "lstm":
            results[f"cells_l{layer}"] = oracles.cells(num, net, run, layer)
    fields = {
        "weight_ih": "w_ih",
        "weight_hh": "w_hh",
        "bias_ih": "b_ih",
        "bias_hh": "b_hh",
        "weight_hr": "w_hr",
    }
    for name in given.parameters:
        kind, _, place = name.partition("_l")
        layer, reverse = int(place[0]), int(place.endswith("_reverse"))
        results[f"d_{name}"] = getattr(grads.weights[layer][reverse], fields[kind])
    return results


def oracle_weights(case: Case, given: Data, num: oracles.Arithmetic, place: str) -> oracles.Weights:
    p = {name: num.enter(array) for name, array in given.parameters.items() if name.endswith(place)}
    zeros = num.zeros(GATES[case.cell] * case.H)
    return oracles.Weights(
        p["weight_ih" + place],
        p["weight_hh" + place],
        p.get("bias_ih" + place, zeros),
        p.get("bias_hh" + place, zeros),
        p.get("weight_hr" + place),
    )


def run_module(case: Case, seed: int, library: Any, dtype: torch.dtype | None = None, device: str = "cpu") -> Results:
    """The case by ``library.LSTM`` or ``library.GRU`` (``torch.nn`` or ``lstm_fused``), in the case's dtype."""
    given, dtype = data(case, seed), dtype or case.dtype
    strided = case.layout == "strided"

    def tensor(array: oracles.Array, requires_grad: bool = False) -> Tensor:
        t = torch.from_numpy(array).to(dtype).to(device)
        return (as_strided(t) if strided else t.clone()).requires_grad_(requires_grad)

    module = build(case, library, dtype).to(device)
    for name, parameter in module.named_parameters():
        parameter.data = tensor(given.parameters[name])
    a = {name: tensor(array, not name.startswith("d_")) for name, array in given.arrays.items()}
    states = (a["h0"], a["c0"]) if case.cell == "lstm" else (a["h0"],)
    hx = (states if case.cell == "lstm" else a["h0"]) if case.hx else None
    x = a["x"].transpose(0, 1).contiguous() if case.layout == "batch_first" else a["x"]
    keep: dict[str, bool] = {}
    if case.kept:
        keep = {"return_gates": True, **({"return_cells": True} if case.cell == "lstm" else {})}
    if case.padded and library is not torch.nn:
        output, state, *kept = module(x, hx, lengths=torch.tensor(given.lengths), **keep)
    elif case.packed:
        packed = pack_padded_sequence(x, torch.tensor(given.lengths), enforce_sorted=False)
        output, state, *kept = module(packed, hx, **keep)
        output = pad_packed_sequence(output, total_length=case.T)[0]
        kept = [[pad_packed_sequence(t, total_length=case.T)[0] for t in kind] for kind in kept]
    else:
        output, state, *kept = module(x, hx, **keep)
    if case.layout == "batch_first":
        output = output.transpose(0, 1)
        kept = [[t.transpose(0, 1) for t in kind] for kind in kept]
    cells, gates = (kept if len(kept) == 2 else [[], *kept]) if kept else ([], [])
    h_n, *c_n = state if case.cell == "lstm" else (state,)
    wanted = {"x": a["x"], **(dict(zip(("h0", "c0"), states, strict=False)) if case.hx else {})}
    wanted.update(module.named_parameters())
    cotangents = [a["d_output"], a["d_h_n"], *([a["d_c_n"]] if c_n else [])]
    cotangents += [a[f"d_cells_l{k}"] for k in range(len(cells))]
    grads = torch.autograd.grad([output, h_n, *c_n, *cells], list(wanted.values()), cotangents)
    results = {"output": output, "h_n": h_n, **({"c_n": c_n[0]} if c_n else {})}
    results.update((f"cells_l{k}", t) for k, t in enumerate(cells))
    results.update((f"gates_l{k}", t) for k, t in enumerate(gates))
    results.update((f"d_{name}", grad) for name, grad in zip(wanted, grads, strict=True))
    assert all(r.dtype == dtype for r in results.values()), {n: r.dtype for n, r in results.items()}
    return {name: result.detach().double().cpu().numpy() for name, result in results.items()}


def build(case: Case, library: Any, dtype: torch.dtype) -> torch.nn.Module:
    """The case's module, with the parameters that its constructor draws."""
    options: dict[str, Any] = {"proj_size": case.proj} if case.proj else {}
    if library is not torch.nn:
        own = {"grad_clip": case.grad_clip, "recompute": case.recompute and library is not loops}
        own["cell_clip"] = case.cell_clip
        options |= {name: value for name, value in own.items() if value}
    module: torch.nn.Module = getattr(library, case.cell.upper())(
        case.I,
        case.H,
        num_layers=case.layers,
        bias=case.bias,
        batch_first=case.layout == "batch_first",
        bidirectional=case.bidirectional,
        dtype=dtype,
        **options,
    )
    return module


def as_strided(t: Tensor) -> Tensor:
    """The same values with no dimension contiguous: every second element of a buffer whose dimensions are reversed."""
    buffer = torch.full([2 * n for n in reversed(t.shape)], float("nan"), dtype=t.dtype, device=t.device)
    view = buffer.permute(*reversed(range(t.dim())))[(slice(None, None, 2),) * t.dim()]
    return view.copy_(t)
