"""Products of float32 numbers rounded to tf32, as torch allows its own recurrent layers on CUDA."""

from __future__ import annotations

from dataclasses import replace

import cases
import emulated
import oracles
import pytest
import tolerances
import torch
from cases import Case

import lstm_fused

pytestmark = pytest.mark.skipif(not emulated.running(), reason="runs where the CUDA backend does")
EPS = 2.0**-10  # of tf32
SHAPES = [
    Case(T=9, B=17, I=5, H=64),
    Case(T=9, B=3, I=7, H=33, bidirectional=True),
    Case(T=9, B=1, I=7, H=100, packed=True),
]


@pytest.mark.parametrize("cell", cases.CELLS)
@pytest.mark.parametrize("case", SHAPES, ids=lambda c: c.id)
def test_tf32(case: Case, cell: str, plan: str) -> None:
    """Results are off by the rounding of products' factors, and by no more; without leave they are float32's."""
    assert plan
    case = replace(case, cell=cell)
    exact = cases.run_oracle(case, 0, oracles.FLOAT64)
    errors = {}
    before = torch.backends.cudnn.rnn.fp32_precision
    for precision in ("tf32", "ieee"):
        torch.backends.cudnn.rnn.fp32_precision = precision
        ours = cases.run_module(case, 0, lstm_fused)
        errors[precision] = {
            name: tolerances.largest([ours[name] - exact[name]]) / tolerances.largest([exact[name]]) for name in exact
        }
    torch.backends.cudnn.rnn.fp32_precision = before
    for name in exact:
        assert errors["tf32"][name] <= 2 * EPS, (name, errors["tf32"][name])
        assert errors["ieee"][name] <= EPS / 100, (name, errors["ieee"][name])
    assert max(errors["tf32"].values()) > EPS / 20, "products were not of tf32"
