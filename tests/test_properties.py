"""Properties that hold for every shape, on shapes that hypothesis picks and shrinks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import cases
import hypothesis.strategies as st
import oracles
import raw
import tolerances
import torch
from cases import Case
from hypothesis import given
from torch import Tensor

import lstm_fused
from lstm_fused import runtime

F64 = torch.float64


@st.composite
def layers(draw: st.DrawFn, **fixed: Any) -> Case:
    """One layer of any options and of sizes that straddle every vector width and register block."""
    cell = fixed.get("cell") or draw(st.sampled_from(cases.CELLS), label="cell")
    H = draw(st.integers(1, 40), label="H")
    choices = {
        "T": st.integers(1, 7),
        "B": st.integers(1, 20),
        "I": st.integers(1, 20),
        "bidirectional": st.booleans(),
        "bias": st.booleans(),
        "packed": st.booleans(),
        "hx": st.booleans(),
        "proj": st.integers(0, H - 1) if cell == "lstm" else st.just(0),
        "layout": st.sampled_from(["contiguous", "strided"]),
    }
    drawn = {name: draw(choice, label=name) for name, choice in choices.items() if name not in fixed}
    return Case(**{"cell": cell, "H": H, "dtype": F64, **drawn, **fixed})


@dataclass(frozen=True)
class Setting:
    """How the kernels are to run: no result may depend on it."""

    isa: str
    plan: str
    threads: int

    @contextmanager
    def in_force(self) -> Iterator[None]:
        before = torch.get_num_threads()
        with runtime.use_isa(self.isa), runtime.use_plan(self.plan):
            torch.set_num_threads(self.threads)
            try:
                yield
            finally:
                torch.set_num_threads(before)


SETTINGS = st.builds(
    Setting, st.sampled_from(runtime.available_isas()), st.sampled_from(cases.PLANS), st.integers(1, 4)
)
SEEDS = st.integers(0, 1000)


def values_and_gradients(a: raw.Arguments, seed: int = 0) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Outputs, the cotangents drawn for them, and the gradients of [input, *states, *weights]."""
    outputs = a.call()
    generator = torch.Generator().manual_seed(seed)
    cotangents = [torch.randn(out.shape, dtype=out.dtype, generator=generator) for out in outputs]
    return outputs, cotangents, list(torch.autograd.grad(outputs, a.tensors, cotangents))


def assert_close(ours: Tensor, wanted: Tensor, message: str = "", scale: float | None = None) -> None:
    assert tolerances.close(ours.detach().numpy(), wanted.detach().numpy(), F64, scale), message


@given(case=layers(), setting=SETTINGS, layer_count=st.integers(1, 2), seed=SEEDS)
def test_any_shape_agrees_with_the_oracle(case: Case, setting: Setting, layer_count: int, seed: int) -> None:
    case = replace(case, layers=layer_count)
    with setting.in_force():
        ours = cases.run_module(case, seed, lstm_fused)
    wanted = cases.run_oracle(case, seed, oracles.FLOAT64)
    for name, value in wanted.items():
        # A gradient may cancel to nothing: its size is then that of the terms that cancelled, of order 1 here.
        assert tolerances.close(ours[name], value, F64, max(1.0, tolerances.largest([value]))), name


@given(case=layers(packed=True), setting=SETTINGS, seed=SEEDS)
def test_packed_rows_are_as_alone(case: Case, setting: Setting, seed: int) -> None:
    """Each row of a ragged batch gives what the row gives by itself, unpadded, in values and gradients."""
    with setting.in_force():
        together = raw.arguments(case, seed)
        outputs, cotangents, grads = values_and_gradients(together)
        sizes = together.batch_sizes.tolist() if together.batch_sizes is not None else []
        starts = [sum(sizes[:t]) for t in range(len(sizes))]
        total = [torch.zeros_like(w) for w in together.weights]
        for b in range(case.B):
            rows = [start + b for start, size in zip(starts, sizes, strict=True) if b < size]
            x = together.input.detach()[rows, None].requires_grad_()
            states = [s.detach()[:, b : b + 1].requires_grad_() for s in together.states]
            alone = replace(together, input=x, states=states, batch_sizes=None)
            out = alone.call()
            assert_close(out[0][:, 0], outputs[0][rows], "output", 1.0)
            for o, wanted in zip(out[1:], outputs[1:], strict=True):
                assert_close(o[:, 0], wanted[:, b], "states", 1.0)
            chosen = [cotangents[0][rows, None], *(c[:, b : b + 1] for c in cotangents[1:])]
            dx, *rest = torch.autograd.grad(out, alone.tensors, chosen)
            assert_close(dx[:, 0], grads[0][rows], "d_input", 1.0)
            for k, d in enumerate(rest[: len(states)]):
                assert_close(d[:, 0], grads[1 + k][:, b], together.names[1 + k], 1.0)
            total = [sum_ + d for sum_, d in zip(total, rest[len(states) :], strict=True)]
        for name, d, wanted in zip(together.names[1 + len(states) :], total, grads[1 + len(states) :], strict=True):
            assert_close(d, wanted, name, max(1.0, float(wanted.abs().max())))


@given(case=layers(packed=False, bidirectional=False, T=6), setting=SETTINGS, cut=st.integers(1, 5))
def test_two_runs_make_one(case: Case, setting: Setting, cut: int) -> None:
    """The final state of the first part, carried into the second, continues the run; gradients flow through it."""
    with setting.in_force():
        a = raw.arguments(replace(case, hx=True))
        outputs, cotangents, grads = values_and_gradients(a)
        first = replace(a, input=a.input[:cut]).call()
        second = replace(a, input=a.input[cut:], states=first[1:]).call()
        joined = [torch.cat([first[0], second[0]]), *second[1:]]
        for ours, wanted in zip(joined, outputs, strict=True):
            assert_close(ours, wanted, "values", 1.0)
        for name, d, wanted in zip(a.names, torch.autograd.grad(joined, a.tensors, cotangents), grads, strict=True):
            assert_close(d, wanted, name, max(1.0, float(wanted.abs().max())))


@given(case=layers(packed=False, bidirectional=True), setting=SETTINGS, seed=SEEDS)
def test_reverse_direction_is_forward_on_reversed_input(case: Case, setting: Setting, seed: int) -> None:
    with setting.in_force():
        a = raw.arguments(case, seed)
        outputs, cotangents, grads = values_and_gradients(a)
        half, P = len(a.weights) // 2, case.P
        for d in range(2):
            x = (a.input.detach().flip(0) if d else a.input.detach()).requires_grad_()
            states = [s.detach()[d : d + 1].requires_grad_() for s in a.states]
            one = replace(a, input=x, states=states, weights=a.weights[d * half : (d + 1) * half], bidirectional=False)
            out = one.call()
            wanted = outputs[0][..., d * P : (d + 1) * P]
            assert_close(out[0].flip(0) if d else out[0], wanted, "output", 1.0)
            cotangent = cotangents[0][..., d * P : (d + 1) * P]
            chosen = [cotangent.flip(0) if d else cotangent, *(c[d : d + 1] for c in cotangents[1:])]
            got = torch.autograd.grad(out, one.tensors, chosen)
            for k, dw in enumerate(got[1 + len(states) :]):
                full = grads[1 + len(states) + d * half + k]
                assert_close(dw, full, a.names[1 + len(states) + d * half + k], max(1.0, float(full.abs().max())))


@given(case=layers(), setting=SETTINGS, seed=SEEDS, exponent=st.integers(-20, 20))
def test_backward_is_linear_in_its_cotangents(case: Case, setting: Setting, seed: int, exponent: int) -> None:
    """Scaling by a power of two rounds nothing, so it scales every bit of every gradient."""
    with setting.in_force():
        a = raw.arguments(case, seed)
        outputs = a.call()
        cotangents = [torch.randn_like(out) for out in outputs]
        once = torch.autograd.grad(outputs, a.tensors, cotangents, retain_graph=True)
        scaled = torch.autograd.grad(outputs, a.tensors, [c * 2.0**exponent for c in cotangents], retain_graph=True)
        zero = torch.autograd.grad(outputs, a.tensors, [c * 0 for c in cotangents])
    for name, x, y, z in zip(a.names, once, scaled, zero, strict=True):
        assert torch.equal(x * 2.0**exponent, y), name
        assert not z.any(), name


@given(case=layers(packed=False, layout="contiguous"), setting=SETTINGS, row=st.integers(0, 19), seed=SEEDS)
def test_rows_do_not_touch(case: Case, setting: Setting, row: int, seed: int) -> None:
    """A NaN in one row of the batch stays in that row, and leaves the bits of every other row alone."""
    row %= case.B
    others = [b for b in range(case.B) if b != row]
    with setting.in_force():
        a = raw.arguments(case, seed)
        outputs, _, grads = values_and_gradients(a)
        poisoned = a.input.detach().clone()
        poisoned[:, row] = float("nan")
        b = replace(a, input=poisoned.requires_grad_())
        outputs_poisoned, _, grads_poisoned = values_and_gradients(b)
    count = 1 + len(a.states)
    for clean, dirty in zip([*outputs, *grads[:count]], [*outputs_poisoned, *grads_poisoned[:count]], strict=True):
        assert torch.equal(clean[:, others], dirty[:, others])
        assert dirty[:, row].isnan().all()


@given(case=layers(cell="lstm", proj=0), setting=SETTINGS, seed=SEEDS)
def test_projection_by_the_identity_is_none(case: Case, setting: Setting, seed: int) -> None:
    with setting.in_force():
        plain = raw.arguments(case, seed)
        outputs, _, grads = values_and_gradients(plain)
        half = len(plain.weights) // case.D
        directions = [plain.weights[d * half : (d + 1) * half] for d in range(case.D)]
        eye = [torch.eye(case.H, dtype=F64, requires_grad=True) for _ in range(case.D)]
        weights = [w for ws, e in zip(directions, eye, strict=True) for w in (*ws, e)]
        projected = replace(plain, weights=weights)
        outputs_projected, _, grads_projected = values_and_gradients(projected)
    for ours, wanted in zip(outputs_projected, outputs, strict=True):
        assert_close(ours, wanted, "values", 1.0)
    # Drop the gradients of the identities, the last of each direction.
    first = 1 + len(plain.states)
    kept = [g for k, g in enumerate(grads_projected) if k < first or (k - first) % (half + 1) != half]
    for name, d, wanted in zip(plain.names, kept, grads, strict=True):
        assert_close(d, wanted, name, max(1.0, float(wanted.abs().max())))


@given(case=layers(packed=False), setting=SETTINGS)
def test_no_rows(case: Case, setting: Setting) -> None:
    """B = 0: results of the right shape, and gradients of zero."""
    a = raw.arguments(case)
    x = a.input.detach()[:, :0].requires_grad_()
    a = replace(a, input=x, states=[s.detach()[:, :0].requires_grad_() for s in a.states])
    with setting.in_force():
        outputs = a.call()
        assert outputs[0].shape == (case.T, 0, case.D * case.P)
        assert [out.shape[:2] for out in outputs[1:]] == [(case.D, 0)] * (len(outputs) - 1)
        grads = torch.autograd.grad(outputs, a.tensors, [torch.ones_like(out) for out in outputs])
    for tensor, grad in zip(a.tensors, grads, strict=True):
        assert grad.shape == tensor.shape and not grad.any()


@given(case=layers(packed=True), setting=SETTINGS, empty=st.integers(1, 3))
def test_last_steps_may_have_no_rows(case: Case, setting: Setting, empty: int) -> None:
    """Packed data whose last steps are of no row: as without those steps, to the bit."""
    with setting.in_force():
        a = raw.arguments(case)
        assert a.batch_sizes is not None
        outputs, _, grads = values_and_gradients(a)
        longer = replace(a, batch_sizes=torch.cat([a.batch_sizes, torch.zeros(empty, dtype=torch.int64)]))
        outputs_longer, _, grads_longer = values_and_gradients(longer)
    assert all(torch.equal(x, y) for x, y in zip([*outputs_longer, *grads_longer], [*outputs, *grads], strict=True))
