"""Outputs, states and gradients against the oracle and against torch's own layers, by the rule of ``tolerances``."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import cases
import emulated
import numpy as np
import oracles
import pytest
import raw
import tolerances
import torch
from cases import SEEDS, Case, Results

import lstm_fused
from lstm_fused import runtime

# In this order of decorators the tests of one case follow each other, so that its references are computed once.
isas = [runtime.isa()] if emulated.running() else runtime.available_isas()
each_isa = pytest.mark.parametrize("isa", isas, indirect=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """For references: torch's layers gain nothing from more on such sizes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.lru_cache(maxsize=1)
def references(case: Case) -> tuple[list[Results], list[Results]]:
    """The exact results, one precision above the case's dtype, and torch's own in the case's dtype."""
    with one_thread():
        theirs = [cases.run_module(case, seed, case.library_of_torch) for seed in SEEDS]
    num = oracles.EXTENDED if case.dtype == torch.float64 else oracles.FLOAT64
    exact = [cases.run_oracle(case, seed, num) for seed in SEEDS]
    return exact, theirs


# ---- the oracle itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases.table((torch.float64,)), ids=lambda c: c.id)
def test_oracle_agrees_with_torch_in_float64(case: Case) -> None:
    """The judge judged: the equations as the oracle has them are those of torch.nn, for every option."""
    exact, theirs = references(case)
    for name in exact[0]:
        scale = tolerances.largest([r[name] for r in exact])
        error = tolerances.largest([a[name] - b[name] for a, b in zip(exact, theirs, strict=True)])
        assert error <= 1e3 * tolerances.eps(torch.float64) * scale, name


@pytest.mark.parametrize("cell", cases.CELLS)
def test_extended_oracle_against_fifty_digits(cell: str) -> None:
    """The judge of float64 is itself right to far better than float64's eps, gradients included."""
    case = Case(cell, T=3, B=2, I=2, H=2, dtype=torch.float64, bidirectional=True, proj=int(cell == "lstm"))
    extended = cases.run_oracle(case, 0, oracles.EXTENDED)
    exact = cases.run_oracle(case, 0, oracles.multiprecision())
    for name, wanted in exact.items():
        error = abs(np.asarray(wanted - extended[name], dtype=np.float64)).max()
        assert error <= 1e-3 * tolerances.eps(torch.float64) * float(abs(wanted).max()), name


def test_rule_notices_one_wrong_element() -> None:
    """The tolerances can fail: one element of thousands, wrong by half of the largest, is an error in any dtype."""
    draw = np.random.default_rng(0).standard_normal
    exact = [{"output": draw((60, 100))} for _ in SEEDS]
    ours = [{"output": r["output"].copy()} for r in exact]
    tolerances.check(ours, exact, exact, torch.bfloat16)
    ours[7]["output"][3, 5] += 0.5 * tolerances.largest([exact[7]["output"]])
    with pytest.raises(AssertionError, match="output, largest element"):
        tolerances.check(ours, exact, exact, torch.bfloat16)
    ours[7]["output"][3, 5] = np.nan
    with pytest.raises(AssertionError, match="output, root mean square"):
        tolerances.check(ours, exact, exact, torch.bfloat16)


# ---- whole layers ------------------------------------------------------------------------------------------------


@each_isa
@pytest.mark.parametrize("case", cases.table(), ids=lambda c: c.id)
def test_layer(case: Case, isa: str) -> None:
    """Values and every gradient of the module, for each case and ISA; the plans take turns over the seeds."""
    exact, theirs = references(case)
    ours = []
    for seed in SEEDS:
        with cases.use_plan(cases.PLANS[seed % len(cases.PLANS)]):
            ours.append(cases.run_module(case, seed, lstm_fused))
    assert ours[0].keys() == exact[0].keys()
    tolerances.check(ours, theirs, exact, case.dtype)


LARGER = [
    Case("lstm", T=10, B=33, I=40, H=129, bidirectional=True),
    Case("gru", T=10, B=33, I=40, H=129, bidirectional=True),
    Case("lstm", T=20, B=65, I=20, H=48, packed=True, bidirectional=True),
    Case("gru", T=20, B=65, I=20, H=48, packed=True, bidirectional=True),
    Case("lstm", T=120, B=2, I=8, H=64),
    Case("gru", T=120, B=2, I=8, H=64),
    Case("lstm", T=10, B=9, I=16, H=260, proj=72),
    Case("lstm", T=24, B=80, I=40, H=130, bidirectional=True),  # 4 MB of gates a direction: several chunks of time
    Case("gru", T=40, B=80, I=40, H=100, bidirectional=True, packed=True),
    Case("lstm", T=60, B=100, I=4, H=8),  # weight gradients are sums of 6,000 terms
    Case("gru", T=60, B=100, I=4, H=8),
    Case("gru", T=60, B=100, I=4, H=8, packed=True),
    Case("lstm", T=16, B=40, I=8, H=300, bidirectional=True),  # the input gradient is a sum of 2 x 1,200 terms
]


@functools.lru_cache(maxsize=1)
def torch_references(case: Case) -> tuple[list[Results], list[Results]]:
    """torch's layer in float64, which the oracle has vouched for and which is faster, and in the case's dtype."""
    with one_thread():
        double = [cases.run_module(case, seed, torch.nn, torch.float64) for seed in SEEDS]
        return double, [cases.run_module(case, seed, torch.nn) for seed in SEEDS]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("case", LARGER, ids=lambda c: c.id)
def test_larger_layer(case: Case, threads: int) -> None:
    """Several tiles, several chunks of time, work for every thread, under the plan that the cost model picks."""
    double, theirs = torch_references(case)
    torch.set_num_threads(threads)
    ours = [cases.run_module(case, seed, lstm_fused) for seed in SEEDS]
    tolerances.check(ours, theirs, double, case.dtype)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=cases.short)
@pytest.mark.parametrize("cell", cases.CELLS)
def test_sixteen_bits_over_chunks_of_time(cell: str, dtype: torch.dtype, packed: bool) -> None:
    """Where gates pass through a buffer, chunk by chunk: as float32 does it, to the rounding of what is stored."""
    case = Case(cell, T=60, B=60, I=20, H=100, dtype=dtype, bidirectional=True, packed=packed)
    rounded = cases.run_module(case, 0, lstm_fused)
    wanted = cases.run_module(case, 0, lstm_fused, torch.float32)
    for name, value in wanted.items():
        error = tolerances.root_mean_square([rounded[name] - value])
        assert error <= 4 * tolerances.eps(dtype) * tolerances.root_mean_square([value]), name


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.short)
@pytest.mark.parametrize("cell", cases.CELLS)
def test_inference_equals_training(cell: str, dtype: torch.dtype, isa: str, plan: str) -> None:
    """Without a graph nothing is saved, so another code path runs: it gives the same bits."""
    for case in (
        Case(cell, T=1, B=2, I=5, H=33),
        Case(cell, T=9, B=5, I=5, H=33),
        Case(cell, T=9, B=5, I=5, H=33, bidirectional=True, packed=True),
    ):
        a = raw.arguments(replace(case, dtype=dtype))
        trained = a.call()
        with torch.no_grad():
            inferred = a.call()
        with torch.inference_mode():
            inferred_again = a.call()
        for x, y, z in zip(trained, inferred, inferred_again, strict=True):
            assert not y.requires_grad
            assert torch.equal(x, y) and torch.equal(y, z)


# ---- one step ----------------------------------------------------------------------------------------------------

STEP_SIZES = [(1, 1, 1), (3, 5, 7), (17, 9, 33), (1, 100, 100)]  # B, I, H


def run_cell(case: Case, seed: int, library: object) -> Results:
    """The case's first step, through ``library.LSTMCell`` or ``library.GRUCell``."""
    given, dtype = cases.data(case, seed), case.dtype
    module = getattr(library, f"{case.cell.upper()}Cell")(case.I, case.H, bias=case.bias, dtype=dtype)
    for name, parameter in module.named_parameters():
        parameter.data = torch.from_numpy(given.parameters[name + "_l0"]).to(dtype)
    a = {name: torch.from_numpy(array[0]).to(dtype) for name, array in given.arrays.items()}
    names = ["h0", "c0"] if case.cell == "lstm" else ["h0"]
    wanted = {name: a[name].requires_grad_() for name in ["x", *(names if case.hx else [])]}
    states = tuple(a[name] for name in names)
    hx = (states if case.cell == "lstm" else states[0]) if case.hx else None
    out = module(a["x"], hx)
    h1, *c1 = out if case.cell == "lstm" else (out,)
    wanted.update(module.named_parameters())
    grads = torch.autograd.grad([h1, *c1], list(wanted.values()), [a["d_h_n"], *([a["d_c_n"]] if c1 else [])])
    results = {"h1": h1, **({"c1": c1[0]} if c1 else {})}
    results.update((f"d_{name}", grad) for name, grad in zip(wanted, grads, strict=True))
    return {name: result.detach().double().numpy() for name, result in results.items()}


@functools.lru_cache(maxsize=1)
def step_references(case: Case) -> tuple[list[Results], list[Results]]:
    num = oracles.EXTENDED if case.dtype == torch.float64 else oracles.FLOAT64
    exact = [step_oracle(case, seed, num) for seed in SEEDS]
    with one_thread():
        return exact, [run_cell(case, seed, torch.nn) for seed in SEEDS]


STEPS = [
    Case(cell, T=1, B=B, I=I, H=H, dtype=dtype, bias=plain, hx=plain)
    for cell, (B, I, H), plain, dtype in itertools.product(cases.CELLS, STEP_SIZES, (True, False), cases.DTYPES)
]


@each_isa
@pytest.mark.parametrize("case", STEPS, ids=lambda c: c.id)
def test_step(case: Case, isa: str) -> None:
    """The cell modules against the oracle's single step, beside torch's."""
    exact, theirs = step_references(case)
    ours = [run_cell(case, seed, lstm_fused) for seed in SEEDS]
    assert ours[0].keys() == exact[0].keys() == theirs[0].keys()
    tolerances.check(ours, theirs, exact, case.dtype)


def step_oracle(case: Case, seed: int, num: oracles.Arithmetic) -> Results:
    given = cases.data(case, seed)
    w = cases.oracle_weights(case, given, num, "_l0")
    a = {name: num.enter(array) for name, array in given.arrays.items()}
    net = oracles.Network(case.cell, [[w]])
    run = oracles.forward(num, net, a["x"], a["h0"], a["c0"], given.lengths)
    grads = oracles.backward(num, net, run, a["d_output"] * 0, a["d_h_n"], a["d_c_n"])
    dw = grads.weights[0][0]
    results = {"h1": run.h_n[0], "d_x": grads.x[0], "d_weight_ih": dw.w_ih, "d_weight_hh": dw.w_hh}
    if case.cell == "lstm":
        results["c1"] = run.c_n[0]
    if case.hx:
        results["d_h0"] = grads.h0[0]
        if case.cell == "lstm":
            results["d_c0"] = grads.c0[0]
    if case.bias:
        results["d_bias_ih"], results["d_bias_hh"] = dw.b_ih, dw.b_hh
    return results
