"""Other runtimes that `--peer` puts beside torch and lstm_fused.

onnxruntime and openvino run the standard ONNX LSTM and GRU operators with torch's weights (inference,
float32); torch.compile compiles torch's own module. Each peer is a callable with the same arguments and
results as the module that it stands for, so that it is timed and compared in the same way.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from lstm_fused.bench.cases import Case
from lstm_fused.bench.workload import Inputs, Workload

#: Packages that each optional peer needs.
PEER_PACKAGES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
    "torch.compile": (),
}
#: torch.compile unrolls time; past this many steps compiling takes minutes (backward: at 20 already).
LONGEST_UNROLL = {"inference": 128, "training": 8}


class MissingPeerError(RuntimeError):
    """A peer's packages are not installed; the message names the command that installs them."""


class UnsupportedPeerError(RuntimeError):
    """A peer cannot run a case; the message says why."""


def require(name: str) -> None:
    """Checks that the peer `name` can be imported.

    Raises ValueError for an unknown name and MissingPeerError where a package is missing.
    """
    if name not in PEER_PACKAGES:
        raise ValueError(f"peer: expected one of {', '.join(PEER_PACKAGES)}, got {name!r}")
    missing = [package for package in PEER_PACKAGES[name] if importlib.util.find_spec(package) is None]
    if missing:
        raise MissingPeerError(
            f"peer {name} needs {' and '.join(missing)}, not installed here: pip install lstm-fused[peers]"
        )


def peer_workload(
    name: str, case: Case, mode: str, module: Any, inputs: Inputs, threads: int, dtype: torch.dtype
) -> Workload:
    """The peer `name` set up for `case` with `module`'s weights. Raises UnsupportedPeerError: the reason."""
    if name == "torch.compile":
        return Workload(case, mode, compiled(case, mode, module), inputs)
    if mode != "inference":
        raise UnsupportedPeerError("inference only")
    if dtype != torch.float32:
        raise UnsupportedPeerError("float32 only")
    if case.proj:
        raise UnsupportedPeerError("ONNX has no projection")
    model = onnx_model(case, module)
    run = {"onnxruntime": onnxruntime_session, "openvino": openvino_session}[name](model, threads)
    return Workload(case, mode, OnnxPeer(case, inputs, run), inputs)


def compiled(case: Case, mode: str, module: nn.Module) -> Callable[..., Any]:
    """torch.compile of torch's own module, which Dynamo traces only when told to."""
    if case.packed:
        raise UnsupportedPeerError("torch.compile breaks the graph at PackedSequence")
    longest = LONGEST_UNROLL[mode]
    if case.T * case.layers * case.directions > longest:
        raise UnsupportedPeerError(f"unrolled over more than {longest} steps, compiling takes minutes")
    torch._dynamo.config.allow_rnn = True
    torch._dynamo.reset()
    call: Callable[..., Any] = torch.compile(module)
    return call


def reordered(weight: Tensor, cell: str) -> Tensor:
    """Gate blocks of `weight` [G*H, ...] from torch's order to ONNX's: i f g o -> i o f c, r z n -> z r h."""
    order = (0, 3, 1, 2) if cell == "lstm" else (1, 0, 2)
    blocks = weight.detach().chunk(len(order), 0)
    return torch.cat([blocks[index] for index in order], 0)


def layer_weights(case: Case, module: nn.Module, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """ONNX W [D, G*H, I], R [D, G*H, H] and B [D, 2*G*H] (input biases, then recurrent) of one layer."""
    suffixes = [""] if case.module == "cell" else [f"_l{layer}", f"_l{layer}_reverse"][: case.directions]

    def stack(name: str) -> Tensor:
        return torch.stack([reordered(getattr(module, name + suffix), case.cell) for suffix in suffixes])

    return stack("weight_ih"), stack("weight_hh"), torch.cat([stack("bias_ih"), stack("bias_hh")], 1)


def onnx_model(case: Case, module: nn.Module) -> Any:
    """A ModelProto of `case` with `module`'s weights.

    Inputs: x [T, B, I]; lengths [B] int32 if packed; for a streaming step h0 (and c0) [D, B, H].
    Outputs: y [T, B, D*H], then h and c of each layer.
    """
    from onnx import TensorProto, helper, numpy_helper

    D, H = case.directions, case.H
    kind, states = ("LSTM", ["h", "c"]) if case.cell == "lstm" else ("GRU", ["h"])
    floats = TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("x", floats, [case.T, case.B, case.I])]
    if case.packed:
        inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [case.B]))
    if case.streaming:
        inputs += [helper.make_tensor_value_info(f"{s}0", floats, [D * case.layers, case.B, H]) for s in states]
    outputs = [helper.make_tensor_value_info("y", floats, [case.T, case.B, D * H])]
    initializers, nodes = [], []
    shape = torch.tensor([case.T, case.B, D * H])
    initializers.append(numpy_helper.from_array(shape.numpy(), "shape"))
    x = "x"
    for layer in range(case.layers):
        for name, value in zip("WRB", layer_weights(case, module, layer), strict=True):
            initializers.append(numpy_helper.from_array(value.numpy(), f"{name}{layer}"))
        given = [f"{s}0" for s in states] if case.streaming and case.layers == 1 else []
        options: dict[str, Any] = {"linear_before_reset": 1} if kind == "GRU" else {}
        finals = [f"{s}_l{layer}" for s in states]
        weights = [f"{name}{layer}" for name in "WRB"]
        nodes.append(
            helper.make_node(
                kind,
                [x, *weights, "lengths" if case.packed else "", *given],
                [f"y_l{layer}", *finals],
                hidden_size=H,
                direction="bidirectional" if D == 2 else "forward",
                **options,
            )
        )
        outputs += [helper.make_tensor_value_info(name, floats, [D, case.B, H]) for name in finals]
        # [T, D, B, H] -> [T, B, D*H]
        nodes.append(helper.make_node("Transpose", [f"y_l{layer}"], [f"t_l{layer}"], perm=[0, 2, 1, 3]))
        x = "y" if layer == case.layers - 1 else f"x_l{layer + 1}"
        nodes.append(helper.make_node("Reshape", [f"t_l{layer}", "shape"], [x]))
    graph = helper.make_graph(nodes, case.cell, inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def onnxruntime_session(model: Any, threads: int) -> Callable[[dict[str, Any]], list[Any]]:
    """Runs `model` in ONNX Runtime on `threads` threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda feeds: list(session.run(None, feeds))


def openvino_session(model: Any, threads: int) -> Callable[[dict[str, Any]], list[Any]]:
    """Runs `model` in OpenVINO on `threads` threads, in float32 (its own default may be bfloat16)."""
    import openvino

    core = openvino.Core()
    network = core.read_model(model.SerializeToString())
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(network, "CPU", settings).create_infer_request()

    def run(feeds: dict[str, Any]) -> list[Any]:
        found = request.infer(feeds, share_inputs=True, share_outputs=True)
        return [found[index] for index in range(len(found))]

    return run


class OnnxPeer:
    """Calls a session with the case's own arrays; results as torch's module returns them."""

    def __init__(self, case: Case, inputs: Inputs, run: Callable[[dict[str, Any]], list[Any]]) -> None:
        self.case, self.run = case, run
        self.feeds: dict[str, Any] = {"x": inputs.padded.numpy()}
        if case.packed:
            self.feeds["lengths"] = torch.tensor(case.lengths, dtype=torch.int32).numpy()
        if case.streaming:
            shape = (case.layers * case.directions, case.B, case.H)
            for name, state in zip(("h0", "c0"), inputs.states, strict=False):
                self.feeds[name] = state.reshape(shape).numpy()

    def __call__(self, *_: Any) -> Any:
        """Runs the session; its arrays are converted only when `converted` asks."""
        return self.run(self.feeds)

    def converted(self, arrays: list[Any]) -> list[Tensor]:
        """The session's arrays in the form and order of `workload.tensors(module(...))`."""
        case, states = self.case, 2 if self.case.cell == "lstm" else 1
        y, *finals = (torch.from_numpy(array.copy()) for array in arrays)
        stacked = [torch.cat(finals[index::states]) for index in range(states)]
        if case.module == "cell":
            return [state[0] for state in stacked]
        if not case.packed:
            return [y, *stacked]
        packed: PackedSequence = pack_padded_sequence(y, torch.tensor(case.lengths), enforce_sorted=False)
        return [packed.data, *stacked]
