"""Kernels to C++: basic blocks, the jumps between them, and the tables that the runtime reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from . import cluster, conversions, floats, integers, mbarrier, memory, warp  # noqa: F401 (they fill the tables of families)
from .emit import LANE_FAMILIES, WARP_FAMILIES, Emitter
from .parse import Module
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
UNKNOWN = (Unsupported, KeyError, IndexError, StopIteration, TypeError, ValueError)


@dataclass
class Translation:
    """The C++ of a module, and the instructions in it that stop a kernel which reaches them."""

    code: str
    unsupported: list[str] = field(default_factory=list)


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
    module = Module(text)
    kernels = [KernelTranslator(module, k, target, (registers or {}).get(k.name, 0)) for k in module.kernels]
    bodies = [k.code() for k in kernels]
    unsupported = [u for k in kernels for u in k.unsupported]
    head = [HEADER, *(UNSUPPORTED + u for u in unsupported), *variables(module)]
    return Translation("\n".join([*head, *bodies]), unsupported)


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

    def __init__(self, module: Module, kernel: Kernel, target: int, registers: int) -> None:
        self.kernel, self.target, self.machine_registers = kernel, target, registers
        self.emit = Emitter(module, kernel)
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
        steps, cases = [], []
        for block in self.blocks:
            step, case = self.warp_wide_step(block) if block.warp_wide else self.lane_step(block)
            steps.append(step)
            cases.append(case)
        return "\n".join([*self.tables(), *filter(None, steps), self.run(cases), self.registration()])

    def tables(self) -> Iterator[str]:
        k = self.kernel
        yield f"namespace kernel_{cpp_name(k.name)} {{"
        yield "struct Registers_ {"
        yield from (f"  alignas(64) {kind} {name}[lanes];" for name, kind in sorted(k.registers.items()))
        yield "};"
        shared = -(-self.emit.shared_bytes // 128) * 128
        yield f"constexpr u32 STATIC_SHARED = {shared}, LOCAL_BYTES = {-(-k.local_bytes // 16) * 16};"
        yield "const Site SITES[] = {"
        yield from (f'  {{"{quoted(text)}", "{quoted(place)}"}},' for text, place in self.emit.sites)
        yield '  {"", ""}};'

    def run(self, cases: list[str]) -> str:
        return "\n".join(
            [
                "Outcome run(Warp& w, int budget) {",
                "  Block& b = *w.block;",
                "  Registers_& R = *reinterpret_cast<Registers_*>(w.registers);",
                "  (void)b, (void)R;",
                "  Cursor at(w, budget);",
                "  while (at.ready()) {",
                "    const u32 M = at.mask;",
                "    const u32* const m = at.m;",
                "    (void)m, (void)M;",
                "    switch (at.pc) {",
                *cases,
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
            f"sizeof(Registers_), STATIC_SHARED, LOCAL_BYTES, {size}",
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

    def function(self, block: BasicBlock, body: list[str]) -> str:
        """A basic block is a function of its own: one for a whole kernel would take the compiler minutes."""
        head = f"[[gnu::noinline]] void step_{block.number}(Warp& w, Block& b, Registers_& R, const u32* m, u32 M, "
        head += "u32 T, u64 count) {\n  (void)w, (void)b, (void)R, (void)m, (void)M, (void)T, (void)count;\n"
        return head + "\n".join(body) + "\n}"

    def lane_step(self, block: BasicBlock) -> tuple[str, str]:
        """The function of a basic block, and its case with the jump at its end."""
        body, end = [], f"at.go({block.number + 1});"
        for i in block.instructions:
            body.append(f"  // {i.text.replace(chr(92), '')}")
            try:
                if jump := self.jump(i, block.number):
                    end = jump
                else:
                    body.append("  " + LANE_FAMILIES[i.name](self.emit, i))
            except UNKNOWN as reason:
                body.append(self.stop(i, reason))
        does = any(not line.startswith("  //") and line.strip() for line in body)
        call = f"step_{block.number}(w, b, R, m, M, M, at.done); " if does else ""
        case = f"      case {block.number}: {{ at.progress({len(block.instructions)}); {call}{end} break; }}"
        return self.function(block, body) if does else "", case

    def warp_wide_step(self, block: BasicBlock) -> tuple[str, str]:
        """As ``lane_step``, for an instruction that waits for all lanes it names."""
        i, number = block.instructions[0], block.number
        try:
            members, code = WARP_FAMILIES[i.name](self.emit, i)
        except UNKNOWN as reason:
            members, code = None, self.stop(i, reason)
        everyone = "full_warp" if members is None else self.emit.read(members, "u32")
        case = (
            f"      case {number}: {{ u32 T = {self.emit.mask(i)}; "
            f"if (!T) {{ at.progress(1); at.go({number + 1}); break; }} "
            f"{{ const int l = first_lane(T); (void)l; if (!at.together(T, {everyone}, {self.emit.site(i)})) break; }} "
            f"step_{number}(w, b, R, m, at.mask, T, at.done); at.go({number + 1}); break; }}"
        )
        return self.function(block, [f"  // {i.text}", "  " + code]), case

    def jump(self, i: Instruction, number: int) -> str:
        """The end of a basic block, or '' for an instruction that does not jump."""
        lanes, following = self.emit.mask(i), number + 1
        if i.name == "bra":
            assert isinstance(i.args[0], Label)
            return f"at.branch({lanes}, {self.numbers[i.args[0].name]}, {following});"
        if i.name == "brx":
            assert isinstance(i.args[1], Label)
            targets = ",".join(str(self.numbers[t]) for t in self.kernel.jump_tables[i.args[1].name])
            index = self.emit.read(i.args[0], "u32")
            return (
                f"static const int table[] = {{{targets}}}; set_pc(w, M, {following}); "
                f"{self.emit.each(i, f'w.pc[l] = table[{index}];')} at.chosen = false;"
            )
        if i.name in ("ret", "exit"):
            return f"at.exit({lanes}, {following});"
        if i.name == "nanosleep":
            return f"at.yield({following});"
        return self.barrier(i, following) if i.name in ("bar", "barrier") and not i.has("cluster") else ""

    def barrier(self, i: Instruction, following: int) -> str:
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
        return code + f"at.wait(T, {following}, {barrier}, {count}, {waits}, {self.emit.site(i)});"

    def stop(self, i: Instruction, reason: Exception) -> str:
        self.unsupported.append(f"{self.kernel.name}: {i.text} ({type(reason).__name__}: {reason})")
        return f"  unsupported(w, {self.emit.mask(i)}, {self.emit.site(i)});"


def quoted(text: str) -> str:
    """Fit for a C++ string literal."""
    return text.replace("\\", "\\\\").replace('"', '\\"')
