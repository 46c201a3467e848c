"""Kernels to C++: the jumps between basic blocks, and the tables that the runtime reads."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from . import cluster, conversions, floats, integers, mbarrier, memory, warp  # noqa: F401 (they fill the tables of families)
from .emit import LANE_FAMILIES, WARP_FAMILIES, Emitter
from .parse import Module
from .steps import TAKES, Frame, LaneLoops, function
from .syntax import Instruction, Kernel, Label
from .text import cpp_name
from .types import Unsupported

HEADER = """#include "collectives.h"
#include "device.h"
#include "matrix.h"
#include "access.h"
using namespace ptx;
"""
UNSUPPORTED = "// unsupported: "  # begins a line for each instruction that stops a kernel which reaches it
ENDS_BLOCK = ("bra", "brx", "ret", "exit", "bar", "barrier", "trap", "nanosleep")
NEXT = "End::next, -1, false, 0"  # a basic block's end, its guard and whether that is negated, and where it goes to
UNKNOWN = (Unsupported, KeyError, IndexError, StopIteration, TypeError, ValueError)


@dataclass
class Translation:
    """The C++ of a module in its parts."""

    kernels: list[str]
    steps: dict[str, str]  # the functions of basic blocks, by name
    variables: list[str]  # of the module
    unsupported: list[str]  # instructions that stop a kernel which reaches them

    @property
    def code(self) -> str:
        """A file of the module."""
        return file_of([self])


def file_of(translations: Iterable[Translation], known: Container[str] = ()) -> str:
    """A C++ file of modules. Of basic blocks that are ``known`` it has but the names: another object has the rest."""
    steps, rest = dict[str, str](), list[str]()
    for t in translations:
        steps |= t.steps
        rest += [*(UNSUPPORTED + u for u in t.unsupported), *t.variables, *t.kernels]
    functions = [
        f"void {name}{TAKES};" if name in known else f"[[gnu::noinline]] inline {code}" for name, code in steps.items()
    ]
    return "\n".join([HEADER, *functions, *rest])


@dataclass
class BasicBlock:
    """Instructions that are executed together; of a warp-wide one that is the only one."""

    number: int
    instructions: list[Instruction] = field(default_factory=list)

    @property
    def warp_wide(self) -> bool:
        return bool(self.instructions) and is_warp_wide(self.instructions[0])


def is_warp_wide(i: Instruction) -> bool:
    """Whether all lanes must execute it together. Of barriers: of a warp, and aligned ones of the cluster."""
    if i.name in ("bar", "barrier"):
        return i.has("warp") or (i.has("cluster") and i.has("aligned"))
    return i.name in WARP_FAMILIES


def translate(text: str, target: int = 80, registers: Mapping[str, int] | None = None) -> Translation:
    """C++ for the runtime in ``runtime/``.

    Args:
        text: PTX.
        target: the compute capability that it is for, times ten.
        registers: of each kernel, as ptxas counted them; without them that limit is not checked.
    """
    module, steps = Module(text), dict[str, str]()
    kernels = [KernelTranslator(module, k, target, (registers or {}).get(k.name, 0), steps) for k in module.kernels]
    bodies = [k.code() for k in kernels]
    return Translation(bodies, steps, list(variables(module)), [u for k in kernels for u in k.unsupported])


def variables(module: Module) -> Iterator[str]:
    """The module's variables in global and constant memory."""
    for v in module.variables.values():
        if v.space in ("global", "const"):
            name = cpp_name(v.name)
            initial = f" = {{{','.join(map(str, v.data))}}}" if any(v.data) else ""
            yield f"alignas({max(v.align, 16)}) static u8 V_{name}[{max(v.size, 1)}]{initial};"
            yield f'static const RegisterVariable registered_{name}("{v.name}", V_{name}, {v.size});'


class KernelTranslator:
    """The C++ of one kernel."""

    def __init__(self, module: Module, kernel: Kernel, target: int, registers: int, steps: dict[str, str]) -> None:
        self.kernel, self.target, self.machine_registers = kernel, target, registers
        self.emit, self.frame = Emitter(module, kernel), Frame(kernel.registers)
        self.steps, self.own = steps, list[str]()  # functions: of all kernels, and what only this one can have
        self.offsets, self.table = list[str](), list[str]()  # of all basic blocks
        self.bodies: list[tuple[BasicBlock, LaneLoops, str]] = []  # and how they end
        self.unsupported: list[str] = []
        self.numbers: dict[str, int] = {}  # of the basic blocks that labels stand for
        self.blocks = self._basic_blocks()

    def _basic_blocks(self) -> list[BasicBlock]:
        blocks = [BasicBlock(0)]

        def begin() -> None:
            if blocks[-1].instructions:
                blocks.append(BasicBlock(len(blocks)))

        for item in self.kernel.items:
            if isinstance(item, Label):
                begin()
                self.numbers[item.name] = len(blocks) - 1
                continue
            if is_warp_wide(item):
                begin()
            blocks[-1].instructions.append(item)
            if is_warp_wide(item) or item.name in ENDS_BLOCK:
                begin()
        return blocks

    def code(self) -> str:
        """The kernel's namespace."""
        cases = [self.warp_wide_step(block) if block.warp_wide else self.lane_step(block) for block in self.blocks]
        uses = Counter(name for _, loops, _ in self.bodies for used in loops.uses() for name in used)
        elsewhere = re.findall(r"\b(?:R|AT)\.(\w+)", "\n".join([*cases, *(end for _, _, end in self.bodies)]))
        shared = {*(name for name, times in uses.items() if times > 1), *elsewhere}
        for block, loops, end in self.bodies:
            self.add(block, loops.code(self.kernel.registers, shared), end)
        run = self.frame.placed(self.run([case for case in cases if case]))
        return "\n".join([*self.tables(), run, self.registration()])

    def tables(self) -> Iterator[str]:
        yield f"namespace kernel_{cpp_name(self.kernel.name)} {{"
        yield "const Site SITES[] = {"
        yield from (f'  {{"{quoted(text)}", "{quoted(place)}"}},' for text, place in self.emit.sites)
        yield '  {"", ""}};'
        yield from self.own
        yield f"const u32 OFFSETS[] = {{{', '.join(self.offsets) or '0'}}};"
        yield "const BasicBlock BLOCKS[] = {"
        yield from (f"  {{{block}}}," for block in self.table)
        yield "};"

    def run(self, cases: list[str]) -> str:
        return "\n".join(
            [
                "Outcome run(Warp& w, int budget) {",
                "  Block& b = *w.block;",
                "  (void)b;",
                "  Cursor at(w, budget);",
                "  while (at.ready()) {",
                "    const u32 M = at.mask;",
                "    const u32* const m = at.m;",
                "    (void)m, (void)M;",
                "    switch (at.pc) {",
                *cases,
                "      default: at.execute(BLOCKS[at.pc], SITES);",
                "    }",
                "  }",
                "  return at.outcome;",
                "}",
            ]
        )

    def registration(self) -> str:
        k = self.kernel
        offsets = ",".join(str(p.offset) for p in k.parameters) or "0"
        sizes = ",".join(str(p.size) for p in k.parameters) or "0"
        size = max((p.offset + p.size for p in k.parameters), default=0)
        fields = [
            f'"{k.name}"',
            "run",
            f"{self.frame.bytes}, {round_up(self.emit.shared_bytes, 128)}, {round_up(k.local_bytes, 16)}, {size}",
            f"offsets, sizes, {len(k.parameters)}",
            f"{self.machine_registers}, {k.max_threads}, {self.target}",
            "SITES",
        ]
        if c := k.clusters:
            fields.append(f"{{{', '.join(map(str, c.dims))}}}, {c.most}, {int(c.explicit)}")
        return (
            f"const u32 offsets[] = {{{offsets}}}, sizes[] = {{{sizes}}};\n"
            f"const Kernel kernel = {{{', '.join(fields)}}};\n"
            "const RegisterKernel registered(kernel);\n}"
        )

    def add(self, block: BasicBlock, body: str, end: str) -> None:
        """A basic block's function, and its line of the table. One function for a kernel would take g++ minutes."""
        name, start = "nullptr", len(self.offsets)
        if body:
            numbered, offsets = self.frame.numbered(body)
            if re.search(r"\bV_", body):  # a variable of this module
                name, code = function(numbered, f"step_{block.number}")
                self.own.append(f"static {code}")
            else:
                name, code = function(numbered)
                self.steps[name] = code
            self.offsets += offsets
        self.table.append(f"{name}, OFFSETS + {start}, {len(block.instructions)}, {self.frame.placed(end)}")

    def lane_step(self, block: BasicBlock) -> str:
        """Adds a basic block. Returns its case where it ends by what the runtime does not know."""
        loops, end, case = LaneLoops(), NEXT, ""
        for i in block.instructions:
            try:
                if known := self.jump(i):
                    end = known
                elif code := self.other_end(i, block.number + 1):
                    case = f"      case {block.number}: {{ at.begin(BLOCKS[{block.number}], SITES); {code} break; }}"
                else:
                    loops.add(i, LANE_FAMILIES[i.name](self.emit, i))
            except UNKNOWN as reason:
                loops.add(i, self.stop(i, reason))
        self.bodies.append((block, loops, end))
        return case

    def warp_wide_step(self, block: BasicBlock) -> str:
        """As ``lane_step``, for an instruction that waits for all lanes it names."""
        i, number = block.instructions[0], block.number
        try:
            members, code = WARP_FAMILIES[i.name](self.emit, i)
        except UNKNOWN as reason:
            members, code = None, self.stop(i, reason)
        everyone = "full_warp" if members is None else self.emit.read(members, "u32")
        loops = LaneLoops()
        loops.add(i, code)
        self.bodies.append((block, loops, NEXT))
        return (
            f"      case {number}: {{ const u32 T = {self.emit.mask(i)}; const int l = T ? first_lane(T) : 0; (void)l; "
            f"at.execute_together(BLOCKS[{number}], SITES, T, {everyone}, {self.emit.site(i)}); break; }}"
        )

    def jump(self, i: Instruction) -> str:
        """The end of a basic block as the runtime knows it, by whom, and where to; or ''."""
        if i.name == "nanosleep":
            return "End::yield, -1, false, 0"
        if i.name not in ("bra", "ret", "exit"):
            return ""
        guard = f"AT.{i.guard.name}, {str(i.negated).lower()}" if i.guard else "-1, false"
        if i.name != "bra":
            return f"End::leave, {guard}, 0"
        assert isinstance(i.args[0], Label)
        return f"End::branch, {guard}, {self.numbers[i.args[0].name]}"

    def other_end(self, i: Instruction, following: int) -> str:
        """The code of another end, or ''."""
        if i.name == "brx":
            assert isinstance(i.args[1], Label)
            targets = ",".join(str(self.numbers[t]) for t in self.kernel.jump_tables[i.args[1].name])
            index = self.emit.read(i.args[0], "u32")
            return (
                f"static const int table[] = {{{targets}}}; set_pc(w, M, {following}); "
                f"{self.emit.each(i, f'w.pc[l] = table[{index}];')} at.chosen = false;"
            )
        return self.barrier(i) if i.name in ("bar", "barrier") and not i.has("cluster") else ""

    def barrier(self, i: Instruction) -> str:
        args, count = list(i.args), ""
        code = f"const u32 T = {self.emit.mask(i)}; const int l = T ? first_lane(T) : 0; (void)l; "
        barrier = self.emit.read(args[0], "u32")
        if i.has("reduce"):
            predicate = self.emit.read(args.pop(), "pred")
            code += (
                f"for (int l = 0; l < lanes; ++l) if (holds(T, l)) b.barriers[{barrier}].counted += {predicate} != 0; "
            )
        count = self.emit.read(args[1], "u32") if len(args) > 1 else "0"
        waits = "false" if i.has("arrive") else "true"
        return code + f"at.wait(T, {barrier}, {count}, {waits}, {self.emit.site(i)});"

    def stop(self, i: Instruction, reason: Exception) -> str:
        self.unsupported.append(f"{self.kernel.name}: {i.text} ({type(reason).__name__}: {reason})")
        return f"  unsupported(w, {self.emit.mask(i)}, {self.emit.site(i)});"


def round_up(bytes_: int, unit: int) -> int:
    return -(-bytes_ // unit) * unit


def quoted(text: str) -> str:
    """Fit for a C++ string literal."""
    return text.replace("\\", "\\\\").replace('"', '\\"')
