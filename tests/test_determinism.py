"""Bits: the same run to run, and under every plan and number of threads."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import cases
import pytest
import raw
import torch
from cases import Case
from torch import Tensor

from lstm_fused import runtime

THREADS = (1, 2, 3, 4)
CASES = [
    Case("lstm", T=9, B=17, I=5, H=33),
    Case("lstm", T=9, B=1, I=5, H=200),
    Case("lstm", T=1, B=2, I=5, H=200),
    Case("lstm", T=70, B=3, I=5, H=100, bidirectional=True),  # several chunks of time
    Case("lstm", T=9, B=17, I=5, H=33, packed=True, bidirectional=True),
    Case("lstm", T=9, B=17, I=5, H=100, proj=40, bidirectional=True),
    Case("gru", T=9, B=17, I=5, H=33),
    Case("gru", T=9, B=1, I=5, H=200),
    Case("gru", T=1, B=2, I=5, H=200),
    Case("gru", T=70, B=3, I=5, H=100, bidirectional=True),
    Case("gru", T=9, B=17, I=5, H=33, packed=True, bidirectional=True),
]


def run(a: raw.Arguments) -> dict[str, Tensor]:
    """Outputs and gradients, by name."""
    outputs = a.call()
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(out.shape, generator=generator).to(out.dtype) for out in outputs]
    grads = torch.autograd.grad(outputs, a.tensors, cotangents)
    names = ["output", "h_n", "c_n"][: len(outputs)] + ["d_" + name for name in a.names]
    return {name: result.detach() for name, result in zip(names, [*outputs, *grads], strict=True)}


def assert_same_bits(ours: dict[str, Tensor], wanted: dict[str, Tensor], what: str) -> None:
    for name, result in wanted.items():
        different = int((ours[name] != result).sum())
        assert different == 0, f"{what}: {different} of {result.numel()} elements of {name} differ"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=cases.short)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id.replace("f32-", ""))
def test_plans_and_thread_counts(case: Case, dtype: torch.dtype, isa: str) -> None:
    """Every plan on 1 to 4 threads, the cost model's choice among them, against one thread."""
    a = raw.arguments(replace(case, dtype=dtype))
    with runtime.use_plan("serial"):
        wanted = run(a)
    assert all(wanted[name].isfinite().all() for name in wanted)
    for plan in ("", "rows", "units"):
        for threads in THREADS:
            torch.set_num_threads(threads)
            with runtime.use_plan(plan):
                assert_same_bits(run(a), wanted, f"plan '{plan}', {threads} threads")


MANY_ROWS = [  # under some plans a worker has 32 rows or more, and multiplies W x within the step
    Case("lstm", T=5, B=70, I=7, H=33, bidirectional=True),
    Case("lstm", T=5, B=70, I=300, H=33, proj=20),
    Case("lstm", T=9, B=70, I=5, H=17, packed=True),
    Case("gru", T=5, B=70, I=7, H=33),
    Case("gru", T=9, B=70, I=5, H=17, packed=True, bidirectional=True),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=cases.short)
@pytest.mark.parametrize("case", MANY_ROWS, ids=lambda c: c.id.replace("f32-", ""))
def test_inference_has_the_bits_of_training(case: Case, dtype: torch.dtype, isa: str) -> None:
    a = raw.arguments(replace(case, dtype=dtype))
    with runtime.use_plan("serial"):
        wanted = {str(i): out.detach() for i, out in enumerate(a.call())}
    for plan in ("serial", "rows", "units"):
        for threads in THREADS:
            torch.set_num_threads(threads)
            with runtime.use_plan(plan), torch.no_grad():
                ours = {str(i): out for i, out in enumerate(a.call())}
            assert_same_bits(ours, wanted, f"plan {plan} on {threads} threads")


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id.replace("f32-", ""))
def test_plans_are_what_they_say(case: Case) -> None:
    """The comparison above is not of one plan with itself."""
    for plan, splits in (("rows", case.B > 1), ("units", True), ("serial", False)):
        with runtime.use_plan(plan):
            said = runtime.plan(case.cell, T=case.T, B=case.B, I=case.I, H=case.H, P=case.P, D=case.D, threads=2)
        assert said.startswith(plan if splits else "serial"), said


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id.replace("f32-", ""))
def test_run_to_run(case: Case, threads: int) -> None:
    """The same call again: everything comes out the same, whoever took which task."""
    torch.set_num_threads(threads)
    for plan in ("", "units"):
        with runtime.use_plan(plan) if plan else nullcontext():
            a = raw.arguments(case)
            wanted = run(a)
            for again in range(4):
                assert_same_bits(run(raw.arguments(case)), wanted, f"plan '{plan}', run {again + 2}")


# Products whose bits change with the number of threads where a vendor's GEMM does them: a long sum over T*B in the
# weights' gradients, and a short, wide input projection.
LARGE = [
    Case("lstm", T=500, B=16, I=64, H=64),
    Case("gru", T=500, B=16, I=64, H=64),
    Case("lstm", T=10, B=10, I=1024, H=512),
    Case("gru", T=10, B=10, I=1024, H=512, bidirectional=True),
    Case("lstm", T=100, B=33, I=70, H=50, packed=True, bidirectional=True, proj=20),
    Case("gru", T=100, B=33, I=70, H=50, packed=True, dtype=torch.float64),
    Case("lstm", T=100, B=33, I=70, H=50, dtype=torch.bfloat16),
]


@pytest.mark.parametrize("case", LARGE, ids=lambda c: c.id)
def test_large_products(case: Case) -> None:
    """Everything is the same on any number of threads, with and without ``torch.use_deterministic_algorithms``."""
    a = raw.arguments(case)
    torch.set_num_threads(1)
    wanted = run(a)
    for threads in THREADS:
        torch.set_num_threads(threads)
        assert_same_bits(run(a), wanted, f"{threads} threads")
    torch.use_deterministic_algorithms(True)
    assert_same_bits(run(a), wanted, "deterministic algorithms")
