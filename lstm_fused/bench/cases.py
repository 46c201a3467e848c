"""The shapes that the benchmark runs: named grids, and single cases given by hand.

Dimensions keep the project's names: T time steps, B batch rows, I input size, H hidden size. This file
imports nothing heavy, so that the command line can check its arguments before torch is loaded.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

CELLS = ("lstm", "gru")
MODES = ("inference", "training")
GATES = {"lstm": 4, "gru": 3}

#: T,B,I,H with options. One line is run for LSTM and for GRU (projection: LSTM only, as in torch).
FULL = """
1,1,256,256
100,1,64,64
100,1,256,256
100,1,512,512
100,1,1024,1024
1000,1,128,128
100,4,256,256
150,4,256,256
50,4,1536,1536
100,8,64,64
1000,8,64,64
50,16,128,128
50,16,512,512
35,20,200,200
35,20,650,650
100,32,256,256
128,32,80,320
100,64,128,128
50,64,512,512
25,64,1024,1024
100,128,32,32
25,128,1024,1024
100,8,128,128 bidirectional
100,1,256,256 bidirectional
100,16,256,256 layers=3
87,32,1,512 layers=3 bidirectional
100,32,256,256 packed
1000,8,64,64 packed
50,16,512,512 proj=128
"""

#: A sixth of FULL: a streaming step, latency-bound, two directions, compute-bound, packed.
QUICK = """
1,1,256,256
100,1,256,256
100,8,128,128 bidirectional
50,64,512,512
100,32,256,256 packed
"""

PACKED = """
100,32,256,256 packed
1000,8,64,64 packed
100,8,128,128 packed
35,20,200,200 packed
128,32,80,320 packed
100,64,128,128 packed
50,64,512,512 packed
50,16,256,256 packed bidirectional
"""

#: For GPUs. First the shape that others publish times for; small hidden sizes and batches are bound by latency, large
#: ones by GEMM speed; each cuDNN algorithm has rows.
CUDA = """
1024,16,768,768
256,1,64,64
256,64,64,64
256,16,128,128
256,128,128,128
256,1,256,256
256,16,256,256
256,64,256,256
256,1,512,512
256,16,512,512
256,64,512,512
256,16,1024,1024
256,128,1024,1024
256,16,256,256 bidirectional
256,64,256,256 layers=3
256,64,256,256 packed
"""

GRIDS = {"quick": QUICK, "full": FULL, "packed": PACKED, "cuda": CUDA}

#: The few rows that --contended repeats next to a busy process.
CONTENDED = """
100,1,256,256
100,8,64,64
50,16,512,512
"""

#: What --variants runs with lengths, resets and torch.compile.
VARIANTS = """
100,8,64,64
100,16,128,128
100,32,256,256
50,64,128,128
50,64,512,512
100,8,128,128 bidirectional layers=2
"""


@dataclass(frozen=True)
class Case:
    """One shape of one cell; `module` is "layer" (nn.LSTM, nn.GRU) or "cell" (nn.LSTMCell, nn.GRUCell).

    Raises ValueError for a size below 1, an unknown cell or module, or options that do not go together.
    """

    cell: str
    T: int
    B: int
    I: int
    H: int
    layers: int = 1
    bidirectional: bool = False
    proj: int = 0  # P of an LSTM with projection; 0: none
    packed: bool = False
    module: str = "layer"
    lengths_seed: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if self.cell not in CELLS:
            raise ValueError(f"cell: expected one of {', '.join(CELLS)}, got {self.cell!r}")
        for name in ("T", "B", "I", "H", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.proj and self.cell != "lstm":
            raise ValueError("proj: only an LSTM has a projection")
        if not 0 <= self.proj < self.H:
            raise ValueError(f"proj: expected 0 <= proj < H = {self.H}, got {self.proj}")
        if self.module not in ("layer", "cell"):
            raise ValueError(f"module: expected layer or cell, got {self.module!r}")
        single = self.T == 1 and self.layers == 1 and not (self.bidirectional or self.proj or self.packed)
        if self.module == "cell" and not single:
            raise ValueError("module: a cell runs one step, one layer, one direction, unpacked")

    @property
    def gates(self) -> int:
        """G, the number of gates: 4 for LSTM, 3 for GRU."""
        return GATES[self.cell]

    @property
    def directions(self) -> int:
        """D, 2 if bidirectional."""
        return 2 if self.bidirectional else 1

    @property
    def visible(self) -> int:
        """Size of the state that recurs and is put out: proj, or H without projection."""
        return self.proj or self.H

    @property
    def streaming(self) -> bool:
        """One time step, with the state handed in by the caller as a streaming server does."""
        return self.T == 1

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Length of each batch row: uniform in 1..T with a fixed seed if packed, else T. Not sorted."""
        if not self.packed:
            return (self.T,) * self.B
        draw = random.Random(self.lengths_seed)
        return tuple(draw.randint(1, self.T) for _ in range(self.B))

    @property
    def steps(self) -> int:
        """Steps that have to follow one another: the longest length."""
        return max(self.lengths)

    @property
    def tokens(self) -> int:
        """Row-steps with work in them: the sum of lengths, T*B when nothing is packed."""
        return sum(self.lengths)

    @property
    def name(self) -> str:
        """Short text for tables, e.g. `LSTM 100x8 128>128 bidirectional` (T x B, I > H)."""
        kind = self.cell.upper() + ("Cell" if self.module == "cell" else "")
        return f"{kind} {self.shape}"

    @property
    def shape(self) -> str:
        """`name` without the cell."""
        parts = [f"{self.T}x{self.B} {self.I}>{self.H}"]
        parts += [f"proj {self.proj}"] if self.proj else []
        parts += [f"{self.layers} layers"] if self.layers > 1 else []
        parts += ["bidirectional"] if self.bidirectional else []
        parts += ["packed"] if self.packed else []
        return " ".join(parts)


def parse_case(text: str, cell: str) -> Case:
    """A case from `T,B,I,H [bidirectional] [packed] [cell] [layers=N] [proj=N]`.

    Raises ValueError naming the text and what was expected.
    """
    head, *options = text.split()
    try:
        T, B, I, H = (int(number) for number in head.split(","))
    except ValueError:
        raise ValueError(f"case {text!r}: expected T,B,I,H as four integers, got {head!r}") from None
    case = Case(cell, T, B, I, H)
    for option in options:
        key, _, value = option.partition("=")
        if key == "layers" and value.isdigit():
            case = replace(case, layers=int(value))
        elif key == "proj" and value.isdigit():
            case = replace(case, proj=int(value))
        elif option == "bidirectional":
            case = replace(case, bidirectional=True)
        elif option == "packed":
            case = replace(case, packed=True)
        elif option == "cell":
            case = replace(case, module="cell")
        else:
            raise ValueError(
                f"case {text!r}: unknown option {option!r}, expected bidirectional, packed, cell, layers=N or proj=N"
            )
    return case


def parse_grid(text: str, cells: Iterable[str]) -> list[Case]:
    """Every non-empty line of `text` for every cell in turn, cells outermost; GRU skips projections."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return [parse_case(line, cell) for cell in cells for line in lines if not (cell == "gru" and "proj=" in line)]


def grid(name: str, cells: Iterable[str] = CELLS) -> list[Case]:
    """The cases of a named grid: "quick", "full", "packed" or "cuda".

    quick and full end with one streaming row for each cell's step module (nn.LSTMCell, nn.GRUCell), next to
    the grid's own 1,1,256,256 for the layers. Raises ValueError for another name.
    """
    if name not in GRIDS:
        raise ValueError(f"grid: expected one of {', '.join(GRIDS)}, got {name!r}")
    cells = tuple(cells)
    cases = parse_grid(GRIDS[name], cells)
    if name in ("quick", "full"):
        cases += parse_grid("1,1,256,256 cell", cells)
    return cases
