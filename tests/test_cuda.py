"""The CUDA backend's results, on a card or on the emulated one: values, gradients, bits, errors.

References are computed on the CPU, by the oracle and by torch, unless it says otherwise. On the emulated device the
tables are short: other files of the suite run there too (``test_cuda_emulated``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cases
import devices
import emulated
import pytest
import raw
import test_gradcheck
import tolerances
import torch
from cases import SEEDS, Case
from pairs import pair
from test_values import references
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.utils.rnn import pack_padded_sequence

import lstm_fused
from lstm_fused.bench.card import precision

pytestmark = pytest.mark.cuda
CELLS = pytest.mark.parametrize("cell", cases.CELLS)

# ---- values and gradients ----------------------------------------------------------------------------------------


def small(table: list[Case], *wanted: int) -> list[Case]:
    """A table; on the emulated device the ``wanted`` places of it."""
    return [table[k] for k in wanted] if emulated.running() else table


LAYERS = small(cases.table(), 5, 13, 16) + small(cases.table((torch.float16,)), -1)


@pytest.mark.parametrize("case", LAYERS, ids=lambda c: c.id)
def test_layer(case: Case, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite's table by the suite's rule; the plans take turns over the seeds."""
    exact, theirs = references(case)
    ours = []
    for seed in SEEDS:
        monkeypatch.setenv("LSTM_FUSED_CUDA_PLAN", devices.PLANS[seed % len(devices.PLANS)])
        ours.append(cases.run_module(case, seed, lstm_fused, device=device))
    assert ours[0].keys() == exact[0].keys()
    tolerances.check(ours, theirs, exact, case.dtype)


# Of even steps, in 16-bit numbers and tf32: two pieces, of a third of the steps and the rest.
IN_PIECES = [
    Case("lstm", T=7, B=9, I=6, H=64, dtype=torch.float16, bidirectional=True),
    Case("gru", T=7, B=9, I=6, H=64, dtype=torch.bfloat16, bidirectional=True),
    Case("lstm", T=2, B=3, I=5, H=32, proj=8, bias=False, layers=2),
    Case("gru", T=5, B=3, I=5, H=32, recompute=True, layers=2),
]


@pytest.mark.parametrize("case", IN_PIECES, ids=lambda c: c.id)
def test_a_layer_in_pieces(case: Case, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and every gradient where the later steps' input is multiplied beside the first steps."""
    monkeypatch.setenv("LSTM_FUSED_CUDA_PLAN", "pieces")
    exact, theirs = references(case)
    tf32 = case.dtype == torch.float32
    with precision("tf32" if tf32 else "float32"):
        ours = [cases.run_module(case, seed, lstm_fused, device=device) for seed in SEEDS]
    tolerances.check(ours, theirs, exact, case.dtype, tf32=tf32)


# Sizes that people train, each under the plan that is chosen for it, and some that no tile divides.
LARGER = [
    Case(T=24, B=16, I=64, H=768, dtype=torch.bfloat16),
    Case(T=24, B=16, I=64, H=768, dtype=torch.float16),
    Case(T=12, B=16, I=64, H=1024),
    Case(T=6, B=100, I=32, H=600),
    Case(T=12, B=64, I=32, H=512, bidirectional=True),
    Case(T=24, B=65, I=20, H=260, packed=True, bidirectional=True),
    Case(T=24, B=128, I=128, H=128, layers=2),
    Case(T=200, B=3, I=16, H=64),
    Case(T=60, B=100, I=4, H=8),
    Case(T=6, B=130, I=7, H=1025),
]


@pytest.mark.parametrize("case", [replace(c, cell=k) for k in cases.CELLS for c in LARGER], ids=lambda c: c.id)
def test_larger_layer(case: Case, card: str) -> None:
    """Against torch's layer on the same card, in float64 (vouched for by the oracle) and in the case's dtype."""
    few = SEEDS[:4]  # of many elements each
    double = [cases.run_module(case, seed, torch.nn, torch.float64, card) for seed in few]
    theirs = [cases.run_module(case, seed, torch.nn, device=card) for seed in few]
    ours = [cases.run_module(case, seed, lstm_fused, device=card) for seed in few]
    cases.data.cache_clear()
    tolerances.check(ours, theirs, double, case.dtype, least=len(few))


@pytest.mark.parametrize("shape", [(9, 3, 5, 33), (5, 17, 9, 64)], ids=str)
@CELLS
def test_tf32(cell: str, shape: tuple[int, int, int, int], device: str, cuda_plan: str) -> None:
    """Where torch's settings allow products of float32 in tf32, errors are of that size and no larger."""
    case = Case(cell, *shape, bidirectional=True)
    exact, theirs = references(case)
    with precision("tf32"):
        ours = [cases.run_module(case, seed, lstm_fused, device=device) for seed in SEEDS]
    tolerances.check(ours, theirs, exact, case.dtype, tf32=True)
    off = tolerances.largest([a["output"] - b["output"] for a, b in zip(ours, exact, strict=True)])
    assert off > 2.0**-14 * tolerances.largest([r["output"] for r in exact]), "products were not of tf32"


@pytest.mark.parametrize(
    "case",
    small(test_gradcheck.for_cells(test_gradcheck.SLOW, test_gradcheck.SLOW_PROJECTIONS), 0, 15, -1),
    ids=lambda c: c.id,
)
def test_gradcheck_of_every_element(case: Case, device: str, cuda_plan: str) -> None:
    a = raw.arguments(case, device=device)
    assert gradcheck(lambda *tensors: tuple(a.call(tensors)), tuple(a.tensors))


@pytest.mark.parametrize(
    "case",
    small(test_gradcheck.for_cells(test_gradcheck.FAST, test_gradcheck.FAST_PROJECTIONS), 0, -1),
    ids=lambda c: c.id,
)
def test_gradcheck_of_wide_layers(case: Case, device: str, cuda_plan: str) -> None:
    a = raw.arguments(case, device=device)
    assert gradcheck(lambda *tensors: tuple(a.call(tensors)), tuple(a.tensors), fast_mode=True)


@CELLS
def test_no_rows(cell: str, device: str) -> None:
    """B = 0 is a batch like any other."""
    layer = getattr(lstm_fused, cell.upper())(5, 7, bidirectional=True).to(device)
    output, state = layer(torch.randn(4, 0, 5, device=device))
    output.sum().backward()
    h_n = state[0] if cell == "lstm" else state
    assert output.shape == (4, 0, 14) and h_n.shape == (2, 0, 7)
    assert not layer.weight_hh_l0.grad.any() and layer.weight_hh_l0.grad.device.type == device


# ---- what modules do around the kernels --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_converted_on_the_device(kind: str, device: str) -> None:
    """A model that is on the device already stays there, and computes the same."""
    model = torch.nn.Sequential(getattr(torch.nn, kind)(5, 7, num_layers=2, batch_first=True)).double().to(device)
    x = torch.randn(3, 4, 5, dtype=torch.float64, device=device)
    wanted = model(x)[0]
    assert (lstm_fused.convert(model)(x)[0] - wanted).abs().max() < 1e-12
    assert all(parameter.device.type == device for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell"])
def test_cells(kind: str, device: str) -> None:
    ours, theirs = (m.to(device) for m in pair(kind, 5, 7))
    x = torch.randn(3, 5, dtype=torch.float64, device=device)
    for a, b in zip(torch.atleast_2d(ours(x)), torch.atleast_2d(theirs(x)), strict=True):
        assert (a - b).abs().max() < 1e-12


@pytest.mark.parametrize("where", ["host", "device"])
@pytest.mark.parametrize("with_lengths", [True, False])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_lengths_and_resets(kind: str, with_lengths: bool, where: str, device: str) -> None:
    """Wherever lengths and resets are, rows of a padded batch are what they are on the CPU."""
    layer = getattr(lstm_fused, kind)(5, 7, bidirectional=True, dtype=torch.float64)
    x, lengths = torch.randn(6, 4, 5, dtype=torch.float64), torch.tensor([3, 6, 1, 4])
    resets = torch.zeros(6, 4, dtype=torch.bool)
    resets[2, 1] = resets[3, 3] = True
    given = {"resets": resets, **({"lengths": lengths} if with_lengths else {})}
    wanted = layer(x, **given)[0]
    there = {name: t.to(device if where == "device" else "cpu") for name, t in given.items()}
    found = layer.to(device)(x.to(device), **there)[0]
    assert (found.cpu() - wanted).abs().max() < 1e-12


@CELLS
def test_autocast(cell: str, device: str) -> None:
    """Results in the autocast dtype, near those in float32; gradients of float32 parameters in float32."""
    layer = getattr(lstm_fused, cell.upper())(16, 24, num_layers=2).to(device)
    x = torch.randn(5, 3, 16, device=device)
    with torch.autocast(device, torch.bfloat16):
        output, _ = layer(x)
    assert output.dtype == torch.bfloat16
    assert (output.float() - layer(x)[0]).abs().max() < 0.05
    output.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())


@CELLS
def test_opcheck(cell: str, device: str) -> None:
    """Schemas, fake tensors and autograd registration, as torch itself checks them."""
    a = raw.arguments(Case(cell, T=3, B=2, I=4, H=5, bidirectional=True), device=device)
    call = (a.cell, a.input, a.states, a.weights, a.batch_sizes, a.bidirectional)
    torch.library.opcheck(torch.ops.lstm_fused.layer.default, call)


# ---- bits --------------------------------------------------------------------------------------------------------

BITS = [
    Case(T=9, B=17, I=5, H=33),
    Case(T=9, B=1, I=5, H=200),
    Case(T=1, B=2, I=5, H=100),
    Case(T=9, B=5, I=5, H=64, bidirectional=True),
    Case(T=9, B=17, I=5, H=33, packed=True, bidirectional=True),
    Case(T=9, B=5, I=5, H=33, recompute=True),
    *([] if emulated.running() else [Case(T=40, B=16, I=64, H=768), Case(T=300, B=64, I=64, H=128)]),
]
DTYPES = (torch.float32, torch.bfloat16) if emulated.running() else cases.DTYPES
EVERY = [replace(c, cell=cell, dtype=dtype) for cell in cases.CELLS for dtype in DTYPES for c in BITS]
SOME = EVERY[::5] if emulated.running() else EVERY


def everything(a: raw.Arguments) -> list[Tensor]:
    """Results and every gradient."""
    outputs = a.call()
    grads = torch.autograd.grad(outputs, a.tensors, [output.detach().cos() for output in outputs])
    return [*(output.detach() for output in outputs), *grads]


def assert_same_bits(found: list[Tensor], wanted: list[Tensor], what: Any) -> None:
    for k, (x, y) in enumerate(zip(found, wanted, strict=True)):
        assert y.isfinite().all()
        assert torch.equal(x, y), f"{what}: {int((x != y).sum())} of {x.numel()} elements of result {k} differ"


@pytest.mark.parametrize("case", SOME, ids=lambda c: c.id)
def test_the_same_bits_under_every_plan(case: Case, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a = raw.arguments(case, device=device)
    wanted = everything(a)
    for plan in devices.PLANS:
        monkeypatch.setenv("LSTM_FUSED_CUDA_PLAN", plan)
        assert_same_bits(everything(a), wanted, plan)


@CELLS
def test_a_nan_of_all_ones_is_a_nan(cell: str, device: str, cuda_way: str) -> None:
    """In states, input and gradients it may come from outside; it is also what blocks take for not written yet."""
    a = raw.arguments(Case(cell, T=3, B=9, I=16, H=64, dtype=torch.float16), device=device)
    nan = torch.full((), -1, dtype=torch.int16, device=device).view(torch.float16)
    for tensor in (a.input, a.states[0]):
        tensor.data[..., 1, :] = nan  # of the second row
    outputs = a.call()
    gradients = torch.autograd.grad(outputs, a.tensors, [nan.expand_as(output) for output in outputs])
    assert outputs[0][:, 1].isnan().all() and not outputs[0][:, 2].isnan().any()
    assert gradients[0].isnan().all()


@pytest.mark.parametrize("case", SOME, ids=lambda c: c.id)
def test_the_same_bits_run_to_run(case: Case, device: str) -> None:
    wanted = everything(raw.arguments(case, device=device))
    for again in range(2 if device == "cpu" else 10):
        assert_same_bits(everything(raw.arguments(case, device=device)), wanted, f"run {again + 2}")


@pytest.mark.parametrize("case", SOME, ids=lambda c: c.id)
def test_inference_equals_training(case: Case, device: str) -> None:
    a = raw.arguments(case, device=device)
    trained = [output.detach() for output in a.call()]
    with torch.inference_mode():
        assert_same_bits(a.call(), trained, "inference")


@CELLS
def test_rows_do_not_depend_on_their_batch(cell: str, device: str) -> None:
    """A row alone, in a batch and in a packed sequence of full length: its recurrence takes the same sums."""
    layer = getattr(lstm_fused, cell.upper())(8, 33, dtype=torch.float64).to(device)
    x = torch.randn(6, 17, 8, dtype=torch.float64, device=device)
    output = layer(x)[0]
    packed = layer(pack_padded_sequence(x, torch.full((17,), 6)))[0].data.view_as(output)
    for k in (0, 16):
        assert (layer(x[:, k : k + 1])[0] - output[:, k : k + 1]).abs().max() < 1e-14
    assert (packed - output).abs().max() < 1e-14


# ---- errors ------------------------------------------------------------------------------------------------------


@CELLS
def test_unknown_plans_are_named(cell: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSTM_FUSED_CUDA_PLAN", "fast")
    with pytest.raises(RuntimeError, match="LSTM_FUSED_CUDA_PLAN: expected block, grid, pieces or step, got fast"):
        raw.arguments(Case(cell), device=device).call()


@pytest.mark.skipif(not emulated.running(), reason="a launch that fails takes a card's context with it")
@pytest.mark.parametrize("direction", ["forward", "backward"])
@CELLS
def test_a_failed_launch_names_plan_and_shape(
    cell: str, direction: str, device: str, cuda_plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = raw.arguments(Case(cell, T=4, B=3, I=5, H=7), device=device)
    output = a.call()[0]
    monkeypatch.setenv("PTX_LIMIT", "100")
    with pytest.raises(RuntimeError) as caught:
        a.call() if direction == "forward" else output.sum().backward()
    said = str(caught.value)
    assert f"lstm_fused: {direction} of {cell} (plan {cuda_plan}, " in said, said
    assert "T=4 B=3 H=7" in said, said


@pytest.mark.skipif(not emulated.running(), reason="a launch that fails takes a card's context with it")
def test_a_failed_launch_names_the_pieces(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSTM_FUSED_CUDA_PLAN", "pieces")
    monkeypatch.setenv("PTX_LIMIT", "100")
    with pytest.raises(RuntimeError, match="even steps, the first 2 before the others' input; T=4 B=3 H=64"):
        raw.arguments(Case(T=4, B=3, I=5, H=64, dtype=torch.float16), device=device).call()


def test_tensors_on_another_device_are_named(card: str) -> None:
    a = raw.arguments(Case(T=4, B=3), device=card)
    for k in range(1, len(a.tensors)):
        moved = [t.cpu() if i == k else t for i, t in enumerate(a.tensors)]
        kind = "states" if k <= len(a.states) else "weights"
        with pytest.raises(RuntimeError, match=rf"{kind}\[\d\].*: expected device cuda:0 as input's, got cpu"):
            a.call(moved)
