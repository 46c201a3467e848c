"""The operators ``lstm_fused::layer`` and ``lstm_fused::step``: loading, rules for shapes (fake) and vmap, calls."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from . import _vmap

GATES = {"lstm": 4, "gru": 3}  # gates a unit has: rows of a weight matrix by unit
SAVED = 4  # values by unit and step that backward needs beside c_t: i f g o, or r z n and U_n h + b_hn


def _load() -> None:
    """Loads the kernels' library, which registers the operators.

    Raises:
        ImportError: the library was never built, or was built for another torch.
    """
    folder = Path(__file__).parent
    built = [p for pattern in ("_C*.so", "_C*.dylib", "_C*.pyd", "_C*.dll") for p in folder.glob(pattern)]
    if not built:
        raise ImportError(
            f"lstm_fused: its compiled kernels (a file _C*.so in {folder}) are missing. "
            "Install with 'pip install .', or build in place with 'python setup.py build_ext --inplace'."
        )
    library = max(built, key=lambda p: p.stat().st_mtime)  # an older file of another Python may lie beside it
    library = Path(os.environ.get("LSTM_FUSED_LIBRARY", library))  # for tests of another build
    try:
        torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ImportError(
            f"lstm_fused: {library} does not load into torch {torch.__version__}; it was built for "
            "another torch, or for another machine. Build it again with this torch installed. "
            f"The loader said: {error}"
        ) from error


_load()
try:
    from . import _direct
except ImportError as error:
    _direct = None  # type: ignore[assignment]
    warnings.warn(
        f"lstm_fused: its binding for this Python ({Path(__file__).parent / '_direct.*'}) is missing or does not load. "
        "Every call takes some microseconds more, by way of torch.ops. Build again with this Python and this torch "
        f"installed. Python said: {error}",
        stacklevel=2,
    )


def _direct_call(name: str) -> Callable[..., list[Tensor] | None]:
    """The operator as ``csrc/python/direct.cpp`` calls it; it answers None where the call is one for ``torch.ops``."""
    return getattr(_direct, name, lambda *_: None)


def _call(name: str) -> Callable[..., list[Tensor]]:
    """The operator, called on the shortest way."""
    direct, operator = _direct_call(name), getattr(torch.ops.lstm_fused, name).default

    def call(*arguments: Any) -> list[Tensor]:
        if not torch.compiler.is_compiling() and (results := direct(*arguments)):
            return results
        return cast("list[Tensor]", operator(*arguments))

    return call


direct_layer, direct_step, direct_reorder = (_direct_call(name) for name in ("layer", "step", "reorder"))
_layer, _step, _packed_layer = _call("layer"), _call("step"), _call("packed_layer")
_forward: Callable[..., list[Tensor]] = torch.ops.lstm_fused.forward.default
_pack: Callable[..., list[Tensor]] = torch.ops.lstm_fused.pack.default
_segments: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = torch.ops.lstm_fused.segments.default
_take_rows: Callable[..., Tensor] = torch.ops.lstm_fused.take_rows.default
_put_rows: Callable[..., Tensor] = torch.ops.lstm_fused.put_rows.default


def _fake_forward(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    bidirectional: bool,
    cell_clip: float | None = None,
    grad_clip: float | None = None,
    recompute: bool = False,
    resets: Tensor | None = None,
    reset_h: Tensor | None = None,
    reset_c: Tensor | None = None,
    save: bool = True,
) -> list[Tensor]:
    """What ``lstm_fused::forward`` returns, without values; without what it saves for backward, ``layer``."""
    if cell not in GATES:
        raise RuntimeError(f"cell: expected lstm or gru, got {cell!r}")
    for name, tensors in (("states", states), ("weights", weights)):
        for k, tensor in enumerate(tensors):
            if tensor.device != input.device or tensor.dtype != input.dtype:
                raise RuntimeError(
                    f"{name}[{k}]: expected device {input.device} and dtype {input.dtype} as input's, "
                    f"got {tensor.device} and {tensor.dtype}"
                )
    D = 2 if bidirectional else 1
    H, P = weights[1].shape[0] // GATES[cell], weights[1].shape[1]
    _check_fake_sizes(input, states, weights[0].shape[1], (D, P), (D, H))
    N: int | torch.SymInt = math.prod(input.shape[:-1])
    if input.dim() == 3:
        B: int | torch.SymInt = input.shape[1]
        if batch_sizes is not None and save:  # the sum of the lengths, which are values, too
            N = torch.library.get_ctx().new_dynamic_size()
    else:  # B is the value of batch_sizes[0], which shapes do not tell
        B = states[0].shape[1] if states else torch.library.get_ctx().new_dynamic_size()
    results = [input.new_empty(*input.shape[:-1], D * P), input.new_empty(D, B, P)]
    if cell == "lstm":
        results.append(input.new_empty(D, B, H))
    if save:
        compute = torch.float64 if input.dtype == torch.float64 else torch.float32
        for _ in range(D):
            if not recompute:
                results.append(input.new_empty(N, SAVED * H))
            if cell == "lstm":
                results.append(input.new_empty(N, H, dtype=compute))
    return results


def _check_fake_sizes(input: Tensor, states: Sequence[Tensor], I: int, *of_states: tuple[int, int]) -> None:
    if input.shape[-1] != I or (isinstance(input.shape[0], int) and input.shape[0] == 0):
        raise RuntimeError(f"input: expected at least one step of {I} features, got {list(input.shape)}")
    for k, (state, (D, size)) in enumerate(zip(states, of_states, strict=False)):
        wrong = state.dim() != 3 or state.shape[0] != D or state.shape[2] != size
        if wrong or (input.dim() == 3 and state.shape[1] != input.shape[1]):  # B of packed data is a value
            raise RuntimeError(f"states[{k}]: expected [{D}, B, {size}], B as input's, got {list(state.shape)}")


def _fake_layer(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    bidirectional: bool,
    *_: Any,
) -> list[Tensor]:
    return _fake_forward(cell, input, states, weights, batch_sizes, bidirectional, save=False)


def _fake_segments(
    lengths: Tensor | None,
    resets: Tensor | None,
    steps: int | torch.SymInt,
    batch: int | torch.SymInt,
    batch_first: bool,
    layers: int,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    given = lengths if lengths is not None else resets
    assert given is not None
    context = torch.library.get_ctx()
    N, S, K = context.new_dynamic_size(), context.new_dynamic_size(), 2 * layers if bidirectional else layers
    sizes = ((steps,), (N,), (K, S), (K, batch))
    batch_sizes, data_rows, sources, endings = (given.new_empty(s, dtype=torch.int64) for s in sizes)
    return batch_sizes, data_rows, sources, endings


def _fake_backward(
    cell: str,
    grads: Sequence[Tensor | None],
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    bidirectional: bool,
    cell_clip: float | None,
    grad_clip: float | None,
    output: Tensor,
    saved: Sequence[Tensor],
    needed: Sequence[bool],
    samples: int = 0,
    resets: Tensor | None = None,
    *reset_states: Tensor | None,
) -> list[Tensor]:
    shapes = [t.shape for t in (input, *states)]
    summed = [*weights, *(s for s in reset_states if s is not None)]
    shapes += [torch.Size((samples, *t.shape)) if samples else t.shape for t in summed]
    return [input.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needed, strict=True)]


def _fake_packed_layer(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    packed: Sequence[Tensor],
    isa: str,
    *rest: Any,
) -> list[Tensor]:
    return _fake_layer(cell, input, states, weights, *rest)


torch.library.register_fake("lstm_fused::layer", _fake_layer)
torch.library.register_fake("lstm_fused::packed_layer", _fake_packed_layer)
torch.library.register_fake("lstm_fused::forward", _fake_forward)
torch.library.register_fake("lstm_fused::backward", _fake_backward)
torch.library.register_fake("lstm_fused::segments", _fake_segments)
# Its registrations live as long as it does.
_library = torch.library.Library("lstm_fused", "FRAGMENT")  # type: ignore[no-untyped-call]
_vmap.register(_library)


class Options(NamedTuple):
    """What a layer does beside its equations, in the order of the operators' arguments."""

    bidirectional: bool
    cell_clip: float | None = None
    grad_clip: float | None = None
    recompute: bool = False


class Resets(NamedTuple):
    """Where rows of a batch begin anew, in the order of the operators' arguments."""

    before: Tensor  # bool [T, B]: before which steps
    h: Tensor | None = None  # [D, P], in which state; None is zeros
    c: Tensor | None = None  # [D, H]

    def with_states(self, change: Callable[[Tensor], Tensor]) -> Resets:
        """The same with its states changed."""
        return Resets(self.before, *(change(state) for state in self[1:] if state is not None))


def layer(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    options: Options,
    resets: Resets | None = None,
) -> list[Tensor]:
    """One recurrent layer over a whole sequence, in one or both directions.

    Args:
        cell: "lstm" or "gru".
        input: [T, B, I], or packed data [N, I]; float32, float64, bfloat16 or float16.
        states: none (zeros), or h0 [D, B, P] and, for the LSTM, c0 [D, B, H]; packed data: rows in sorted
            order.
        weights: per direction w_ih [G*H, I], w_hh [G*H, P], then b_ih [G*H] and b_hh [G*H] or neither, then
            w_hr [P, H] or not.
        batch_sizes: int64 on the CPU; with packed data the rows at each step [T], non-increasing; else None, or the
            lengths of the rows [B]: from there on the output is zero, and final states are those before.
        options: bidirectional: D = 2 instead of 1. cell_clip: c_t is kept within it, before h_t is taken from it.
            grad_clip: backward keeps every gradient before an activation within it. recompute: backward computes the
            gates again instead of keeping them.
        resets: without ``batch_sizes`` and recompute. Nor does recompute take lengths.

    Returns:
        output [T, B, D*P] or [N, D*P], h_n [D, B, P] and, for the LSTM, c_n [D, B, H].

    Raises:
        RuntimeError: a tensor of wrong shape, dtype or device, by name.
    """
    return _layer(cell, input, states, weights, batch_sizes, *options, *(resets or ()))


def forward(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    options: Options,
    resets: Resets | None = None,
) -> list[Tensor]:
    """``layer``, whose results are followed, for each direction, by the activated gates [N, SAVED*H], which have no
    derivative, and for the LSTM c_t [N, H] in float32 (float64 for float64), which has. N = T*B."""
    return _forward(cell, input, states, weights, batch_sizes, *options._replace(recompute=False), *(resets or ()))


def step(cell: str, input: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """One time step: ``input`` [B, I], ``states`` none or h [B, H] (and c [B, H]); returns the new states.

    ``weights`` are w_ih [G*H, I], w_hh [G*H, H] and, both or neither, b_ih [G*H] and b_hh [G*H]. Raises as
    ``layer``.
    """
    return _step(cell, input, states, weights)


def pack(cell: str, weights: Sequence[Tensor], bidirectional: bool) -> list[Tensor]:
    """The weights of a layer as forward's kernels of the active instruction set read them."""
    return _pack(cell, weights, bidirectional)


def packed_layer(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    packed: Sequence[Tensor],
    isa: str,
    batch_sizes: Tensor | None,
    options: Options,
) -> list[Tensor]:
    """``layer`` with its weights also as ``pack`` returned them while ``isa`` was active; it has no derivative."""
    return _packed_layer(
        cell, input, states, weights, packed, isa, batch_sizes, options.bidirectional, options.cell_clip
    )


def segments(
    lengths: Tensor | None, resets: Tensor | None, T: int, B: int, batch_first: bool, layers: int, bidirectional: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A padded batch cut into segments, which run as rows of their own: at each row's end and before each reset.

    Args:
        lengths: steps of each row, int64 [B] on the CPU, 0 to T; None is T.
        resets: bool [T, B] ([B, T] if ``batch_first``): before which steps a new segment begins; None is nowhere.
        T, B, batch_first: of the input.
        layers, bidirectional: of the stack, whose layers and directions are K.

    Returns:
        Of S segments, the longest first: how many are at least t + 1 steps long [T]. And what ``take_rows`` and
        ``put_rows`` take as rows: of the input, the segments' N steps [N]; of hx [K, B, *] and then the reset states
        [K, *], what the segments start from [K, S]; of the segments' final states [K, S, *] and then hx, for rows
        without a step, the final states of the batch [K, B].

    Raises:
        RuntimeError: a tensor of wrong shape, dtype, device or value, by name.
    """
    return _segments(lengths, resets, T, B, batch_first, layers, bidirectional)


def take_rows(sources: Sequence[Tensor], rows: Tensor) -> Tensor:
    """Rows [*rows.shape, C] out of ``sources`` [*, C], whose rows are numbered one source after the other.

    A number that no row has stands for zeros.
    """
    return _take_rows(sources, rows)


def put_rows(values: Tensor, rows: Tensor, size: Sequence[int]) -> Tensor:
    """The transpose of ``take_rows``: zeros [*size, C], with ``values`` [*rows.shape, C] added to their rows."""
    return _put_rows(values, rows, size)
