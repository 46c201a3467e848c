"""torch.export, AOTInductor packages, and how often torch.compile compiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import F64, LAYERS, assert_close, packed, pair, states, tensors
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.export import Dim

import lstm_fused

T, B, I, H = 5, 3, 4, 6
STACKED: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "batch_first": True}
each_layer = pytest.mark.parametrize("kind", LAYERS)


class Model(nn.Module):
    """A layer with something after it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, hx: Any = None) -> tuple[Tensor, ...]:
        output, final = self.layer(x, hx)
        return (output.relu().sum(-1), *tensors(final))


@each_layer
@pytest.mark.parametrize("options", [{}, STACKED])
@pytest.mark.parametrize("strict", [True, False])
def test_export_with_dynamic_time_and_batch(kind: str, options: dict[str, Any], strict: bool, tmp_path: Path) -> None:
    """Saved, loaded, and run at other sizes."""
    model = Model(pair(kind, I, H, **options)[0])
    sizes = {0: Dim("T", min=2), 1: Dim("B", min=2)}
    program = torch.export.export(model, (torch.randn(T, B, I, dtype=F64),), dynamic_shapes=(sizes,), strict=strict)
    path = tmp_path / "model.pt2"
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()
    for shape in ((T, B), (2, 7), (11, 2)):
        x = torch.randn(*shape, I, dtype=F64)
        for a, b in zip(loaded(x), model(x), strict=True):
            assert_close(a, b)


@each_layer
def test_a_package_of_aotinductor(kind: str, tmp_path: Path) -> None:
    model = Model(pair(kind, I, H, dtype=torch.float32)[0]).eval()
    x = torch.randn(T, B, I)
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=({0: Dim("T", min=2)},))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        loaded = torch._inductor.aoti_load_package(path)
        for steps in (T, 9):
            x = torch.randn(steps, B, I)
            for a, b in zip(loaded(x), model(x), strict=True):
                torch.testing.assert_close(a, b)


@each_layer
@pytest.mark.parametrize("grad", [True, False])
def test_sizes_do_not_compile_again(kind: str, grad: bool) -> None:
    """One graph for all T and B from 2 on, and at most one more for T = 1, for B = 1 and for both."""
    torch._dynamo.reset()
    model, counter = Model(pair(kind, I, H)[0]), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    with torch.set_grad_enabled(grad):
        for shape in ((T, B), (6, 3), (9, 4), (30, 2)):
            compiled(torch.randn(*shape, I, dtype=F64))
        assert counter.frame_count == 1
        for shape in ((1, 3), (4, 1), (1, 1), (1, 9), (7, 1)):
            x = torch.randn(*shape, I, dtype=F64)
            for a, b in zip(compiled(x), model(x), strict=True):
                assert_close(a, b)
    assert counter.frame_count <= 4


@each_layer
def test_sizes_seen_to_change_compile_once_more(kind: str) -> None:
    """Without dynamic=True: a graph for the first size, one for all others."""
    torch._dynamo.reset()
    model, counter = Model(pair(kind, I, H)[0]), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for steps in (5, 6, 9, 30):
        compiled(torch.randn(steps, B, I, dtype=F64))
    for batch in (4, 2, 7):
        compiled(torch.randn(8, batch, I, dtype=F64))
    assert counter.frame_count <= 3


@each_layer
@pytest.mark.parametrize("given", [True, False])
def test_packed_input_comes_into_a_graph(kind: str, given: bool) -> None:
    torch._dynamo.reset()
    ours, theirs = pair(kind, I, H, bidirectional=True)
    counter = CompileCounter()
    compiled = torch.compile(ours, backend=counter, fullgraph=True)
    hx = states(kind, 2, B, H=H) if given else None
    for lengths in ([2, 4, 1], [5, 5, 2], [3, 1, 4]):
        x = packed(I, lengths)
        for a, b in zip(tensors(compiled(x, hx)), tensors(theirs(x, hx)), strict=True):
            assert_close(a, b)
    assert counter.frame_count <= 2


def test_the_operators_library_needs_no_python() -> None:
    """Programs in C++ load it: an AOTInductor package's runner, say."""
    (library,) = Path(lstm_fused.__file__).parent.glob("_C*.so")
    content = library.read_bytes()
    assert b"libpython" not in content and b"libtorch_python" not in content
    assert b"libtorch_cpu" in content
