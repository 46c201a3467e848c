"""What a mutant must pass: small layers against the oracle, on small devices, under every plan, check and schedule.

Runs in processes of their own, which have the library in the package's place. A result may be twice as far from the
oracle's as that of the kernels as they are, plus half an eps: so a mutant must be wrong, not merely different, to fail.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import resource
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import oracles
import torch

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from cases import Case

DTYPES = {
    "float": torch.float32,
    "tf32": torch.float32,
    "double": torch.float64,
    "BFloat16": torch.bfloat16,
    "Float16": torch.float16,
}
EPS = {name: 2.0**-10 if name == "tf32" else torch.finfo(dtype).eps for name, dtype in DTYPES.items()}
PLANS = ("block", "grid", "step")
SECONDS = 200  # of a processor, that a mutant's tests may take; the unchanged kernels take a few dozen
LIMIT = 50_000_000  # instructions of a launch, three times what any here takes
# By type and case: the oracle's results, and how far ours may be.
Table = dict[tuple[str, str], tuple[dict[str, Any], dict[str, float]]]
Layers = Sequence[tuple[str, str]]  # types and cells
Uses = Sequence[tuple[str, str]]  # libraries of kernels, and the functions in them that put these in place of others


@dataclass(frozen=True)
class Device:
    """Limits small enough that small layers meet them."""

    multiprocessors: int
    shared: int  # bytes of a block


LARGE, THREE, SINGLE = Device(132, 232448), Device(3, 232448), Device(1, 232448)
MEDIUM, SMALL = Device(3, 16384), Device(3, 5120)
# The same for tensor cores, whose tiles are larger.
MEDIUM_OF_TILES, SMALL_OF_TILES = Device(3, 40960), Device(3, 32768)


def runs(name: str, cell: str) -> Iterator[tuple[Case, Device]]:
    """Layers and devices. Each shape is the least that reaches some part of the kernels."""
    from cases import Case

    from .resets import ResetCase

    tiled = name == "tf32" or DTYPES[name].itemsize == 2
    medium, small = (MEDIUM_OF_TILES, SMALL_OF_TILES) if tiled else (MEDIUM, SMALL)
    clips: dict[str, Any] = {"grad_clip": 0.05, "cell_clip": 0.2 if cell == "lstm" else None}
    given: dict[str, Any] = {"cell": cell, "I": 3, "dtype": DTYPES[name]}
    # Rows that end at different times; some rows of the batch are beyond the first block of them.
    yield Case(T=4, B=11, H=7, packed=True, bidirectional=True, **given), small
    # Steps at the end that no row has.
    yield Case(T=5, B=4, H=5, packed=True, padded=True, **given), small
    # One row at a time, no state, no bias.
    yield Case(T=3, B=2, H=9, hx=False, bias=False, bidirectional=True, **given), LARGE
    # More units than a block's warps take at once, several passes over the source's columns.
    yield Case(T=3, B=9, H=35, packed=True, **given), small
    # The same with weights that stay in shared memory.
    yield Case(T=2, B=3, H=35, bidirectional=True, **given), medium
    yield Case(T=3, B=3, H=5, gain=4.0, kept=True, bidirectional=True, **clips, **given), LARGE
    yield Case(T=3, B=5, H=15, packed=True, bidirectional=True, recompute=True, **given), small
    if tiled:  # rows of whole 16 bytes, more than a tile of them, and more tiles of units than warps
        yield Case(T=2, B=17, H=40, hx=False, **given), LARGE
        # In plan block more than one pass over the units.
        yield Case(T=2, B=3, H=136, **given), LARGE
        # Some blocks are done early, and a step of the LSTM's has 8 rows: a whole block of them and no more.
        yield Case(T=4, B=18, H=40, packed=True, bidirectional=True, **given), LARGE
        yield ResetCase(T=3, B=17, H=40, nan=True, **given), LARGE
        # In plan grid blocks with more rows than they take at once, which await each other's.
        yield Case(T=3, B=12, H=40, **given), THREE
        # The same where every step has the same rows, and a lane has some of them.
        yield Case(T=3, B=40, H=40, bidirectional=True, **given), THREE
        # Clips there, and a step that is looked ahead to and is not the last.
        yield Case(T=5, B=3, H=8, gain=4.0, kept=True, bidirectional=True, **clips, **given), LARGE
    if name == "tf32":
        # More slabs of a warp than it has under way.
        yield Case(T=2, B=3, H=260, **given), LARGE
        # Wide plans of two blocks of rows, of which the second has an odd tile: forward with an item a lane, and both.
        yield Case(T=3, B=40, H=8, **given), Device(2, 40960)
        yield Case(T=3, B=132, H=8, **given), Device(2, 232448)
    # More blocks of rows than are on the device together, and in plan grid more rows of a block than it takes at once.
    yield Case(T=2, B=80, H=8, **given), SINGLE
    # Rows that begin anew on the way, in given states or in none.
    yield ResetCase(T=4, B=11, H=7, bidirectional=True, **given), small
    yield ResetCase(T=3, B=2, H=9, bidirectional=True, restart=False, **given), LARGE
    # Gates at their limits; a single step.
    yield Case(T=1, B=3, H=8 if tiled else 5, gain=300.0, **given), LARGE


def configure(name: str, plan: str, device: Device, seed: int) -> None:
    os.environ |= {
        "LSTM_FUSED_CUDA_PLAN": plan,
        "PTX_SMS": str(device.multiprocessors),
        "PTX_SHARED": str(device.shared),
        "PTX_SEED": str(seed),
        "PTX_CHECK": "all",
        "PTX_LIMIT": str(LIMIT),
    }
    torch.backends.cudnn.rnn.fp32_precision = "tf32" if name == "tf32" else "ieee"


def results(case: Case) -> dict[str, Any]:
    """Results and gradients of the layer, and its results where no gradient is asked for."""
    import cases

    import lstm_fused

    from . import resets

    if isinstance(case, resets.ResetCase):
        return resets.ours(case)
    found = cases.run_module(case, 0, lstm_fused)
    given = cases.data(case, 0)
    module = cases.build(case, lstm_fused, case.dtype)
    for name, parameter in module.named_parameters():
        parameter.data = torch.from_numpy(given.parameters[name]).to(case.dtype).clone()
    # Copies: only torch's own memory is known as the device's.
    a = {name: torch.from_numpy(array).to(case.dtype).clone() for name, array in given.arrays.items()}
    hx: Any = ((a["h0"], a["c0"]) if case.cell == "lstm" else a["h0"]) if case.hx else None
    with torch.no_grad():
        lengths = torch.tensor(given.lengths) if case.packed else None
        output, state = module(a["x"], hx, lengths=lengths)
    found["output without gradients"] = output.double().numpy()
    found["h_n without gradients"] = (state[0] if case.cell == "lstm" else state).double().numpy()
    return found


def exact(case: Case) -> dict[str, Any]:
    import cases

    from . import resets

    if isinstance(case, resets.ResetCase):
        return resets.wanted(case)
    num = oracles.EXTENDED if case.dtype == torch.float64 else oracles.FLOAT64
    wanted = cases.run_oracle(case, 0, num)
    return wanted | {f"{name} without gradients": wanted[name] for name in ("output", "h_n")}


def distance(ours: oracles.Array, wanted: oracles.Array) -> float:
    if ours.shape != wanted.shape or (np.isnan(ours) != np.isnan(wanted)).any():
        return float("inf")
    return float(np.where(np.isnan(wanted), 0, np.abs(ours - wanted)).max()) if wanted.size else 0.0


def record(path: Path, layers: Layers) -> None:
    """Writes the table by which mutants are judged, with the library that is loaded, which has none."""
    table: Table = {}
    for name, cell in layers:
        for case, device in runs(name, cell):
            wanted, bounds = exact(case), dict[str, float]()
            for plan in PLANS:
                configure(name, plan, device, 0)
                ours = results(case)
                for result, value in wanted.items():
                    scale = distance(value, value * 0)  # where it is NaN, so is 0
                    bound = 2 * distance(ours[result], value) + EPS[name] / 2 * scale
                    sound = 256 * EPS[name] * max(scale, 1.0) * max(case.gain, 1.0)
                    assert bound <= sound, f"{name}, {case.id}, {plan}: {result}"
                    bounds[result] = max(bounds.get(result, 0.0), bound)
            table[name, case.id] = wanted, bounds
    path.write_bytes(pickle.dumps(table))


def reaches(rows: int | None, case: Case, plan: str) -> bool:
    """Whether a layer's products are of so many rows (as plan.h names products); None: any."""
    if rows is None:
        return True
    if rows <= 0:
        return (rows == -1) == (plan == "block")
    return (rows == 1) == (case.B < 3)


def check(path: Path, layers: Layers, rows: int | None, seeds: Sequence[int]) -> str:
    """How the loaded library fails; empty if it passes."""
    table: Table = pickle.loads(path.read_bytes())
    for seed in seeds:
        for name, case, device in ((of, *run) for of, cell in layers for run in runs(of, cell)):
            wanted, bounds = table[name, case.id]
            for plan in PLANS:
                if not reaches(rows, case, plan):
                    continue
                configure(name, plan, device, seed)
                try:
                    ours = results(case)
                except Exception as error:  # whatever it says, the mutant is found
                    return f"{name}, {case.id}, {plan}, seed {seed}: {fault() or error!s:.200}"
                for result, bound in bounds.items():
                    if not distance(ours[result], wanted[result]) <= bound:
                        return f"{name}, {case.id}, {plan}, seed {seed}: {result} is wrong"
    return "" if rows is not None else silence(layers)


def silence(layers: Layers) -> str:
    """Where a launch that fails, as a state of the host's is read, is passed over."""
    import lstm_fused

    for name, cell in layers:
        kind = {2: np.int16, 4: np.int32, 8: np.int64}[DTYPES[name].itemsize]
        h0, zero = torch.from_numpy(np.zeros((1, 3, 8), kind)).view(DTYPES[name]), torch.zeros(1, 3, 8).to(DTYPES[name])
        module = getattr(lstm_fused, cell.upper())(8, 8, dtype=DTYPES[name])
        for plan in PLANS:
            configure(name, plan, LARGE, 0)
            with contextlib.suppress(RuntimeError):
                module(zero, (h0, zero) if cell == "lstm" else h0)
                return f"{name}, {cell}, {plan}: a launch that fails is not reported"
    return ""


def fault() -> str:
    """What the runner of the kernels says of the last fault, its first line."""
    library = ctypes.CDLL(os.environ["LSTM_FUSED_LIBRARY"])
    library.ptx_last_fault.restype = ctypes.c_char_p
    return str(library.ptx_last_fault().decode()).partition("\n")[0][:200]


@dataclass(frozen=True)
class Task:
    """What a process is to do with the library that it has."""

    table: Path
    layers: Layers
    rows: int | None = None  # of the products that count, see ``reaches``
    uses: Uses = ()
    seeds: Sequence[int] = (0,)  # of the order of warps and blocks
    recording: bool = False  # writes the table

    def done(self) -> str:
        for library, function in self.uses:
            ctypes.CDLL(library)[function]()
        if self.recording:
            record(self.table, self.layers)
            return ""
        return check(self.table, self.layers, self.rows, self.seeds)


def in_fork(task: Task) -> str:
    """Does it in a copy of this process, whatever becomes of that."""
    end, begin = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            said = task.done()
        except BaseException:
            said = f"error: {traceback.format_exc()[-1500:]}"
        os.write(begin, said.encode()[:4000])
        os._exit(0)
    os.close(begin)
    with os.fdopen(end, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return said if status == 0 else f"the process ended with {os.waitstatus_to_exitcode(status)}"


def serve(library: str, asked: Connection) -> None:
    """Loads the library in the package's place, and does with it each task that comes, in a process for each."""
    os.environ |= {"LSTM_FUSED_LIBRARY": library}
    torch.set_num_threads(1)
    import cases  # noqa: F401 (so that not every process does)

    import lstm_fused  # noqa: F401

    with contextlib.suppress(EOFError):
        while True:
            asked.send(in_fork(asked.recv()))
