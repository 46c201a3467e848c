"""What a parsed kernel is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias, Union


@dataclass(frozen=True)
class Register:
    """A register; its C++ type is in ``Kernel.registers``."""

    name: str


@dataclass(frozen=True)
class Slot:
    """A ``.param`` variable of an inlined call: its bytes live in registers of their own."""

    name: str


@dataclass(frozen=True)
class Integer:
    """An integer literal."""

    value: int


@dataclass(frozen=True)
class Bits:
    """A float literal by its bits: ``0f...`` (32) or ``0d...`` (64)."""

    width: int
    value: int


@dataclass(frozen=True)
class Special:
    """A special register: ``tid.x``, ``laneid``, ..."""

    name: str


@dataclass(frozen=True)
class Symbol:
    """The address of a parameter or of a variable of the module."""

    name: str


@dataclass(frozen=True)
class Local:
    """The address of a ``.local`` variable: an offset in the thread's local memory."""

    offset: int


@dataclass(frozen=True)
class Label:
    """A place to jump to."""

    name: str


@dataclass(frozen=True)
class Sink:
    """``_``: a result that nobody wants."""


@dataclass(frozen=True)
class Not:
    """``!p``."""

    of: Operand


@dataclass(frozen=True)
class Pair:
    """``d|p``: a result and a predicate."""

    first: Operand
    second: Operand


@dataclass(frozen=True)
class Vector:
    """``{a, b, ...}``."""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Memory:
    """``[base + offset]``."""

    base: Operand
    offset: int


Operand: TypeAlias = Union[  # noqa: UP007 (evaluated at run time, with names of later classes)
    Register, Slot, Integer, Bits, Special, Symbol, Local, Label, Sink, Not, Pair, Vector, Memory
]


@dataclass(frozen=True)
class Instruction:
    """``@guard op.modifiers args``."""

    op: tuple[str, ...]  # "ld.global.f32" is ("ld", "global", "f32")
    args: tuple[Operand, ...]
    guard: Register | None = None
    negated: bool = False
    text: str = ""
    place: str = ""  # file:line of the source, where the PTX says so

    @property
    def name(self) -> str:
        """The first part of the opcode."""
        return self.op[0]

    @property
    def type(self) -> str:
        """The last part of the opcode, which is its type where it has one."""
        return self.op[-1]

    def has(self, *modifiers: str) -> bool:
        """Whether any of these is part of the opcode."""
        return any(m in self.op[1:] for m in modifiers)

    def pick(self, *modifiers: str) -> str:
        """The one of these that is part of the opcode, or ''."""
        return next((part for part in self.op[1:] if part in modifiers), "")


@dataclass
class Variable:
    """A ``.global``, ``.const`` or ``.shared`` variable of the module."""

    name: str
    space: str
    size: int
    align: int
    data: bytes = b""
    dynamic: bool = False  # extern shared memory: its size comes with the launch


@dataclass
class Parameter:
    """A parameter of a kernel, and its offset in the kernel's parameter block."""

    name: str
    offset: int
    size: int


@dataclass
class Clusters:
    """What an entry says of its clusters; 0: not given."""

    dims: tuple[int, int, int]  # .reqnctapercluster
    most: int  # .maxclusterrank
    explicit: bool  # .explicitcluster: launches must be of clusters


@dataclass
class Kernel:
    """An entry function with all calls inlined."""

    name: str
    parameters: list[Parameter]
    max_threads: int  # of .maxntid; 0: not given
    clusters: Clusters | None = None
    registers: dict[str, str] = field(default_factory=dict)  # name -> C++ type
    items: list[Label | Instruction] = field(default_factory=list)
    jump_tables: dict[str, list[str]] = field(default_factory=dict)
    local_bytes: int = 0
