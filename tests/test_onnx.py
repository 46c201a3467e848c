"""Export to ONNX: the standard operators LSTM and GRU, and ONNX Runtime's results."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from pairs import CELLS, LAYERS, packed, pair, states, tensors
from torch import Tensor, nn
from torch.export import Dim

T, B, I, H = 5, 3, 4, 6
F32 = torch.float32
OPTIONS: list[dict[str, Any]] = [
    {},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"bias": False},
]
each_layer = pytest.mark.parametrize("kind", LAYERS)


def exported(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], dynamic: Any) -> onnx.ModelProto:
    program = torch.onnx.export(
        module.eval(), args, kwargs=keywords, dynamo=True, dynamic_shapes=dynamic, verbose=False
    )
    assert program is not None
    return program.model_proto


def run(model: onnx.ModelProto, inputs: list[Tensor]) -> list[Tensor]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    assert len(names) == len(inputs)
    feed = dict(zip(names, map(Tensor.numpy, inputs), strict=True))
    return [torch.from_numpy(np.asarray(r)) for r in session.run(None, feed)]


def recurrent_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in ("LSTM", "GRU", "RNN", "Loop", "Scan")]


def assert_agree(found: list[Tensor], wanted: list[Tensor]) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)  # values within 1; float32 of two implementations


@each_layer
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_layer_with_dynamic_time(kind: str, options: dict[str, Any], given: bool) -> None:
    ours, _ = pair(kind, I, H, dtype=F32, **options)
    rows = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    time = 1 if options.get("batch_first") else 0

    def example(T: int) -> tuple[Any, ...]:
        x = torch.randn(*((B, T) if time else (T, B)), I)
        return (x, states(kind, rows, B, H=H, dtype=F32)) if given else (x,)

    dynamic: Any = ({time: Dim("T", min=2)},)
    if given:
        dynamic += (({}, {}) if kind == "LSTM" else {},)
    model = exported(ours, example(T), {}, dynamic)
    nodes = recurrent_nodes(model)
    assert [node.op_type for node in nodes] == [kind] * options.get("num_layers", 1)
    if kind == "GRU":
        assert all(a.i == 1 for n in nodes for a in n.attribute if a.name == "linear_before_reset")
        assert all("linear_before_reset" in [a.name for a in n.attribute] for n in nodes)
    for steps in (T, 2, 9):
        args = example(steps)
        with torch.no_grad():
            assert_agree(run(model, tensors(args)), tensors(ours(*args)))


class WithLengths(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        return self.layer(x, lengths=lengths)


@each_layer
@pytest.mark.parametrize("options", OPTIONS)
def test_lengths_are_sequence_lens(kind: str, options: dict[str, Any]) -> None:
    ours, _ = pair(kind, I, H, dtype=F32, **options)
    batch_first = options.get("batch_first", False)
    x = torch.randn(*((B, T) if batch_first else (T, B)), I)
    model = exported(WithLengths(ours), (x, torch.tensor([2, 5, 1])), {}, ({1 if batch_first else 0: Dim("T")}, {}))
    assert all(node.input[4] for node in recurrent_nodes(model)), "sequence_lens"
    for lengths in ([2, 5, 1], [1, 1, 4]):
        args = (x, torch.tensor(lengths))
        with torch.no_grad():
            assert_agree(run(model, list(args)), tensors(WithLengths(ours)(*args)))


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell(kind: str) -> None:
    ours, _ = pair(kind, I, H, dtype=F32)
    args = (torch.randn(B, I), states(kind, B, H=H, dtype=F32))
    model = exported(ours, args, {}, None)
    assert [node.op_type for node in recurrent_nodes(model)] == [kind.removesuffix("Cell")]
    with torch.no_grad():
        assert_agree(run(model, tensors(args)), tensors(ours(*args)))


@pytest.mark.parametrize(
    ("options", "args", "keywords", "named"),
    [
        ({"proj_size": 2}, (torch.randn(T, B, I),), {}, "proj_size"),
        ({}, (torch.randn(T, B, I),), {"resets": torch.zeros(T, B, dtype=torch.bool)}, "resets"),
        ({}, (packed(I, [2, 3]).to(F32),), {}, "PackedSequence"),
    ],
)
def test_what_onnx_has_no_operator_for(options: Any, args: Any, keywords: Any, named: str) -> None:
    ours, _ = pair("LSTM", I, H, dtype=F32, **options)
    with pytest.raises(Exception, match="export") as caught:
        exported(ours, args, keywords, None)
    messages, error = [], caught.value
    while error is not None:
        messages.append(str(error))
        error = error.__cause__ or error.__context__
    assert any("ONNX has no recurrent operator" in m and named in m for m in messages), messages


def test_importing_the_package_does_not_import_dynamo() -> None:
    code = "import sys, lstm_fused; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
