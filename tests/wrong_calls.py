"""Wrong calls: every argument of the raw operators, the modules and the runtime settings, wrong in turn."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import cases
import raw
import torch
from cases import Case
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import lstm_fused


@dataclass(frozen=True)
class Wrong:
    """A call that must raise; ``blamed`` may open the message, and it must hold all of ``mentions``."""

    id: str
    call: Callable[[], Any]
    blamed: tuple[str, ...] = ()
    mentions: tuple[str, ...] = ()


# ---- the raw operators -------------------------------------------------------------------------------------------

BASE = Case(T=4, B=3, I=5, H=7, dtype=torch.float64)  # every size differs, so that none is taken for another
LAYERS = {
    "lstm": BASE,
    "lstm-nobias": replace(BASE, bias=False),
    "lstm-proj-bidir": replace(BASE, proj=2, bidirectional=True),
    "lstm-packed": replace(BASE, packed=True),
    "lstm-lengths": replace(BASE, packed=True, padded=True),
    "gru": replace(BASE, cell="gru"),
    "gru-packed-bidir": replace(BASE, cell="gru", packed=True, bidirectional=True),
}


def label(a: raw.Arguments, position: int) -> str:
    """What a message calls the tensor at ``position`` of [input, *states, *weights]."""
    if position == 0:
        return "input"
    states = len(a.states)
    return f"states[{position - 1}]" if position <= states else f"weights[{position - 1 - states}]"


def neighbours(a: raw.Arguments, position: int) -> tuple[str, ...]:
    """Who may be blamed for a wrong size: the tensor itself, or one whose shape it shares a size with."""
    own = label(a, position)
    if own == "input":
        return ("input", "weights[0]", "states[0]", "batch_sizes", "lengths")
    if own == "weights[1]":  # it gives H and P
        return (own, "weights[0]", "weights[2]", "weights[4]", "states[0]")
    return (own, own[:6] + ":")  # a rank wrong for all of the states needs no index


def sizes_wrong(t: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Each dimension one off each way or empty, a dimension too few and one too many."""
    for d, n in enumerate(t.shape):
        for wrong in {n - 1, n + 1, 0} - {n}:
            sizes = list(t.shape)
            sizes[d] = wrong
            yield f"dim{d}={wrong}", t.new_zeros(sizes)
    yield "scalar", t.new_zeros(())
    yield "rank-1", t.detach()[0].clone()
    yield "rank+1", t.detach()[None].clone()


def sweep_of(name: str, a: raw.Arguments, call: Callable[[list[Tensor]], Any]) -> Iterator[Wrong]:
    """Every tensor of ``a`` wrong in turn: sizes, rank, dtype, device, layout."""
    for position, t in enumerate(a.tensors):

        def with_wrong(bad: Tensor, position: int = position) -> Callable[[], Any]:
            tensors = list(a.tensors)
            tensors[position] = bad
            return lambda: call(tensors)

        own = label(a, position)
        who = f"{name}-{own}"
        for kind, bad in sizes_wrong(t):
            is_time = position == 0 and kind.startswith("dim0") and bad.dim() == 3 and bad.shape[0] > 0
            is_rows = position == 0 and kind.startswith("dim1") and not a.states
            if is_time or is_rows:
                continue  # another T, or another B where no state fixes it, is no error
            yield Wrong(f"{who}-{kind}", with_wrong(bad), neighbours(a, position))
        for dtype in (torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64):
            blamed = (own, "weights[0]", "states[0]") if position == 0 else (own,)
            mentions = (re.escape(dtype_name(dtype)),)
            yield Wrong(f"{who}-{dtype_name(dtype)}", with_wrong(t.detach().to(dtype)), blamed, mentions)
        blamed = (own, "weights[0]", "states[0]") if position == 0 else (own,)
        yield Wrong(f"{who}-meta", with_wrong(t.detach().to("meta")), blamed, ("meta", "cpu"))
        # The dispatcher itself refuses a layout that no kernel is registered for.
        yield Wrong(f"{who}-sparse", with_wrong(t.detach().to_sparse()), (), ("[Ss]parse",))


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype as C++ spells it."""
    return {
        torch.float32: "Float",
        torch.float16: "Half",
        torch.int64: "Long",
        torch.bool: "Bool",
        torch.complex64: "ComplexFloat",
    }[dtype]


def came(cell: str, count: int, D: int) -> tuple[str, ...]:
    """The number of weights that came, unless it is one that a layer could have: then one of them has a wrong shape."""
    possible = (2, 3, 4, 5) if cell == "lstm" else (2, 4)
    return () if count % D == 0 and count // D in possible else (rf"got {count}\b",)


def layer_sweep() -> Iterator[Wrong]:
    for (name, case), grad in itertools.product(LAYERS.items(), (True, False)):
        a = raw.arguments(case, requires_grad=grad)
        yield from sweep_of(name + ("-grad" if grad else ""), a, a.call)
    for name, case in LAYERS.items():
        a = raw.arguments(case)
        for count in {0, 1, len(a.weights) - 1, len(a.weights) + 1, 3 * len(a.weights)}:
            call = replace(a, weights=(a.weights * 3)[:count]).call
            yield Wrong(f"{name}-{count}weights", call, ("weights",), came(case.cell, count, case.D))
        for count in {1, 2, 3} - {len(a.states)}:
            states = (a.states * 3)[:count]
            yield Wrong(f"{name}-{count}states", replace(a, states=states).call, ("states",), (rf"got {count}\b",))
        narrow = [
            w[:, :0] if "weight_ih" in n else w for n, w in zip(a.names[1 + len(a.states) :], a.weights, strict=True)
        ]
        empty = replace(a, input=a.input[..., :0], weights=narrow)
        yield Wrong(f"{name}-no-inputs", empty.call, ("input",), (r"at least one value",))
        for cell in ("", "LSTM", "rnn", "lstm\0gru", "ł" * 100):
            yield Wrong(f"{name}-cell{cell[:4]!r}", replace(a, cell=cell).call, ("cell",), ("lstm", "gru"))


def batch_sizes_sweep() -> Iterator[Wrong]:
    for name in ("lstm-packed", "gru-packed-bidir"):
        a = raw.arguments(LAYERS[name])
        assert a.batch_sizes is not None
        good, N = a.batch_sizes.tolist(), len(a.input)
        wrong: dict[str, tuple[Any, str]] = {
            "increasing": (list(reversed(good)), r"got 3 at step \d"),
            "hole": ([*good[:-1], 0, good[-1]], rf"got {good[-1]} at step \d+ after 0"),
            "negative": ([*good, 2, -2], "got -2|got 2"),
            "all-negative": ([-n for n in good], "got -3"),
            "too-many-rows": ([N + 1], f"got {N + 1}"),
            "huge": ([2**62, 2**62, 2**62, 2**62], str(2**62)),
            "sum-overflows": ([3] + [2**62] * 4, str(2**62)),
            "sum-too-small": (good[:-1], f"got {sum(good[:-1])}"),
            "sum-too-big": ([*good, good[-1]], f"got {N + good[-1]}"),
            "empty": ([], r"got \[0\]"),
            "other-batch": ([2] * (N // 2) + [1] * (N % 2), r"got \[\d, 3, 7\]"),
        }
        for kind, (sizes, came) in wrong.items():
            call = replace(a, batch_sizes=torch.tensor(sizes, dtype=torch.int64)).call
            blamed = ("batch_sizes", "states[0]") if kind == "other-batch" else ("batch_sizes",)
            yield Wrong(f"{name}-batch_sizes-{kind}", call, blamed, (came,))
        b = torch.tensor(good)
        tensors = {
            "int32": (b.int(), "Int"),
            "float64": (b.double(), "Double"),
            "meta": (b.to("meta"), "meta"),
            "rank0": (b[0], r"got \[\]"),
            "rank2": (b[None], r"got \[1, \d\]"),
        }
        for kind, (tensor, came) in tensors.items():
            yield Wrong(f"{name}-batch_sizes-{kind}", replace(a, batch_sizes=tensor).call, ("batch_sizes",), (came,))
        yield Wrong(f"{name}-no-batch_sizes", replace(a, batch_sizes=None).call, ("input",), (rf"got \[{N}, 5\]",))


def lengths_sweep() -> Iterator[Wrong]:
    a = raw.arguments(LAYERS["lstm-lengths"])
    good = torch.tensor([4, 2, 1])
    wrong: dict[str, tuple[Tensor, str]] = {
        "negative": (torch.tensor([4, -1, 1]), "from 0 to 4, got -1 at 1"),
        "too-long": (torch.tensor([4, 2, 5]), "from 0 to 4, got 5 at 2"),
        "huge": (torch.tensor([2**62, 2**62, 2**62]), str(2**62)),
        "too-few": (good[:2], r"\[3\], got \[2\]"),
        "too-many": (torch.tensor([3, 3, 3, 3]), r"\[3\], got \[4\]"),
        "empty": (good[:0], r"got \[0\]"),
        "int32": (good.int(), "Int"),
        "float64": (good.double(), "Double"),
        "meta": (good.to("meta"), "meta"),
        "rank0": (good[0], r"got \[\]"),
        "rank2": (good[None], r"got \[1, 3\]"),
    }
    for kind, (lengths, came) in wrong.items():
        blamed = ("batch_sizes",) if kind == "meta" else ("lengths",)
        yield Wrong(f"lengths-{kind}", replace(a, batch_sizes=lengths).call, blamed, (came,))
    recomputing = replace(a, batch_sizes=good, options=(None, None, True)).call
    yield Wrong("lengths-recompute", recomputing, ("recompute",), ("lengths",))


def step_sweep() -> Iterator[Wrong]:
    for cell, bias in itertools.product(cases.CELLS, (True, False)):
        a = raw.arguments(replace(BASE, cell=cell, bias=bias))
        a.input, a.states = a.input.detach()[0].clone(), [s.detach()[0].clone() for s in a.states]

        def call(tensors: list[Tensor], a: raw.Arguments = a, cell: str = cell) -> Any:
            x, *rest = tensors
            return torch.ops.lstm_fused.step(cell, x, rest[: len(a.states)], rest[len(a.states) :])

        name = f"step-{cell}" + ("" if bias else "-nobias")
        yield from sweep_of(name, a, call)
        for count in (0, 1, 3, 5, 6):
            weights = (a.weights * 3)[:count]
            bad = functools.partial(torch.ops.lstm_fused.step, cell, a.input, a.states, weights)
            yield Wrong(f"{name}-{count}weights", bad, ("weights",), came(cell, count, 1))
        for count in {1, 2, 3} - {len(a.states)}:
            bad = functools.partial(torch.ops.lstm_fused.step, cell, a.input, (a.states * 3)[:count], a.weights)
            yield Wrong(f"{name}-{count}states", bad, ("states",), (rf"got {count}\b",))
        bad = functools.partial(torch.ops.lstm_fused.step, "elman", a.input, a.states, a.weights)
        yield Wrong(f"{name}-cell", bad, ("cell",), ("lstm", "gru", "elman"))


def types_sweep() -> Iterator[Wrong]:
    """Arguments of a wrong Python type: the dispatcher's own errors, which name the argument."""
    a = raw.arguments(BASE)
    good = [a.cell, a.input, a.states, a.weights, None, False]
    names = ["cell", "input", "states", "weights", "batch_sizes", "bidirectional"]
    truth_values = (3.5, None)  # which the dispatcher takes for a bool
    for k, name in enumerate(names):
        for bad in (3.5, "text", None, [None], object()):
            if (name, bad) in (("cell", "text"), ("batch_sizes", None)) or (k == 5 and bad in truth_values):
                continue
            call = functools.partial(torch.ops.lstm_fused.layer, *good[:k], bad, *good[k + 1 :])
            yield Wrong(f"type-{name}-{type(bad).__name__}", call, (), (rf"'{name}'|{name}",))


def runtime_sweep() -> Iterator[Wrong]:
    def use(context: Callable[[str], Any], name: str) -> Callable[[], Any]:
        return lambda: context(name).__enter__()

    available = lstm_fused.runtime.available_isas()
    for name in ("sse9", "AVX2 "):
        wanted = (re.escape(name), *map(re.escape, available))
        yield Wrong(f"isa-{name!r}", use(lstm_fused.runtime.use_isa, name), (), wanted)
    for name in ("columns", "ROWS"):
        yield Wrong(f"plan-{name}", use(lstm_fused.runtime.use_plan, name), (), (name, "rows", "units", "serial"))
    missing = {"scalar", "avx2", "avx512"} - set(available)
    for name in missing:
        yield Wrong(f"isa-{name}", use(lstm_fused.runtime.use_isa, name), (), (name, *available))


# ---- the modules: the same mistakes on torch's, and the same exceptions ------------------------------------------


def module_sweep(library: Any) -> Iterator[Wrong]:
    def build(cell: str, *args: Any, **options: Any) -> Callable[[], Any]:
        return lambda: getattr(library, cell)(*args, **options)

    for cell in ("LSTM", "GRU"):
        yield Wrong(f"{cell}-hidden_size=0", build(cell, 5, 0), (), ("hidden_size",))
        yield Wrong(f"{cell}-hidden_size=-1", build(cell, 5, -1), (), ("hidden_size",))
        yield Wrong(f"{cell}-hidden_size=1.5", build(cell, 5, 1.5), (), ("hidden_size", "float"))
        yield Wrong(f"{cell}-num_layers=0", build(cell, 5, 7, num_layers=0), (), ("num_layers",))
        yield Wrong(f"{cell}-dropout=2", build(cell, 5, 7, dropout=2.0), (), ("dropout",))
        yield Wrong(f"{cell}-dropout=True", build(cell, 5, 7, dropout=True), (), ("dropout",))
        yield Wrong(f"{cell}-unknown", build(cell, 5, 7, depth=2), (), ("depth",))
        m = getattr(library, cell)(5, 7)
        h, c = torch.zeros(1, 3, 7), torch.zeros(1, 3, 7)

        def hx(h: Tensor, c: Tensor = c, cell: str = cell) -> Any:
            return (h, c) if cell == "LSTM" else h

        def run(*args: Any, m: Any = m) -> Callable[[], Any]:
            return lambda: m(*args)

        x = torch.zeros(4, 3, 5)
        yield Wrong(f"{cell}-input-1d", run(x[0, 0]), (), ("input", "1"))
        yield Wrong(f"{cell}-input-4d", run(x[None]), (), ("input", "4"))
        yield Wrong(f"{cell}-input-size", run(torch.zeros(4, 3, 6)), (), ("input", r"\b5\b", r"\b6\b"))
        yield Wrong(f"{cell}-input-float64", run(x.double()), (), ("dtype", "float64", "float32"))
        yield Wrong(f"{cell}-no-steps", run(x[:0]), (), ("[Ss]equence length|T",))
        yield Wrong(f"{cell}-hx-rows", run(x, hx(h[:, :2])), (), (r"hidden|hx", r"\b3\b", r"\b2\b"))
        yield Wrong(f"{cell}-hx-size", run(x, hx(torch.zeros(1, 3, 8))), (), (r"hidden|hx", r"\b7\b", r"\b8\b"))
        yield Wrong(f"{cell}-hx-layers", run(x, hx(torch.zeros(2, 3, 7))), (), (r"hidden|hx", r"\b1\b", r"\b2\b"))
        yield Wrong(f"{cell}-hx-2d", run(x, hx(h[0], c[0])), (), ("hx", "3-D", "2-D"))
        yield Wrong(f"{cell}-hx-3d-unbatched", run(x[:, 0], hx(h)), (), ("hx", "2-D", "3-D"))
        yield Wrong(f"{cell}-hx-float64", run(x, hx(h.double(), c.double())), (), ())
        packed = pack_padded_sequence(x, torch.tensor([4, 3, 1]))
        yield Wrong(f"{cell}-packed-hx", run(packed, hx(h[:, :2])), (), (r"hidden|hx", r"\b3\b", r"\b2\b"))
        yield Wrong(
            f"{cell}-packed-size",
            run(pack_padded_sequence(x[..., :4], torch.tensor([4, 3, 1]))),
            (),
            ("input",),
        )
        cell_module = getattr(library, f"{cell}Cell")(5, 7)
        y = torch.zeros(3, 5)
        name = f"{cell}Cell"
        yield Wrong(f"{name}-input-3d", run(y[None], m=cell_module), (), ("input", "3"))
        yield Wrong(f"{name}-input-size", run(torch.zeros(3, 6), m=cell_module), (), (r"\b5\b", r"\b6\b"))
        yield Wrong(f"{name}-hx-rows", run(y, hx(h[0, :2], c[0, :2]), m=cell_module), (), (r"\b3\b", r"\b2\b"))
        yield Wrong(f"{name}-hx-size", run(y, hx(torch.zeros(3, 8), c[0]), m=cell_module), (), (r"\b7\b", r"\b8\b"))
    lstm = library.LSTM(5, 7)
    yield Wrong(
        "LSTM-c-size",
        lambda: lstm(torch.zeros(4, 3, 5), (torch.zeros(1, 3, 7), torch.zeros(1, 3, 6))),
        (),
        ("6",),
    )
    yield Wrong("LSTM-proj_size", build("LSTM", 5, 7, proj_size=7), (), ("proj_size",))
    yield Wrong("LSTM-proj_size-negative", build("LSTM", 5, 7, proj_size=-1), (), ("proj_size",))
    yield Wrong("GRU-proj_size", build("GRU", 5, 7, proj_size=3), (), ("proj_size",))


def untyped_sweep() -> Iterator[Wrong]:
    """What torch's own layers trip over or crash on, so that they are no measure."""
    lstm = lstm_fused.LSTM(5, 7)
    yield Wrong(
        "LSTM-hx-tensor", lambda: lstm(torch.zeros(4, 3, 5), torch.zeros(1, 3, 7)), (), ("hx", "tuple", "Tensor")
    )
    for cell in ("LSTM", "GRU"):
        m = getattr(lstm_fused, cell)(5, 7)
        for sizes in ([1, 3], [5], [3, 0], [4, -1, 1], [], [2**62, 2]):
            packed = PackedSequence(torch.zeros(4, 5), torch.tensor(sizes, dtype=torch.int64))
            yield Wrong(f"{cell}-batch_sizes-{sizes}", functools.partial(m, packed), (), ("batch_sizes",))


def ours() -> list[Wrong]:
    sweeps = (layer_sweep, batch_sizes_sweep, lengths_sweep, step_sweep, types_sweep, runtime_sweep, untyped_sweep)
    return [*itertools.chain.from_iterable(sweep() for sweep in sweeps), *module_sweep(lstm_fused)]
