"""Single steps of a layer, and truncated backpropagation: chunks equal one long run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pairs import CELLS, F64, LAYERS, assert_close, pair, states, tensors
from torch import Tensor

import lstm_fused

T, B, I, H = 7, 3, 4, 5
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in LAYERS),
    *((kind, {"num_layers": 2, "batch_first": True}) for kind in LAYERS),
    ("LSTM", {"num_layers": 2, "proj_size": 3}),
]
each_option = pytest.mark.parametrize(("kind", "options"), OPTIONS)


@pytest.mark.parametrize("kind", CELLS)
def test_states_of_a_cell_are_detached_in_place(kind: str) -> None:
    ours, theirs = pair(kind, I, H)
    x = torch.randn(T, B, I, dtype=F64)
    grads = []
    for cell in (ours, theirs):
        state: Any = None
        for t in range(T):
            state = cell(x[t], state)
            if t == T // 2:
                for h in tensors(state):
                    h.detach_()
        grads.append(torch.autograd.grad(tensors(state)[0].sum(), list(cell.parameters())))
    for a, b in zip(*grads, strict=True):
        assert_close(a, b)


@each_option
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("batched", [True, False])
def test_steps_are_one_run(kind: str, options: dict[str, Any], given: bool, batched: bool) -> None:
    ours, theirs = pair(kind, I, H, **options)
    batch, L = (B,) if batched else (), options.get("num_layers", 1)
    x = torch.randn(T, *batch, I, dtype=F64)
    hx = states(kind, L, *batch, H=H, P=options.get("proj_size", 0)) if given else None
    sequence = x.transpose(0, 1) if batched and options.get("batch_first") else x
    wanted, wanted_state = theirs(sequence, hx)
    outputs, state = [], hx
    for x_t in x:
        output, state = ours.step(x_t, state)
        outputs.append(output)
    found = torch.stack(outputs)
    assert_close(found.transpose(0, 1) if batched and options.get("batch_first") else found, wanted)
    for a, b in zip(tensors(state), tensors(wanted_state), strict=True):
        assert_close(a, b)


@each_option
@pytest.mark.parametrize("size", [1, 3, T, T + 2])
def test_chunks_are_one_run_but_for_gradients(kind: str, options: dict[str, Any], size: int) -> None:
    ours, _ = pair(kind, I, H, **options)
    batch_first = options.get("batch_first", False)
    time = 1 if batch_first else 0
    x = torch.randn(*((B, T) if batch_first else (T, B)), I, dtype=F64, requires_grad=True)
    hx = states(kind, options.get("num_layers", 1), B, H=H, P=options.get("proj_size", 0))
    chunks = list(lstm_fused.truncated_bptt(ours, x, size, hx))
    wanted, wanted_state = ours(x, hx)
    assert_close(torch.cat([output for output, _ in chunks], time), wanted)
    for a, b in zip(tensors(chunks[-1][1]), tensors(wanted_state), strict=True):
        assert_close(a, b)
    (slope,) = torch.autograd.grad(chunks[-1][0].sum(), [x], retain_graph=True)
    within = (len(chunks) - 1) * size
    assert not slope.narrow(time, 0, within).any() and slope.narrow(time, within, T - within).any()
    reached, *_ = torch.autograd.grad(chunks[-1][0].sum(), list(ours.parameters())[:1])
    assert reached.any()


@pytest.mark.parametrize("kind", LAYERS)
def test_chunks_with_lengths_and_resets(kind: str) -> None:
    ours, _ = pair(kind, I, H)
    x, hx = torch.randn(T, B, I, dtype=F64), states(kind, 1, B, H=H)
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[3, 0] = resets[5, 1] = resets[2, 2] = True
    restart = states(kind, 1, H=H)
    keywords: dict[str, Any] = {"lengths": torch.tensor([7, 2, 5]), "resets": resets, "reset_state": restart}
    chunks = list(lstm_fused.truncated_bptt(ours, x, 3, hx, **keywords))
    wanted, wanted_state = ours(x, hx, **keywords)
    assert_close(torch.cat([output for output, _ in chunks]), wanted)
    for a, b in zip(tensors(chunks[-1][1]), tensors(wanted_state), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_training_loop_over_chunks(kind: str) -> None:
    """The optimizer may step between chunks, since no gradient is asked for across them."""
    ours, _ = pair(kind, I, H)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    before = [p.detach().clone() for p in ours.parameters()]
    for output, _ in lstm_fused.truncated_bptt(ours, torch.randn(T, B, I, dtype=F64), 3):
        optimizer.zero_grad()
        output.square().sum().backward()
        optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, ours.parameters(), strict=True))


@pytest.mark.parametrize("kind", LAYERS)
def test_errors(kind: str) -> None:
    ours, _ = pair(kind, I, H, bidirectional=True)
    x: Tensor = torch.randn(T, B, I, dtype=F64)
    with pytest.raises(ValueError, match="bidirectional"):
        ours.step(x[0])
    with pytest.raises(ValueError, match="bidirectional"):
        next(lstm_fused.truncated_bptt(ours, x, 3))
    with pytest.raises(ValueError, match="size: expected at least 1 step, got 0"):
        next(lstm_fused.truncated_bptt(pair(kind, I, H)[0], x, 0))
