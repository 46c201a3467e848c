"""Translated kernels with their basic blocks apart, so that what many kernels have in common is compiled once.

A basic block's function is named by the hash of what it does, with registers and sites numbered in the order in which
it uses them; where these are in a kernel it is told in a table.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass

from ptx.translate import HEADER

REGISTERS = re.compile(r"^struct Registers_ {\n(.*?)^};$", re.M | re.S)
STEP = re.compile(r"^\[\[gnu::noinline\]\] void step_(\d+)\(.*?\n(.*?)\n}$", re.M | re.S)
TAKES = "(Warp& w, Block& b, const Site* S, const u32* O, const u32* m, u32 M, u32 T, u64 count)"
REFERENCE = re.compile(r"^  Registers_& R = .*\n  \(void\)b, \(void\)R;\n", re.M)
REGISTERED = "const RegisterKernel registered(kernel);"


class Registers:
    """Where a warp's registers lie."""

    def __init__(self, code: str) -> None:
        found = REGISTERS.search(code)
        assert found is not None
        self.kinds, self.offsets, self.bytes = dict[str, str](), dict[str, int](), 0
        for kind, name in re.findall(r"alignas\(64\) (\w+) (\w+)\[lanes\];", found[1]):
            self.kinds[name], self.offsets[name] = kind, self.bytes
            self.bytes += -(-32 * int(kind.lstrip("bfsu")) // 8 // 64) * 64

    def pointer(self, name: str, offset: str) -> str:
        return f"reinterpret_cast<{self.kinds[name]}*>(w.registers + {offset})"

    def numbered(self, body: str) -> tuple[str, str]:
        """A basic block's code with numbers for registers and sites, and its table of where they are."""
        names = list(dict.fromkeys(re.findall(r"\bR\.(\w+)", body)))
        sites = list(dict.fromkeys(re.findall(r"\bSITES\[(\d+)\]", body)))
        place = {name: i for i, name in enumerate([*names, *sites])}
        code = re.sub(r"\bR\.(\w+)", lambda found: f"r{place[found[1]]}", body)
        code = re.sub(r"\bSITES\[(\d+)\]", lambda found: f"S[O[{place[found[1]]}]]", code)
        pointers = [
            f"  {self.kinds[name]}* const r{i} = {self.pointer(name, f'O[{i}]')};" for i, name in enumerate(names)
        ]
        table = [*(str(self.offsets[name]) for name in names), *sites]
        return "\n".join([*pointers, code]), ", ".join(table) or "0"


@dataclass
class Translated:
    """A kernel's C++: all but its basic blocks, and these by name."""

    rest: str
    steps: dict[str, str]


def apart(code: str, use: str = "") -> Translated:
    """Takes the basic blocks out of a kernel.

    Args:
        code: what ``translate`` makes of a kernel.
        use: a function of this name puts it in the place of the kernel of the same name; "": it is there from the
            beginning.
    """
    registers, sizes = Registers(code), dict(re.findall(r"\b(STATIC_SHARED|LOCAL_BYTES) = (\d+)", code))
    steps, own, calls = dict[str, str](), list[str](), dict[str, str]()

    def take(found: re.Match[str]) -> str:
        lines = found[2].split("\n")[1:]  # the first one says what is unused
        body = "\n".join(line for line in lines if not line.startswith("  //"))
        body = re.sub("|".join(sizes), lambda size: sizes[size[0]], body)
        body, table = registers.numbered(body)
        name = f"step_{hashlib.sha256(body.encode()).hexdigest()[:20]}"
        function = f"void {name}{TAKES} {{\n{body}\n}}"
        if re.search(r"\bV_", body):  # a variable of the module, which is this kernel's own
            own.append(function)
        else:
            steps[name] = function
        own.append(f"static constexpr u32 O{found[1]}[] = {{{table}}};")
        calls[found[1]] = f"{name}(w, b, SITES, O{found[1]}, "
        return ""

    rest = REGISTERS.sub("", STEP.sub(take, code)).removeprefix(HEADER)
    rest = REFERENCE.sub("", rest).replace("sizeof(Registers_)", str(registers.bytes))
    rest = re.sub(r"\bR\.(\w+)", lambda found: registers.pointer(found[1], str(registers.offsets[found[1]])), rest)
    rest = re.sub(r"\bstep_(\d+)\(w, b, R, ", lambda found: calls[found[1]], rest)
    rest = rest.replace("Outcome run(", "\n".join([*dict.fromkeys(own), "Outcome run("]))
    if use:
        rest = rest.replace(REGISTERED, f'extern "C" void {use}() {{ RegisterKernel{{kernel}}; }}')
        rest = f"namespace {use} {{\n{rest}\n}}"
    return Translated(rest, steps)


def source(kernels: Iterable[Translated], known: Container[str] = ()) -> str:
    """A C++ file of kernels and their basic blocks; of those that are ``known`` elsewhere only the names."""
    steps, rests = dict[str, str](), list[str]()
    for kernel in kernels:
        steps |= kernel.steps
        rests.append(kernel.rest)
    functions = [f"void {name}{TAKES};" if name in known else code for name, code in steps.items()]
    return "\n".join([HEADER, *functions, *rests])
