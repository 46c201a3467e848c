"""The C++ of operands: what reads and writes them for lane ``l``, and the table of instruction families.

Generated code uses these names: ``w`` the warp, ``b`` its block, ``M`` the mask of lanes that execute, ``m`` the same
as an array of all ones or zeros, ``T`` the lanes that a warp-wide instruction is for, ``l`` a lane; and ``R`` for
registers (arrays over lanes) and ``SITES``, in the place of which ``steps.py`` puts where they are.
"""

from __future__ import annotations

from collections.abc import Callable

from .parse import Module
from .syntax import (
    Bits,
    Instruction,
    Integer,
    Kernel,
    Local,
    Not,
    Operand,
    Register,
    Sink,
    Slot,
    Special,
    Symbol,
    Vector,
)
from .text import cpp_name
from .types import BYTES, CPP, SIGNED, UNSIGNED, Unsupported, is_integer

EACH_LANE = "for (int l = 0; l < lanes; ++l) if (m[l]) "
AXES = {"x": 0, "y": 1, "z": 2}
SPECIAL = {
    "laneid": ("static_cast<u32>(l)", "u32"),
    "warpid": ("w.id", "u32"),
    "nwarpid": ("static_cast<u32>(b.warps.size())", "u32"),
    "smid": ("(b.index % b.grid->sms)", "u32"),
    "nsmid": ("b.grid->sms", "u32"),
    "gridid": ("b.grid->id", "u64"),
    "clock": ("static_cast<u32>(executed + count)", "u32"),
    "clock_hi": ("static_cast<u32>((executed + count) >> 32)", "u32"),
    "clock64": ("(executed + count)", "u64"),
    "globaltimer": ("(executed + count)", "u64"),
    "lanemask_eq": ("(1u << l)", "u32"),
    "lanemask_lt": ("((1u << l) - 1)", "u32"),
    "lanemask_le": ("((2u << l) - 1)", "u32"),
    "lanemask_gt": ("~((2u << l) - 1)", "u32"),
    "lanemask_ge": ("~((1u << l) - 1)", "u32"),
    "envreg1": ("static_cast<u32>(b.grid->workspace >> 32)", "u32"),
    "envreg2": ("static_cast<u32>(b.grid->workspace)", "u32"),
    "dynamic_smem_size": ("(b.shared_bytes - b.grid->kernel->shared_bytes)", "u32"),
    "total_smem_size": ("b.shared_bytes", "u32"),
    "is_explicit_cluster": ("b.grid->explicit_cluster", "u32"),
    "cluster_ctarank": ("b.rank", "u32"),
    "cluster_nctarank": ("static_cast<u32>(b.cluster->blocks.size())", "u32"),
}
SPECIAL_VECTORS = {
    "tid": "w.tid[{}][l]",
    "ntid": "b.grid->ntid[{}]",
    "ctaid": "b.ctaid[{}]",
    "nctaid": "b.grid->nctaid[{}]",
    "cluster_ctaid": "(b.ctaid[{0}] % b.grid->cluster[{0}])",
    "cluster_nctaid": "b.grid->cluster[{}]",
    "clusterid": "(b.ctaid[{0}] / b.grid->cluster[{0}])",
    "nclusterid": "(b.grid->nctaid[{0}] / b.grid->cluster[{0}])",
}


def converted(expression: str, source: str, target: str) -> str:
    """Bits of one C++ type read as another: the low ones if it is narrower, zeros added if it is wider."""
    if source == target:
        return expression
    if not is_integer(source):
        expression, source = f"bit_cast<{UNSIGNED[BYTES[source]]}>({expression})", UNSIGNED[BYTES[source]]
    if is_integer(target):
        return f"({target}){expression}"
    return f"bit_cast<{target}>(({UNSIGNED[BYTES[target]]}){expression})"


class Emitter:
    """The C++ of one kernel's operands and lane loops."""

    def __init__(self, module: Module, kernel: Kernel) -> None:
        self.module, self.kernel = module, kernel
        self.parameters = {p.name: p for p in kernel.parameters}
        self.shared_offsets: dict[str, int] = {}
        self.shared_bytes = 0
        self.sites: list[tuple[str, str]] = []

    def site(self, instruction: Instruction) -> str:
        """The entry of the kernel's table that names this instruction in reports."""
        entry = (instruction.text, instruction.place)
        if entry not in self.sites[-4:]:
            self.sites.append(entry)
        return f"SITES[{len(self.sites) - 1 - self.sites[::-1].index(entry)}]"

    def slot(self, slot: Slot, offset: int) -> str:
        """The register that holds the part of a parameter variable at ``offset``."""
        name = f"{slot.name}_{offset}"
        self.kernel.registers.setdefault(name, "u64")
        return name

    def read(self, operand: Operand, ptx_type: str) -> str:
        """An expression for the operand's value as this type."""
        target = CPP.get(ptx_type, ptx_type)
        match operand:
            case Register(name):
                return converted(f"R.{name}[l]", self.kernel.registers[name], target)
            case Slot():
                return converted(f"R.{self.slot(operand, 0)}[l]", "u64", target)
            case Not(of):
                return f"(!{self.read(of, ptx_type)})"
            case Integer(value):
                return self._integer(value, target)
            case Bits(width, value):
                stored = "f32" if width == 32 else "f64"
                literal = f"bit_cast<{stored}>({hex(value)}{'u' if width == 32 else 'ull'})"
                if target in ("f32", "f64"):
                    return literal if stored == target else f"static_cast<{target}>({literal})"
                return f"({target}){hex(value)}{'u' if width == 32 else 'ull'}"
            case Special(name):
                return converted(*self._special(name), target)
            case Local(offset):
                return f"({target}){offset}u"
            case Symbol(name):
                return f"({target}){self.symbol(name)}"
        raise Unsupported(f"operand {operand} as {ptx_type}")

    def _integer(self, value: int, target: str) -> str:
        if target in ("f32", "f64"):
            return f"static_cast<{target}>({value})"
        if target in ("f16", "bf16"):
            return f"bit_cast<{target}>((u16){value & 0xFFFF})"
        bits = 8 * BYTES[target]
        return f"({target}){hex(value & ((1 << bits) - 1))}{'ull' if bits >= 64 else 'u'}"

    def _special(self, name: str) -> tuple[str, str]:
        if name in SPECIAL:
            return SPECIAL[name]
        vector, _, axis = name.partition(".")
        if vector in SPECIAL_VECTORS and axis in AXES:
            return SPECIAL_VECTORS[vector].format(AXES[axis]), "u32"
        raise Unsupported(f"special register %{name}")

    def symbol(self, name: str) -> str:
        """The address of a parameter or variable: an offset in shared space, a host address otherwise."""
        if name in self.parameters:
            return f"reinterpret_cast<u64>(b.grid->parameters + {self.parameters[name].offset})"
        variable = self.module.variables.get(name)
        if variable is None:
            raise Unsupported(f"symbol {name}")
        if variable.space != "shared":
            return f"reinterpret_cast<u64>(V_{cpp_name(name)})"
        if variable.dynamic:
            return "(u64)b.grid->kernel->shared_bytes"
        if name not in self.shared_offsets:
            self.shared_bytes = -(-self.shared_bytes // variable.align) * variable.align
            self.shared_offsets[name] = self.shared_bytes
            self.shared_bytes += variable.size
        return f"(u64){self.shared_offsets[name]}u"

    def write(self, operand: Operand, ptx_type: str, value: str) -> str:
        """A statement that sets the operand to a value of this type. Signed values are extended to wider registers."""
        source = CPP.get(ptx_type, ptx_type)
        if isinstance(operand, Sink):
            return f"(void)({value});"
        if isinstance(operand, Slot):
            operand = Register(self.slot(operand, 0))
        if not isinstance(operand, Register):
            raise Unsupported(f"write to {operand}")
        target = self.kernel.registers[operand.name]
        value = f"({source})({value})"
        if BYTES[target] > BYTES[source]:
            if source[0] == "s":
                value = f"({SIGNED[BYTES[target]]}){value}"
            elif not is_integer(source):
                value = f"bit_cast<{UNSIGNED[BYTES[source]]}>({value})"
            value = f"({target}){value}"
        elif target != source:
            value = (
                f"({target}){value}" if is_integer(source) and is_integer(target) else f"bit_cast<{target}>({value})"
            )
        return f"R.{operand.name}[l] = {value};"

    def mask(self, instruction: Instruction) -> str:
        """The lanes whose guard lets them execute, as a mask."""
        if instruction.guard is None:
            return "M"
        mask = f"mask_of(R.{instruction.guard.name}, M)"
        return f"(M & ~{mask})" if instruction.negated else mask

    def each(self, instruction: Instruction, code: str) -> str:
        """``code`` for every lane that executes the instruction."""
        guard = ""
        if instruction.guard:
            guard = f"if ({'!' if instruction.negated else ''}R.{instruction.guard.name}[l]) "
        return f"{EACH_LANE}{guard}{{ {code} }}"

    def assign(self, instruction: Instruction, ptx_type: str, value: str) -> str:
        """The first operand becomes ``value`` in every lane that executes."""
        return self.each(instruction, self.write(instruction.args[0], ptx_type, value))


def items(operand: Operand) -> tuple[Operand, ...]:
    """The elements of a vector operand; a scalar is a vector of one."""
    return operand.items if isinstance(operand, Vector) else (operand,)


# By the opcode's first part: lane instructions return the code of a whole lane loop; warp-wide ones return the operand
# that names their members (None: the whole warp), and code that is executed once for the lanes T.
LaneFamily = Callable[[Emitter, Instruction], str]
WarpFamily = Callable[[Emitter, Instruction], tuple["Operand | None", str]]
LANE_FAMILIES: dict[str, LaneFamily] = {}
ORDERED: set[str] = set()  # lane instructions of which other lanes, or reports, may see what the next one does
WARP_FAMILIES: dict[str, WarpFamily] = {}


def lane(*names: str, ordered: bool = False) -> Callable[[LaneFamily], LaneFamily]:
    """Registers the translator of these opcodes. ``ordered``: all lanes execute one before any executes the next."""

    def register(family: LaneFamily) -> LaneFamily:
        if ordered:
            ORDERED.update(names)
        LANE_FAMILIES.update(dict.fromkeys(names, family))
        return family

    return register


def warp_wide(*names: str) -> Callable[[WarpFamily], WarpFamily]:
    """Registers the translator of these warp-wide opcodes."""

    def register(family: WarpFamily) -> WarpFamily:
        WARP_FAMILIES.update(dict.fromkeys(names, family))
        return family

    return register
