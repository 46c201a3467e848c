"""Basic blocks as functions, which kernels share: instances of one template have most of theirs in common.

A function is named by the hash of what it does, with registers and sites numbered in the order in which it uses them;
where these are in a kernel it is told in a table.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from .emit import EACH_LANE, ORDERED
from .syntax import Instruction
from .types import BYTES

#: What a kernel and a basic block's function know each other by; ``offsets`` is the table.
TAKES = "(Warp& w, Block& b, const Site* sites, const u32* offsets, const u32* m, u32 M, u32 T, u64 count)"
LANES = 32


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
        """Code with addresses for registers."""
        return re.sub(r"\bR\.(\w+)", lambda found: self.pointer(found[1], self.offset(found[1])), code)

    def numbered(self, body: str) -> tuple[str, list[str]]:
        """A function's body that does what is said of registers ``R.name`` and sites ``SITES[number]``, and the
        elements of its table."""
        names = list(dict.fromkeys(re.findall(r"\bR\.(\w+)", body)))
        sites = list(dict.fromkeys(re.findall(r"\bSITES\[(\d+)\]", body)))
        number = {name: i for i, name in enumerate([*names, *sites])}
        body = re.sub(r"\bR\.(\w+)", lambda found: f"r{number[found[1]]}", body)
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
        self.lines: list[str] = []
        self.open = False

    def add(self, i: Instruction, code: str) -> None:
        """The next instruction's code."""
        joins = code.startswith(EACH_LANE) and i.name not in ORDERED
        if self.open and not joins:
            self.close()
        if joins and not self.open:
            self.lines.append(f"  {EACH_LANE}{{")
        self.lines += [f"  {code.removeprefix(EACH_LANE) if joins else code}"] if code else []
        self.open = joins

    def close(self) -> None:
        if self.open:
            self.lines.append("  }")
        self.open = False

    def code(self) -> str:
        self.close()
        return "\n".join(self.lines)
