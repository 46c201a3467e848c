"""``lengths``, ``resets`` and ``reset_state``: a padded batch equals its parts run apart, by ``torch.nn``'s layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pairs import F64, LAYERS, assert_close, pair, states, tensors
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence

T, B, I, H = 7, 5, 3, 4
LENGTHS = torch.tensor([4, 7, 0, 1, 6])
RESETS = torch.zeros(T, B, dtype=torch.bool)
# At the start, in the middle, twice in a row, in a row without a step, at and past the end of a row.
for t, b in ((0, 0), (2, 0), (1, 1), (3, 1), (4, 1), (0, 2), (1, 3), (5, 3), (5, 4)):
    RESETS[t, b] = True
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in LAYERS),
    *((kind, {"batch_first": True, "bias": False}) for kind in LAYERS),
    *((kind, {"num_layers": 2, "bidirectional": True}) for kind in LAYERS),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True, "proj_size": 2}),
]
each_option = pytest.mark.parametrize(("kind", "options"), OPTIONS)


def rows_of(options: dict[str, Any]) -> int:
    return int(options.get("num_layers", 1)) * (1 + bool(options.get("bidirectional")))


def part(x: Tensor, hx: list[Tensor], parameters: dict[str, Tensor], suffix: str, like: Any) -> tuple[Tensor, Any]:
    """One direction of one layer of torch.nn over x [T, I] from hx, each [size]; a reverse one gets x reversed."""
    own = {n.replace(suffix, "_l0"): p for n, p in parameters.items() if n.endswith(suffix)}
    proj = {"proj_size": like.proj_size} if like.proj_size else {}
    module = type(like)(x.shape[1], like.hidden_size, bias=like.bias, dtype=F64, **proj)
    initial = tuple(s[None] for s in hx)
    output, final = functional_call(module, own, (x, initial if isinstance(like, nn.LSTM) else initial[0]))
    return output, [s[0] for s in tensors(final)]


def apart(
    like: Any, x: Tensor, hx: list[Tensor], lengths: list[int], resets: Tensor, restart: list[Tensor]
) -> list[Tensor]:
    """What the layer of torch.nn has to give: each row, direction and part between resets by itself, x [T, B, I]."""
    D, parameters = 2 if like.bidirectional else 1, dict(like.named_parameters())
    final: list[list[Tensor]] = []
    for k in range(like.num_layers):
        sides = []
        for d in range(D):
            at, suffix = k * D + d, f"_l{k}" + ("_reverse" if d else "")
            columns, ends = [], []
            for b, n in enumerate(lengths):
                starts = [0] + [t for t in range(1, n) if resets[t, b]]
                parts = [x[i:j, b] for i, j in zip(starts, [*starts[1:], n], strict=True)] if n else []
                state = [s[at, b] for s in hx]
                if d == 0 and n and resets[0, b]:
                    state = [s[at] for s in restart]
                outputs = []
                for i, piece in enumerate(reversed(parts) if d else parts):
                    if i:
                        state = [s[at] for s in restart]
                    y, state = part(piece.flip(0) if d else piece, state, parameters, suffix, like)
                    outputs.append(y.flip(0) if d else y)
                padding = x.new_zeros(T - n, like.proj_size or H)
                columns.append(torch.cat([*(reversed(outputs) if d else outputs), padding]))
                ends.append(state)
            sides.append(torch.stack(columns, 1))
            final.append([torch.stack(s) for s in zip(*ends, strict=True)])
        x = torch.cat(sides, 2)
    return [x, *(torch.stack(s) for s in zip(*final, strict=True))]


@each_option
@pytest.mark.parametrize("given", ["lengths", "resets", "resets, to a state", "both", "both, to a state"])
def test_equals_the_parts_run_apart(kind: str, options: dict[str, Any], given: str) -> None:
    ours, theirs = pair(kind, I, H, **options)
    rows, P = rows_of(options), options.get("proj_size", 0)
    x = torch.randn(T, B, I, dtype=F64).requires_grad_()
    hx = [s.requires_grad_() for s in tensors(states(kind, rows, B, H=H, P=P))]
    restart = [s.requires_grad_() for s in tensors(states(kind, rows, H=H, P=P))]
    lengths = LENGTHS if given in ("lengths", "both", "both, to a state") else torch.full((B,), T)
    resets = RESETS if given != "lengths" else torch.zeros(T, B, dtype=torch.bool)
    batch_first = options.get("batch_first", False)

    def layout(t: Tensor) -> Tensor:
        return t.transpose(0, 1) if batch_first else t

    keywords: dict[str, Any] = {}
    if lengths is LENGTHS:
        keywords["lengths"] = lengths
    if given != "lengths":
        keywords["resets"] = layout(resets)
    to_a_state = given.endswith("to a state")
    if to_a_state:
        keywords["reset_state"] = tuple(restart) if kind == "LSTM" else restart[0]
    found = tensors(ours(layout(x), tuple(hx) if kind == "LSTM" else hx[0], **keywords))
    found[0] = layout(found[0])
    used = restart if to_a_state else [torch.zeros_like(s) for s in restart]
    wanted = apart(theirs, x, hx, lengths.tolist(), resets, used)
    cotangents = [torch.randn_like(w) for w in wanted]
    leaves = [x, *hx, *(restart if used is restart else [])]
    ours_grads = torch.autograd.grad(found, [*leaves, *ours.parameters()], cotangents)
    theirs_grads = torch.autograd.grad(wanted, [*leaves, *theirs.parameters()], cotangents)
    for k, (a, b) in enumerate(zip([*found, *ours_grads], [*wanted, *theirs_grads], strict=True)):
        assert_close(a, b, f"result {k}")
    if lengths is LENGTHS:
        padding = torch.arange(T)[:, None] >= lengths
        assert not found[0][padding].any() and not ours_grads[0][padding].any(), "exactly zero in the padding"


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lengths_give_the_bits_of_packed_input(kind: str, dtype: torch.dtype) -> None:
    ours, _ = pair(kind, I, H, num_layers=2, bidirectional=True, dtype=dtype)
    x = torch.randn(T, B, I, dtype=dtype)
    lengths = LENGTHS.clamp(min=1)
    output, final = ours(x, lengths=lengths)
    packed, packed_final = ours(pack_padded_sequence(x, lengths, enforce_sorted=False))
    again = pack_padded_sequence(output, lengths, enforce_sorted=False)
    assert torch.equal(again.data, packed.data) and packed.data.dtype == dtype
    assert all(torch.equal(a, b) for a, b in zip(tensors(final), tensors(packed_final), strict=True))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("keywords", [{"lengths": torch.full((B,), T)}, {"resets": torch.zeros_like(RESETS)}])
def test_nothing_cut_gives_the_bits_of_a_plain_run(kind: str, keywords: dict[str, Tensor]) -> None:
    ours, _ = pair(kind, I, H, bidirectional=True, dtype=torch.float32)
    x = torch.randn(T, B, I)
    for a, b in zip(tensors(ours(x, **keywords)), tensors(ours(x)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_padding_reaches_no_result_and_no_gradient(kind: str, poison: float) -> None:
    ours, _ = pair(kind, I, H, num_layers=2, bidirectional=True)
    clean = torch.randn(T, B, I, dtype=F64)
    padding = torch.arange(T)[:, None] >= LENGTHS
    results = []
    for filler in (0.0, poison):
        x = clean.masked_fill(padding[:, :, None], filler).requires_grad_()
        found = tensors(ours(x, lengths=LENGTHS))
        total = torch.stack([f.square().sum() for f in found]).sum()
        results.append([*found, *torch.autograd.grad(total, [x, *ours.parameters()])])
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("kind", LAYERS)
def test_no_row_has_a_step(kind: str) -> None:
    ours, _ = pair(kind, I, H)
    x = torch.randn(T, B, I, dtype=F64, requires_grad=True)
    hx = [s.requires_grad_() for s in tensors(states(kind, 1, B, H=H))]
    output, final = ours(x, tuple(hx) if kind == "LSTM" else hx[0], lengths=torch.zeros(B, dtype=torch.int64))
    assert output.shape == (T, B, H) and not output.any()
    ends = tensors(final)
    assert all(torch.equal(a, b) for a, b in zip(ends, hx, strict=True))
    grads = torch.autograd.grad([output, *ends], [x, *hx], [torch.ones_like(t) for t in (output, *ends)])
    assert not grads[0].any() and all((g == 1).all() for g in grads[1:])


@pytest.mark.parametrize("keywords", [{"lengths": LENGTHS}, {"lengths": LENGTHS, "resets": RESETS}])
@pytest.mark.parametrize("kind", LAYERS)
def test_higher_derivatives(kind: str, keywords: dict[str, Tensor]) -> None:
    ours, _ = pair(kind, I, H)
    x = torch.randn(T, B, I, dtype=F64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: tuple(tensors(ours(x, **keywords))), (x,))
    x = x.detach()
    _, tangents = torch.func.jvp(lambda x: tensors(ours(x, **keywords)), (x,), (x,))
    jacobians = torch.func.jacrev(lambda x: tensors(ours(x, **keywords)))(x)
    for tangent, jacobian in zip(tangents, jacobians, strict=True):
        assert_close(tangent, torch.tensordot(jacobian, x, 3))
    several = torch.stack([x, x.sin()])
    for k, found in enumerate(torch.vmap(lambda x: ours(x, **keywords)[0])(several)):
        assert_close(found, ours(several[k], **keywords)[0])
    per_sample = torch.func.grad(lambda p, x: torch.func.functional_call(ours, p, (x,), keywords)[0].square().sum())
    parameters = dict(ours.named_parameters())
    for name, found in torch.vmap(per_sample, in_dims=(None, 0))(parameters, several).items():
        for k, gradient in enumerate(found):
            assert_close(gradient, per_sample(parameters, several[k])[name], name)


@pytest.mark.parametrize("cut", [True, False])
@each_option
def test_compile_sees_one_graph(kind: str, options: dict[str, Any], cut: bool) -> None:
    """Also where lengths and resets are other ones than those that were traced."""
    torch._dynamo.reset()
    ours, _ = pair(kind, I, H, **options)
    x = torch.randn(T, B, I, dtype=F64)
    resets = RESETS.t() if options.get("batch_first") else RESETS
    x = x.transpose(0, 1) if options.get("batch_first") else x
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    for lengths, cuts in ((LENGTHS, resets), (LENGTHS.flip(0), torch.zeros_like(resets)), (LENGTHS // 2, ~resets)):
        keywords = {"lengths": lengths, **({"resets": cuts} if cut else {})}
        found = tensors(compiled(x, **keywords))
        wanted = tensors(ours(x, **keywords))
        for a, b in zip(found, wanted, strict=True):
            assert_close(a, b)
        mine, plain = (
            torch.autograd.grad([r.square().sum() for r in results], list(ours.parameters()))
            for results in (found, wanted)
        )
        for a, b in zip(mine, plain, strict=True):
            assert_close(a, b)


def test_opcheck() -> None:
    for lengths, resets in ((LENGTHS, None), (None, RESETS), (LENGTHS, RESETS)):
        torch.library.opcheck(torch.ops.lstm_fused.segments.default, (lengths, resets, T, B, False, 2, True))


WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("lengths list", {"lengths": [1] * B}, TypeError, r"lengths to be a Tensor, int64 \[B\], got list"),
    ("lengths dtype", {"lengths": LENGTHS.int()}, RuntimeError, "lengths: expected dtype Long, got Int"),
    ("lengths shape", {"lengths": LENGTHS[1:]}, RuntimeError, r"lengths: expected shape \[5\], got \[4\]"),
    ("lengths beyond T", {"lengths": LENGTHS + 1}, RuntimeError, "lengths: expected values from 0 to 7, got 8 at 1"),
    ("lengths negative", {"lengths": LENGTHS - 1}, RuntimeError, "lengths: expected values from 0 to 7, got -1 at 2"),
    ("lengths device", {"lengths": LENGTHS.to("meta")}, RuntimeError, "lengths|meta"),
    ("resets list", {"resets": RESETS.tolist()}, TypeError, r"resets to be a Tensor, bool \[T, B\], got list"),
    ("resets dtype", {"resets": RESETS.int()}, RuntimeError, "resets: expected dtype Bool, got Int"),
    ("resets shape", {"resets": RESETS.t()}, RuntimeError, r"resets: expected shape \[7, 5\], got \[5, 7\]"),
    ("state alone", {"reset_state": torch.zeros(1, H, dtype=F64)}, ValueError, "resets beside reset_state"),
    (
        "state shape",
        {"resets": RESETS, "reset_state": torch.zeros(1, B, H, dtype=F64)},
        RuntimeError,
        r"reset_state.* size \(1, 4\), got \[1, 5, 4\]",
    ),
    ("state kind", {"resets": RESETS, "reset_state": 0.0}, TypeError, "reset_state"),
]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("keywords", "error", "message"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_arguments(kind: str, keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    ours, _ = pair(kind, I, H)
    state = keywords.get("reset_state")
    if kind == "LSTM" and isinstance(state, Tensor):
        keywords = {**keywords, "reset_state": (state, state)}
    with pytest.raises(error, match=message):
        ours(torch.randn(T, B, I, dtype=F64), **keywords)


@pytest.mark.parametrize("kind", LAYERS)
def test_only_padded_batches(kind: str) -> None:
    ours, _ = pair(kind, I, H)
    x = torch.randn(T, I, dtype=F64)
    with pytest.raises(ValueError, match="3D beside lengths or resets, got 2D"):
        ours(x, lengths=torch.tensor([T]))
    packed = pack_padded_sequence(x[:, None], [T])
    with pytest.raises(TypeError, match="padded Tensor beside lengths or resets, got PackedSequence"):
        ours(packed, lengths=torch.tensor([T]))
