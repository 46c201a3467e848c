"""Basic blocks as functions, which kernels share: instances of one template have most of theirs in common.

A function is named by the hash of what it does, with registers and sites numbered in the order in which it uses them;
where these are in a kernel it is told in a table. A register that nobody uses but one lane loop is a variable there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterator, Mapping, Sequence

from .emit import EACH_LANE, ORDERED
from .syntax import Instruction
from .types import BYTES

#: What a kernel and a basic block's function know each other by; ``offsets`` is the table.
TAKES = "(Warp& w, Block& b, const Site* sites, const u32* offsets, const u32* m, u32 M, u32 T, u64 count)"
LANES = 32
REGISTER = re.compile(r"\bR\.(\w+)")


class Frame:
    """Where a warp's registers lie, each an array over lanes."""

    def __init__(self, kinds: Mapping[str, str]) -> None:
        self.kinds, self.offsets, self.bytes = kinds, dict[str, int](), 0

    def offset(self, name: str) -> int:
        """Of a register, in bytes."""
        if name not in self.offsets:
            self.offsets[name] = self.bytes
            self.bytes += -(-LANES * BYTES[self.kinds[name]] // 64) * 64
        return self.offsets[name]

    def pointer(self, name: str, offset: object) -> str:
        return f"reinterpret_cast<{self.kinds[name]}*>(w.registers + {offset})"

    def placed(self, code: str) -> str:
        """Code with addresses for registers, and offsets for ``AT.name``."""
        code = re.sub(r"\bAT\.(\w+)", lambda found: str(self.offset(found[1])), code)
        return REGISTER.sub(lambda found: self.pointer(found[1], self.offset(found[1])), code)

    def numbered(self, body: str) -> tuple[str, list[str]]:
        """A function's body that does what is said of registers ``R.name`` and sites ``SITES[number]``, and the
        elements of its table."""
        names = list(dict.fromkeys(REGISTER.findall(body)))
        sites = list(dict.fromkeys(re.findall(r"\bSITES\[(\d+)\]", body)))
        number = {name: i for i, name in enumerate([*names, *sites])}
        body = REGISTER.sub(lambda found: f"r{number[found[1]]}", body)
        body = re.sub(r"\bSITES\[(\d+)\]", lambda found: f"sites[offsets[{number[found[1]]}]]", body)
        pointers = [
            f"  {self.kinds[name]}* const __restrict r{i} = {self.pointer(name, f'offsets[{i}]')};"
            for i, name in enumerate(names)
        ]
        return "\n".join([*pointers, body]), [*(str(self.offset(name)) for name in names), *sites]


def function(body: str, name: str = "") -> tuple[str, str]:
    """The name and the code of the function that has this body."""
    name = name or f"step_{hashlib.sha256(body.encode()).hexdigest()[:20]}"
    return name, f"void {name}{TAKES} {{\n{body}\n}}"


class LaneLoops:
    """The lane loops of a basic block: one for all instructions in a row that concern a lane's registers alone."""

    def __init__(self) -> None:
        self.pieces: list[list[str]] = []  # lines of a loop's body, or another instruction's
        self.loops: set[int] = set()  # which pieces are loops

    def add(self, i: Instruction, code: str) -> None:
        """The next instruction's code."""
        if not code:
            return
        joins = code.startswith(EACH_LANE) and i.name not in ORDERED
        if not joins or len(self.pieces) - 1 not in self.loops:
            self.pieces.append([])
        if joins:
            self.loops.add(len(self.pieces) - 1)
        self.pieces[-1].append(code.removeprefix(EACH_LANE) if joins else code)

    def uses(self) -> Iterator[set[str]]:
        """The registers of each piece."""
        return (set(REGISTER.findall("\n".join(piece))) for piece in self.pieces)

    def code(self, kinds: Mapping[str, str], shared: Container[str]) -> str:
        """All of it, where ``shared`` registers occur elsewhere, too."""
        lines: list[str] = []
        for k, piece in enumerate(self.pieces):
            body = "\n".join(f"  {line}" for line in piece)
            if k in self.loops:
                names = [n for n in dict.fromkeys(REGISTER.findall(body)) if n not in shared and begins(n, piece)]
                for number, name in enumerate(names):
                    body = re.sub(rf"\bR\.{name}\[l\]", f"own{number}", body)
                declared = "".join(f" {kinds[name]} own{number};" for number, name in enumerate(names))
                body = f"  {EACH_LANE}{{{declared}\n{body}\n  }}"
            lines.append(body)
        return "\n".join(lines)


def begins(name: str, lines: Sequence[str]) -> bool:
    """Whether the first of the lines that have this register sets it, in every lane, to what does not depend on it."""
    register = re.compile(rf"\bR\.{name}\b")
    first = next(line for line in lines if register.search(line))
    before, after = register.split(first, 1)
    return not before.startswith("if") and after.startswith("[l] = ") and not register.search(after.partition(";")[0])
