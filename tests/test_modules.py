"""The modules stand in for torch.nn's: values and gradients under every option, in every dtype."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pairs import CELLS, F64, LAYERS, assert_close, assert_same, packed, pair, run, states, tensors, total
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

T, B, I, H, P = 4, 3, 5, 7, 2
FORMS = ("batched", "unbatched", "packed_sorted", "packed_unsorted")

pytestmark = pytest.mark.filterwarnings("ignore:dropout option adds dropout")


def inputs(form: str, batch_first: bool = False) -> Any:
    if form == "packed_sorted":
        return packed(I, [4, 4, 1], enforce_sorted=True)
    if form == "packed_unsorted":
        return packed(I, [1, 4, 3])
    if form == "unbatched":
        return torch.randn(T, I, dtype=F64)
    return torch.randn(B, T, I, dtype=F64) if batch_first else torch.randn(T, B, I, dtype=F64)


OPTIONS = {
    "num_layers": (1, 3),
    "bias": (True, False),
    "batch_first": (False, True),
    "bidirectional": (False, True),
    "proj_size": (0, P),
    "form": FORMS,
    "hx": (True, False),
}


def combinations(kind: str) -> list[dict[str, Any]]:
    choices = OPTIONS if kind == "LSTM" else {k: v for k, v in OPTIONS.items() if k != "proj_size"}
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def name_of(options: dict[str, Any]) -> str:
    return "-".join(f"{k}={v}" for k, v in options.items())


@pytest.mark.parametrize(
    ("kind", "options"),
    [pytest.param(k, o, id=f"{k}-{name_of(o)}") for k in LAYERS for o in combinations(k)],
)
def test_every_option_combination(kind: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    options = dict(options)
    form, hx = options.pop("form"), options.pop("hx")
    ours, theirs = pair(kind, I, H, **options)
    ours.train(hx), theirs.train(hx)  # the mode matters to dropout alone; backward works in either
    rows = options["num_layers"] * (2 if options["bidirectional"] else 1)
    shape = (rows,) if form == "unbatched" else (rows, B)
    state = states(kind, *shape, H=H, P=options.get("proj_size", 0)) if hx else None
    assert_same(ours, theirs, inputs(form, options["batch_first"]), state)


@pytest.mark.parametrize("hx", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (1,), (B,), (0,)])
@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind: str, batch: tuple[int, ...], bias: bool, hx: bool) -> None:
    ours, theirs = pair(kind, I, H, bias=bias)
    assert_same(ours, theirs, torch.randn(*batch, I, dtype=F64), states(kind, *batch, H=H) if hx else None)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}])
@pytest.mark.parametrize("kind", LAYERS)
def test_no_rows(kind: str, options: dict[str, Any]) -> None:
    ours, theirs = pair(kind, I, H, **options)
    rows = 4 if options else 1
    for state in (None, states(kind, rows, 0, H=H)):
        assert_same(ours, theirs, torch.randn((0, T, I) if options else (T, 0, I), dtype=F64), state)
    assert_same(ours, theirs, PackedSequence(torch.randn(0, I, dtype=F64), torch.tensor([0])))


@pytest.mark.parametrize("shape", [(1, 1), (1, B), (T, 1), (40, 2)])
@pytest.mark.parametrize("kind", LAYERS)
def test_lengths_and_batches(kind: str, shape: tuple[int, int]) -> None:
    ours, theirs = pair(kind, I, H, num_layers=2)
    assert_same(ours, theirs, torch.randn(*shape, I, dtype=F64), states(kind, 2, shape[1], H=H))


def transposed(*shape: int) -> Tensor:
    return torch.randn(*reversed(shape), dtype=F64).permute(*reversed(range(len(shape))))


def expanded(*shape: int) -> Tensor:
    return torch.randn(*shape[:-1], 1, dtype=F64).expand(shape)


def every_second(*shape: int) -> Tensor:
    return torch.randn(*shape[:-1], 2 * shape[-1], dtype=F64)[..., ::2]


def negative_side(*shape: int) -> Tensor:
    return torch.randn(2, *shape, dtype=F64)[1]  # a storage offset


@pytest.mark.parametrize("layout", [transposed, expanded, every_second, negative_side])
@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_layouts(kind: str, layout: Callable[..., Tensor]) -> None:
    """No argument needs to be contiguous: input, states, weights, incoming gradients."""
    ours, theirs = pair(kind, I, H)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        mine.data = other.data = layout(*mine.shape)
    lead = (B,) if kind in CELLS else (1, B)
    x = layout(B, I) if kind in CELLS else layout(T, B, I)
    state = (layout(*lead, H), layout(*lead, H)) if kind.startswith("LSTM") else layout(*lead, H)
    their_results = run(theirs, list(theirs.parameters()), (x, state))
    our_results = run(ours, list(ours.parameters()), (x, state))
    for a, b in zip(tensors(our_results), tensors(their_results), strict=True):
        assert_close(a, b)

    x.requires_grad_()  # gradients that arrive expanded (from sum) and transposed
    for reduce in (torch.sum, lambda t: (t.transpose(0, -1).contiguous() ** 2).sum()):
        (ours_dx,), (theirs_dx,) = (
            torch.autograd.grad(reduce(tensors(module(x, state))[0]), [x]) for module in (ours, theirs)
        )
        assert_close(ours_dx, theirs_dx)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", LAYERS)
def test_dropout_draws_as_torch_does(kind: str, form: str, probability: float) -> None:
    ours, theirs = pair(kind, I, H, num_layers=3, dropout=probability, bidirectional=True, batch_first=True)
    x = inputs(form, batch_first=True)

    def seeded(module: nn.Module) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            torch.manual_seed(5)
            return module(*args)

        return call

    for mode in (True, False):
        ours.train(mode), theirs.train(mode)
        ours_all = run(seeded(ours), list(ours.parameters()), (x,))
        theirs_all = run(seeded(theirs), list(theirs.parameters()), (x,))
        for a, b in zip(tensors(ours_all), tensors(theirs_all), strict=True):
            assert_close(a, b)


@pytest.mark.parametrize("wanted", ["", "x", "hx", "weight_hh", "weight_ih", "bias", "x hx", "weight_hr"])
@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_gradients_only_where_asked_for(kind: str, wanted: str) -> None:
    options: dict[str, Any] = {"proj_size": P} if kind == "LSTM" else {}
    ours, theirs = pair(kind, I, H, **options)
    names = wanted.split()
    x = torch.randn(*((B, I) if kind in CELLS else (T, B, I)), dtype=F64, requires_grad="x" in names)
    state = states(kind, *((B,) if kind in CELLS else (1, B)), H=H, P=options.get("proj_size", 0))
    for s in tensors(state):
        s.requires_grad_("hx" in names)
    results = []
    for module in (ours, theirs):
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(any(name.startswith(n) for n in names))
        outputs = tensors(module(x, state))
        asked = [t for t in (x, *tensors(state), *module.parameters()) if t.requires_grad]
        assert all(o.requires_grad == bool(asked) for o in outputs)
        if asked:
            total([o.sin() for o in outputs]).backward()
            results.append([t.grad.clone() for t in asked if t.grad is not None])
            for t in asked:
                t.grad = None
        untouched = [t for t in (x, *tensors(state), *module.parameters()) if not t.requires_grad]
        assert all(t.grad is None for t in untouched)
    if results:
        for a, b in zip(*results, strict=True):
            assert_close(a, b)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_gradient_of_one_result_alone(kind: str, which: int) -> None:
    """The loss may use the output, h_n or c_n only; the others' incoming gradients are then undefined."""
    ours, theirs = pair(kind, I, H)
    x = torch.randn(*((B, I) if kind in CELLS else (T, B, I)), dtype=F64)
    grads = []
    for module in (ours, theirs):
        results = tensors(module(x))
        grads.append(torch.autograd.grad(results[which % len(results)].sum(), list(module.parameters())))
    for a, b in zip(*grads, strict=True):
        assert_close(a, b)


def test_second_backward_through_the_same_graph() -> None:
    ours, _ = pair("LSTM", I, H)
    loss = ours(torch.randn(T, B, I, dtype=F64))[0].sum()
    first = torch.autograd.grad(loss, list(ours.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(ours.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, list(ours.parameters()))


@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_a_result_or_weight_changed_before_backward_is_noticed(kind: str) -> None:
    """Either the gradient does not depend on the changed tensor, or backward refuses."""
    x = torch.randn(*((B, I) if kind in CELLS else (T, B, I)), dtype=F64)
    changes: list[Callable[[nn.Module, list[Tensor]], Any]] = [
        lambda module, results: results[0].mul_(2),
        lambda module, results: results[-1].mul_(2),
        lambda module, results: next(module.parameters()).mul_(2),
        lambda module, results: list(module.parameters())[1].mul_(2),
    ]
    for change in changes:
        ours, _ = pair(kind, I, H)
        x.requires_grad_()
        (expected,) = torch.autograd.grad(tensors(ours(x))[0].sum(), [x])
        results = tensors(ours(x))
        loss = results[0].sum()
        with torch.no_grad():
            change(ours, results)
        try:
            (dx,) = torch.autograd.grad(loss, [x])
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)  # noqa: PT017
        else:
            assert torch.equal(dx, expected)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_without_grad(kind: str, context: Callable[[], Any]) -> None:
    ours, theirs = pair(kind, I, H)
    x = torch.randn(*((B, I) if kind in CELLS else (T, B, I)), dtype=F64)
    with context():
        for a, b in zip(tensors(ours(x)), tensors(theirs(x)), strict=True):
            assert not a.requires_grad
            assert_close(a, b)


# -- dtypes and autocast -----------------------------------------------------------------

PLAIN_AND_STACKED: list[tuple[str, dict[str, Any]]] = [(kind, {}) for kind in LAYERS + CELLS]
PLAIN_AND_STACKED += [(kind, {"num_layers": 2, "bidirectional": True}) for kind in LAYERS]

LOW = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", [torch.float32, *LOW])
@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_dtypes(kind: str, dtype: torch.dtype) -> None:
    """Results and gradients come in the layer's dtype, near float64's; how near is for ``test_values``."""
    exact, _ = pair(kind, I, H)
    rounded = copy.deepcopy(exact).to(dtype)
    exact.load_state_dict(rounded.state_dict())
    x = torch.randn(*((B, I) if kind in CELLS else (T, B, I))).to(dtype)
    wanted = run(exact, list(exact.parameters()), (x.double(),))
    got = run(rounded, list(rounded.parameters()), (x,))
    for a, b in zip(tensors(got), tensors(wanted), strict=True):
        assert a.dtype == dtype
        assert (a.double() - b).norm() <= 20 * torch.finfo(dtype).eps * b.norm()


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("hx", [True, False])
@pytest.mark.parametrize(("kind", "options"), PLAIN_AND_STACKED)
def test_autocast(kind: str, options: dict[str, Any], hx: bool, dtype: torch.dtype) -> None:
    """Equal to a layer converted to the dtype, while gradients arrive in the parameters' own."""
    ours, _ = pair(kind, I, H, dtype=torch.float32, **options)
    lowered = copy.deepcopy(ours).to(dtype)
    x = torch.randn(*((B, I) if kind in CELLS else (T, B, I)))
    lead = (B,) if kind in CELLS else (4 if options else 1, B)
    state = states(kind, *lead, H=H, dtype=torch.float32) if hx else None

    with torch.autocast("cpu", dtype):
        results = tensors(ours(x, state))
    if hx:
        h, *c = (s.to(dtype) for s in tensors(state))
        state = (h, *c) if c else h
    expected = tensors(lowered(x.to(dtype), state))
    assert all(r.dtype == dtype for r in results)
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))

    grads = torch.autograd.grad(total(results), list(ours.parameters()))
    low_grads = torch.autograd.grad(total(expected), list(lowered.parameters()))
    assert all(g.dtype == torch.float32 for g in grads)
    assert all(torch.equal(a, b.float()) for a, b in zip(grads, low_grads, strict=True))


@pytest.mark.parametrize("kind", LAYERS)
def test_autocast_on_packed_input_of_the_low_dtype(kind: str) -> None:
    ours, _ = pair(kind, I, H, dtype=torch.float32)
    x = packed(I, [2, 4, 1])
    x = x._replace(data=x.data.to(torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        output, state = ours(x)
    assert output.data.dtype == torch.bfloat16 and all(s.dtype == torch.bfloat16 for s in tensors(state))


@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_autocast_leaves_float64_alone(kind: str) -> None:
    ours, theirs = pair(kind, I, H)
    x = torch.randn(*((B, I) if kind in CELLS else (T, B, I)), dtype=F64)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(ours, theirs, x)
