"""The reference (csrc/reference.cpp) against the fused kernels: every cell and every option, values and gradients.

Higher derivatives and forward mode rest on it. The kernels are held to the oracle elsewhere, so that agreement with
them is agreement with the equations.
"""

from __future__ import annotations

import cases
import pytest
import raw
import tolerances
import torch
from cases import Case
from routes import Calls
from torch import Tensor

OPS = torch.ops.lstm_fused
ONE_LAYER = [c for c in cases.table() if c.layers == 1 and c.layout != "batch_first" and not c.kept]
INCOMING = 1.0  # the size of the incoming gradients: a gradient that cancels to less was a sum of such
each_case = pytest.mark.parametrize("case", ONE_LAYER, ids=lambda c: c.id)


def reference(a: raw.Arguments) -> list[Tensor]:
    results: list[Tensor] = OPS.reference(
        a.cell, a.input, a.states, a.weights, a.batch_sizes, a.bidirectional, *a.options
    )
    return results


def assert_same(case: Case, names: list[str], ours: list[Tensor], wanted: list[Tensor], least: float = 0.0) -> None:
    """By the scale of the wanted tensor, or by ``least`` if that is more."""
    for name, x, y in zip(names, ours, wanted, strict=True):
        assert x.dtype == y.dtype == case.dtype, name
        a, b = (t.detach().double().numpy() for t in (x, y))
        scale = max(least, tolerances.largest([b]))
        assert tolerances.close(a, b, case.dtype, scale, terms=case.T * case.B), name


@pytest.mark.parametrize("case", [c for c in ONE_LAYER if c.grad_clip is None], ids=lambda c: c.id)
def test_layer(case: Case) -> None:
    """Forward, and autograd through forward: every gradient as the backward kernel has it."""
    a = raw.arguments(case)
    wanted = a.call()
    with Calls() as calls:
        results = reference(a)
    assert calls.fused == {} and calls.products > 0
    assert_same(case, ["output", "h_n", "c_n"][: len(wanted)], results, wanted)
    cotangents = [torch.randn_like(r) for r in wanted]
    grads = [list(torch.autograd.grad(r, a.tensors, cotangents)) for r in (results, wanted)]
    assert_same(case, a.names, *grads, least=INCOMING)


@each_case
def test_backward_from_what_forward_saved(case: Case) -> None:
    """With ``samples``, the backward operator is the reference's: weight gradients of each sample, which add up."""
    a = raw.arguments(case, requires_grad=False)
    output, *rest = OPS.forward(a.cell, a.input, a.states, a.weights, a.batch_sizes, a.bidirectional, *a.options)
    states = 2 if case.cell == "lstm" else 1
    saved = rest[states:]
    cells = (saved if case.recompute else saved[1::2]) if states == 2 else []
    cotangents = [torch.randn_like(r) for r in (output, *rest[:states], *cells)]
    limits = a.options[:2]
    layer = (a.cell, cotangents, a.input, a.states, a.weights, a.batch_sizes, a.bidirectional, *limits, output, saved)
    needed = [True] * len(a.tensors)
    wanted = OPS.backward(*layer, needed)
    first_weight = 1 + len(a.states)
    for samples in (1, case.B) if not case.packed else (1,):
        apart = OPS.backward(*layer, needed, samples)
        assert all(dw.shape == (samples, *w.shape) for dw, w in zip(apart[first_weight:], a.weights, strict=True))
        summed = apart[:first_weight] + [dw.double().sum(0).to(case.dtype) for dw in apart[first_weight:]]
        assert_same(case, a.names, summed, wanted, least=INCOMING)


@pytest.mark.parametrize("cell", cases.CELLS)
def test_samples_are_rows_in_turn(cell: str) -> None:
    """Row b*V + v belongs to sample v: its weight gradients are those of these rows alone."""
    a = raw.arguments(Case(cell, T=3, B=6, I=4, H=5, dtype=torch.float64), requires_grad=False)
    needed = [True] * len(a.tensors)
    V, first_weight = 3, 1 + len(a.states)

    def backward(rows: slice, samples: int) -> list[Tensor]:
        input, states = a.input[:, rows], [s[:, rows] for s in a.states]
        output, *rest = OPS.forward(cell, input, states, a.weights, None, False)
        saved = rest[len(states) :]
        grads = [output.cos(), *[r.sin() for r in rest[: len(states)]], *[c.cos() for c in saved[1:]]]
        results: list[Tensor] = OPS.backward(
            cell, grads, input, states, a.weights, None, False, None, None, output, saved, needed, samples
        )
        return results[first_weight:]

    together = backward(slice(None), V)
    for v in range(V):
        for apart, wanted in zip(together, backward(slice(v, None, V), 0), strict=True):
            assert tolerances.close(apart[v].numpy(), wanted.numpy(), torch.float64)


def test_wrong_calls_of_backward_are_named() -> None:
    """The kernel reads what it is given by pointer: everything is checked first."""
    a = raw.arguments(Case(dtype=torch.float64), requires_grad=False)
    output, h_n, c_n, *saved = OPS.forward(a.cell, a.input, a.states, a.weights, None, False)
    right = {"grads": [output, h_n, c_n, saved[1]], "output": output, "saved": saved, "needed": [True] * len(a.tensors)}
    wrong: list[tuple[str, str, object]] = [
        ("grads", "grads: expected 4", right["grads"][:2]),
        ("saved", "saved: expected 2 tensors, or 1 without gates, got 3", saved + saved[:1]),
        ("saved", r"saved\[0\]: expected Double of shape", saved[:1]),  # taken for c_t without gates
        ("needed", "needed: expected", right["needed"][1:]),
        ("output", r"output\[0\]: expected Double of shape", output[:, :2]),
        ("output", r"output\[0\]: expected Double of shape", output.float()),
        *(
            (
                name,
                rf"{name}\[{k}\]: expected Double of shape",
                [change(t) if i == k else t for i, t in enumerate(given)],
            )
            for name, given in (("grads", right["grads"]), ("saved", saved))
            for k in range(len(given))
            for change in (lambda t: t[..., 1:], lambda t: t[1:], lambda t: t.float(), lambda t: t[None])
        ),
    ]
    for samples in (0, 1):
        for name, message, value in wrong:
            w = {**right, name: value}
            with pytest.raises(RuntimeError, match=message):
                OPS.backward(
                    a.cell, w["grads"], a.input, a.states, a.weights, None, False, None, None, w["output"], w["saved"],
                    w["needed"], samples,
                )  # fmt: skip
    for samples in (-1, 2):
        with pytest.raises(RuntimeError, match="samples: expected a divisor of 3 rows"):
            OPS.backward(
                a.cell, right["grads"], a.input, a.states, a.weights, None, False, None, None, output, saved,
                right["needed"], samples,
            )  # fmt: skip
