"""Moves, addresses, loads, stores, atomics, fences and asynchronous copies."""

from __future__ import annotations

import re

from .emit import Emitter, items, lane
from .floats import HALF
from .integers import constant
from .syntax import Instruction, Local, Memory, Operand, Register, Slot, Symbol, Vector
from .types import BYTES, CPP, UNSIGNED, Unsupported, size, storage

SPACES = {"global": "global", "const": "global", "shared": "shared", "local": "local", "param": "parameter"}
BITWISE = {"and": "&", "or": "|", "xor": "^"}


def space(i: Instruction) -> str:
    """The state space an opcode names, as the runtime's ``Space``."""
    for part in i.op[1:]:
        if part == "shared::cluster":
            return "cluster"
        if part.startswith("shared"):
            return "shared"
        if part in SPACES:
            return SPACES[part]
    return "generic"


def order(i: Instruction) -> str:
    """The memory order an opcode asks for; within the block all orders are alike, as warps run one at a time."""
    strongest = i.pick("acq_rel", "acquire", "release")
    if strongest or i.name in ("atom", "red") or i.has("volatile", "relaxed"):
        return "Order::block" if i.has("cta") else f"Order::{strongest or 'relaxed'}"
    return "Order::constant" if i.has("nc") else "Order::weak"


def count(i: Instruction) -> int:
    """How many elements a ``.v2`` access has."""
    return next((int(part[1]) for part in i.op if re.fullmatch(r"v[248]", part)), 1)


def address(e: Emitter, memory: Operand) -> str:
    """The address of ``[base + offset]`` as a u64."""
    if not isinstance(memory, Memory):
        raise Unsupported(f"address {memory}")
    match memory.base:
        case Register() | Local():
            base = e.read(memory.base, "u64")
        case Symbol(name):
            base = e.symbol(name)
        case _:
            base = e.read(memory.base, "u64")
    return f"{base} + (s64){memory.offset}" if memory.offset else base


def located(e: Emitter, i: Instruction, memory: Operand, where: str, bytes_: int) -> str:
    """Declares ``spot``: where an access of a lane goes, checked."""
    if isinstance(memory, Memory) and isinstance(memory.base, Symbol) and memory.base.name in e.parameters:
        where = "parameter"
    if where == "cluster":
        return f"const Spot spot = locate_in_cluster(w, l, {e.site(i)}, {address(e, memory)}, {bytes_}); "
    return f"const Spot spot = locate(w, l, {e.site(i)}, Space::{where}, {address(e, memory)}, {bytes_}); "


@lane("mov")
def move(e: Emitter, i: Instruction) -> str:
    target, source = i.args
    if i.type == "pred":
        return e.assign(i, "pred", e.read(source, "pred"))
    bits = "b" + re.sub(r"\D", "", i.type)
    if isinstance(target, Vector):
        part = 8 * size(i.type) // len(target.items)
        writes = [
            e.write(t, f"u{part}", f"(u{part})(v >> {k * part})") for k, t in enumerate(target.items)
        ]  # the first is the lowest
        return e.each(i, f"const {storage(bits)} v = {e.read(source, bits)}; " + " ".join(writes))
    if isinstance(source, Vector):
        part = 8 * size(i.type) // len(source.items)
        parts = [f"({storage(bits)}){e.read(s, f'u{part}')} << {k * part}" for k, s in enumerate(source.items)]
        return e.assign(i, bits, " | ".join(parts))
    return e.assign(i, i.type, e.read(source, i.type))


@lane("cvta")
def convert_address(e: Emitter, i: Instruction) -> str:
    windows = {
        "shared": "reinterpret_cast<u64>(b.shared)",
        "local": "(reinterpret_cast<u64>(w.local) + (u64)l * b.grid->kernel->local_bytes)",
    }
    value, where = e.read(i.args[1], i.type), space(i)
    if where == "cluster":
        return e.assign(i, i.type, f"{'generic_to_cluster' if i.has('to') else 'cluster_to_generic'}(w, {value})")
    if where in windows:
        value = f"{value} {'-' if i.has('to') else '+'} {windows[where]}"
    return e.assign(i, i.type, value)


@lane("isspacep")
def is_in_space(e: Emitter, i: Instruction) -> str:
    if space(i) == "cluster":
        return e.assign(i, "pred", f"is_in_cluster(w, {e.read(i.args[1], 'u64')})")
    return e.assign(i, "pred", f"space_of(w, {e.read(i.args[1], 'u64')}) == Space::{space(i)}")


@lane("ld", "ldu", ordered=True)
def load(e: Emitter, i: Instruction) -> str:
    target, memory = i.args[:2]
    kind = CPP[i.type]
    if isinstance(memory, Memory) and isinstance(memory.base, Slot):
        return load_slot(e, i, memory.base, memory.offset)
    code = located(e, i, memory, space(i), BYTES[kind] * count(i))
    targets = items(target)
    for k in range(len(targets)):
        code += f"const {kind} v{k} = load<{kind}>(w, l, {e.site(i)}, spot, {k * BYTES[kind]}, {order(i)}); "
    return e.each(i, code + " ".join(e.write(t, i.type, f"v{k}") for k, t in enumerate(targets)))


@lane("st", ordered=True)
def store(e: Emitter, i: Instruction) -> str:
    memory, source = i.args[:2]
    kind = CPP[i.type]
    if isinstance(memory, Memory) and isinstance(memory.base, Slot):
        return store_slot(e, i, memory.base, memory.offset)
    code = located(e, i, memory, space(i), BYTES[kind] * count(i))
    for k, s in enumerate(items(source)):
        code += f"store<{kind}>(w, l, {e.site(i)}, spot, {k * BYTES[kind]}, {e.read(s, i.type)}, {order(i)}); "
    return e.each(i, code)


# The parameters of inlined calls. A part must be read as it was written: at the same offset, not wider.
def load_slot(e: Emitter, i: Instruction, slot: Slot, offset: int) -> str:
    step, unsigned = size(i.type), UNSIGNED[size(i.type)]
    code = ""
    for k, target in enumerate(items(i.args[0])):
        part = Register(e.slot(slot, offset + k * step))
        code += f"const u64 v{k} = {e.read(part, 'u64')}; "
        code += e.write(target, i.type, f"bit_cast<{CPP[i.type]}>(({unsigned})v{k})")
    return e.each(i, code)


def store_slot(e: Emitter, i: Instruction, slot: Slot, offset: int) -> str:
    step, unsigned = size(i.type), UNSIGNED[size(i.type)]
    code = ""
    for k, source in enumerate(items(i.args[1])):
        part = Register(e.slot(slot, offset + k * step))
        code += e.write(part, unsigned, e.read(source, unsigned))
    return e.each(i, code)


def updated(e: Emitter, i: Instruction, name: str, given: str) -> str:
    """The value that an atomic operation leaves where ``old`` was."""
    kind = CPP[i.type]
    if i.type in HALF:
        half, wide = HALF[i.type], {"add": "x + y", "min": "least<f64>(x, y)", "max": "most<f64>(x, y)"}[name]
        if i.type.endswith("x2"):
            return f"map_halves<{half}>(old, {given}, 0u, [](f64 x, f64 y, f64) -> f64 {{ return {wide}; }})"
        exact = {"add": "{} + {}", "min": "least<f64>({}, {})", "max": "most<f64>({}, {})"}[name]
        return f"narrow<{half}>({exact.format('(f64)to_f32(old)', f'(f64)to_f32({given})')})"
    forms = {
        "add": f"old + {given}",
        "min": f"least<{kind}>(old, {given})",
        "max": f"most<{kind}>(old, {given})",
        "inc": f"old >= {given} ? 0 : old + 1",
        "dec": f"old == 0 || old > {given} ? {given} : old - 1",
        "exch": given,
        "cas": f"old == {given} ? replacement : old",
    }
    return forms.get(name) or f"old {BITWISE[name]} {given}"


@lane("atom", "red", ordered=True)
def atomic(e: Emitter, i: Instruction) -> str:
    name = i.pick("add", "min", "max", "inc", "dec", "and", "or", "xor", "exch", "cas")
    results = i.args[:1] if i.name == "atom" else ()
    memory, given, *more = i.args[len(results) :]
    kind, reads = CPP[i.type], "false" if name == "exch" else "true"
    code = located(e, i, memory, space(i), BYTES[kind] * count(i))
    if name == "cas":
        code += f"const {kind} replacement = {e.read(more[0], i.type)}; "
    for k, source in enumerate(items(given)):
        code += (
            f"const {kind} x{k} = {e.read(source, i.type)}; "
            f"const {kind} was{k} = atomic<{kind}>(w, l, {e.site(i)}, spot, {k * BYTES[kind]}, {order(i)}, {reads}, "
            f"[&]({kind} old) {{ return ({kind})({updated(e, i, name, f'x{k}')}); }}); "
        )
    for result in results:
        code += " ".join(e.write(r, kind, f"was{k}") for k, r in enumerate(items(result)))
    return e.each(i, code)


@lane("membar", "fence", ordered=True)
def memory_fence(e: Emitter, i: Instruction) -> str:
    if i.has("proxy"):
        return ""
    scope = "device" if i.has("gl", "sys", "gpu", "cluster") else "block"
    return e.each(i, f"fence(w, l, Scope::{scope});")


@lane("prefetch", ordered=True)
def prefetch(e: Emitter, i: Instruction) -> str:
    """Nothing, but of an address that is one."""
    return e.each(i, located(e, i, i.args[0], space(i), 1) + "(void)spot;")


@lane("prefetchu", "discard", "applypriority", "createpolicy", "griddepcontrol", "pmevent", "setmaxnreg")
def hint(_e: Emitter, _i: Instruction) -> str:
    return ""


@lane("cp", ordered=True)
def asynchronous_copy(e: Emitter, i: Instruction) -> str:
    if i.op[1] != "async" or i.has("mbarrier"):
        raise Unsupported(i.text)
    if i.has("bulk"):
        return bulk_copy(e, i)
    if i.has("commit_group"):
        return e.each(i, "commit_copies(w, l);")
    if i.has("wait_group"):
        return e.each(i, f"wait_for_copies(w, l, {constant(i.args[0])});")
    if i.has("wait_all"):
        return e.each(i, "wait_for_all_copies(w, l);")
    to, source, bytes_ = i.args[:3]
    filled = e.read(i.args[3], "u32") if len(i.args) > 3 else f"{constant(bytes_)}u"
    arguments = f"{address(e, to)}, {address(e, source)}, {constant(bytes_)}, {filled}"
    return e.each(i, f"issue_copy(w, l, {e.site(i)}, {arguments});")


BULK_SPACES = {"shared::cluster": "cluster", "shared::cta": "shared", "global": "global"}


def bulk_copy(e: Emitter, i: Instruction) -> str:
    if i.has("commit_group"):
        return e.each(i, "commit_bulk_copies(w, l);")
    if i.has("wait_group"):  # with .read too all is done: what the source held is written
        return e.each(i, f"wait_for_bulk_copies(w, l, {constant(i.args[0])});")
    if i.has("tensor", "prefetch") or any(part.startswith("multicast") for part in i.op):
        raise Unsupported(i.text)
    to, source = (f"Space::{BULK_SPACES[part]}" for part in i.op[3:5])
    copied = f"{to}, {address(e, i.args[0])}, {source}, {address(e, i.args[1])}, {e.read(i.args[2], 'u32')}"
    if i.has("bulk_group"):
        return e.each(i, f"issue_bulk_copy(w, l, {e.site(i)}, {copied}, nullptr);")
    if not i.has("mbarrier::complete_tx::bytes"):
        raise Unsupported(i.text)
    spot = located(e, i, i.args[3], BULK_SPACES[i.op[3]], 8)
    return e.each(i, f"{spot}issue_bulk_copy(w, l, {e.site(i)}, {copied}, &spot);")
