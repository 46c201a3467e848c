"""Warp-wide instructions: shuffles, votes and matrices; and what only the host can do for a lane."""

from __future__ import annotations

import re

from .emit import Emitter, items, lane, warp_wide
from .memory import address, space
from .syntax import Instruction, Operand, Pair, Sink, Slot
from .types import CPP, Unsupported

ELEMENTS = {"f16": "f16", "bf16": "bf16", "tf32": "tf32", "f32": "f32"}


def gather(e: Emitter, operand: Operand, ptx_type: str, name: str) -> str:
    """Declares an array over lanes with the operand's values."""
    return f"{CPP[ptx_type]} {name}[lanes]; for (int l = 0; l < lanes; ++l) {name}[l] = {e.read(operand, ptx_type)}; "


def scatter(e: Emitter, operand: Operand, ptx_type: str, value: str) -> str:
    """Sets the operand in the lanes that take part."""
    if isinstance(operand, Sink):
        return ""
    return f"for (int l = 0; l < lanes; ++l) if (holds(T, l)) {{ {e.write(operand, ptx_type, value)} }} "


def gather_registers(e: Emitter, operand: Operand, name: str) -> str:
    """Declares ``name[register][lane]``."""
    registers = items(operand)
    code = f"u32 {name}[{len(registers)}][lanes]; "
    for k, r in enumerate(registers):
        code += f"for (int l = 0; l < lanes; ++l) {name}[{k}][l] = {e.read(r, 'b32')}; "
    return code


def scatter_registers(e: Emitter, operand: Operand, name: str) -> str:
    return "".join(scatter(e, r, "b32", f"{name}[{k}][l]") for k, r in enumerate(items(operand)))


def gather_factors(e: Emitter, i: Instruction) -> str:
    """Declares ``in_a``, ``in_b`` and ``in_c`` of d = a b + c."""
    names = ("in_a", "in_b", "in_c")
    return "".join(gather_registers(e, operand, name) for name, operand in zip(names, i.args[1:], strict=True))


def result_and_flag(operand: Operand) -> tuple[Operand, Operand]:
    """``d|p`` or ``d`` alone."""
    return (operand.first, operand.second) if isinstance(operand, Pair) else (operand, Sink())


@warp_wide("shfl")
def shuffle(e: Emitter, i: Instruction) -> tuple[Operand, str]:
    target, valid = result_and_flag(i.args[0])
    mode = i.pick("up", "down", "bfly", "idx")
    code = (
        gather(e, i.args[1], "b32", "value") + gather(e, i.args[2], "b32", "by") + gather(e, i.args[3], "b32", "clamp")
    )
    code += f"u32 result[lanes], valid[lanes]; shuffle(Shuffle::{mode}, T, value, by, clamp, result, valid); "
    return i.args[4], code + scatter(e, target, "b32", "result[l]") + scatter(e, valid, "pred", "valid[l]")


@warp_wide("vote")
def vote(e: Emitter, i: Instruction) -> tuple[Operand, str]:
    kind = i.pick("all", "any", "uni", "ballot")
    value = {"all": "yes == T", "any": "yes != 0", "uni": "yes == 0 || yes == T", "ballot": "yes"}[kind]
    code = gather(e, i.args[1], "pred", "vote") + "const u32 yes = mask_of(vote, T); "
    return i.args[2], code + scatter(e, i.args[0], "b32" if kind == "ballot" else "pred", value)


@warp_wide("match")
def match(e: Emitter, i: Instruction) -> tuple[Operand, str]:
    target, flag = result_and_flag(i.args[0])
    code = gather(e, i.args[1], i.type, "value")
    if i.has("any"):
        code += "u32 same[lanes]; match_any(T, value, same); " + scatter(e, target, "b32", "same[l]")
    else:
        code += "const u32 same = match_all(T, value); "
        code += scatter(e, target, "b32", "same") + scatter(e, flag, "pred", "same != 0")
    return i.args[2], code


@warp_wide("redux")
def reduce(e: Emitter, i: Instruction) -> tuple[Operand, str]:
    kind, name = CPP[i.type], i.pick("add", "min", "max", "and", "or", "xor")
    combined = {
        "add": "x + y",
        "and": "x & y",
        "or": "x | y",
        "xor": "x ^ y",
        "min": "least(x, y)",
        "max": "most(x, y)",
    }
    code = gather(e, i.args[1], i.type, "value")
    code += f"const {kind} result = reduce(T, value, [](auto x, auto y) -> {kind} {{ return {combined[name]}; }}); "
    return i.args[2], code + scatter(e, i.args[0], i.type, "result")


@warp_wide("elect")
def elect(e: Emitter, i: Instruction) -> tuple[Operand, str]:
    target, flag = result_and_flag(i.args[0])
    code = "const int elected = first_lane(T); " + scatter(e, target, "b32", "(u32)elected")
    return i.args[1], code + scatter(e, flag, "pred", "l == elected")


@warp_wide("bar")
def warp_barrier(_e: Emitter, i: Instruction) -> tuple[Operand, str]:
    return i.args[0], "sync_warp(w, T);"


@warp_wide("ldmatrix", "stmatrix")
def matrix_rows(e: Emitter, i: Instruction) -> tuple[None, str]:
    if not i.has("m8n8") or i.type != "b16":
        raise Unsupported(i.text)
    tiles, transposed = i.pick("x1", "x2", "x4")[1], "true" if i.has("trans") else "false"
    loads = i.name == "ldmatrix"
    registers, memory = i.args if loads else i.args[::-1]
    code = f"u64 at[lanes]; for (int l = 0; l < lanes; ++l) at[l] = {address(e, memory)}; "
    function = f"{'load' if loads else 'store'}_matrix<{tiles}, {transposed}>(w, {e.site(i)}, at, rows); "
    if loads:
        return None, code + f"u32 rows[{tiles}][lanes]; {function}" + scatter_registers(e, registers, "rows")
    return None, code + gather_registers(e, registers, "rows") + function


@warp_wide("mma")
def multiply_fragments(e: Emitter, i: Instruction) -> tuple[None, str]:
    shape = re.fullmatch(r"m16n8k(\d+)", next(p for p in i.op if re.fullmatch(r"m\d+n\d+k\d+", p)))
    sums, a, b, given = i.op[-4:]
    if not shape or a != b or a not in ("f16", "bf16", "tf32") or sums != given or i.has("sp") or "row" not in i.op:
        raise Unsupported(i.text)
    code = gather_factors(e, i)
    code += f"u32 out[4][lanes]; multiply_fragments<{a}, {sums}, {shape[1]}>(in_a, in_b, in_c, out); "
    return None, code + scatter_registers(e, i.args[0], "out")


@warp_wide("wmma")
def tiles(e: Emitter, i: Instruction) -> tuple[None, str]:
    m, n, k = map(int, re.findall(r"\d+", next(p for p in i.op if re.fullmatch(r"m\d+n\d+k\d+", p))))
    if i.op[1] == "mma":
        return None, multiply_tiles(e, i, (m, n, k))
    rows, columns = {"a": (m, k), "b": (k, n), "c": (m, n), "d": (m, n)}[i.op[2]]
    element = ELEMENTS[i.type]
    by_column = i.has("col")
    loads = i.op[1] == "load"
    registers, memory = i.args[:2] if loads else (i.args[1], i.args[0])
    stride = e.read(i.args[2], "u32") if len(i.args) > 2 else f"{rows if by_column else columns}u"
    code = f"u64 at[lanes]; u32 stride[lanes]; for (int l = 0; l < lanes; ++l) {{ at[l] = {address(e, memory)}; "
    code += f"stride[l] = {stride}; }} "
    kind = f"<{element}, {rows}, {columns}, {'true' if by_column else 'false'}>"
    arguments = f"w, {e.site(i)}, Space::{space(i)}, at, stride, tile"
    if loads:
        number = len(items(registers))
        code += f"u32 tile[{number}][lanes]; load_tile{kind}({arguments}, {number}); "
        return None, code + scatter_registers(e, registers, "tile")
    return None, code + gather_registers(e, registers, "tile") + f"store_tile{kind}({arguments});"


def multiply_tiles(e: Emitter, i: Instruction, shape: tuple[int, int, int]) -> str:
    kinds = [part for part in i.op if part in ELEMENTS]
    if len(kinds) == 2:  # of halves only the sums' types are named
        sums, given, element = kinds[0], kinds[1], "f16"
    elif len(kinds) == 4:
        sums, element, _, given = kinds
    else:
        raise Unsupported(i.text)
    code = gather_factors(e, i)
    dims = ", ".join(map(str, shape))
    code += f"u32 out[{len(items(i.args[0]))}][lanes]; "
    code += f"multiply_tiles<{element}, {given}, {sums}, {dims}>(in_a, in_b, in_c, out); "
    return code + scatter_registers(e, i.args[0], "out")


@lane("activemask")
def active_mask(e: Emitter, i: Instruction) -> str:
    return e.assign(i, "u32", "M")


@lane("barrier_result")
def barrier_result(e: Emitter, i: Instruction) -> str:
    barrier = f"b.barriers[{e.read(i.args[1], 'u32')}]"
    value = {"popc": "{0}.result", "or": "{0}.result != 0", "and": "{0}.result == {0}.members"}[i.op[1]]
    return e.assign(i, "u32" if i.op[1] == "popc" else "pred", value.format(barrier))


@lane("trap", "brkpt", ordered=True)
def trap(e: Emitter, i: Instruction) -> str:
    return e.each(i, f"trap(w, l, {e.site(i)});")


@lane("host_call", ordered=True)
def host_call(e: Emitter, i: Instruction) -> str:
    a = [f"R.{e.slot(s, 0)}[l]" for s in i.args if isinstance(s, Slot)]
    calls = {
        "vprintf": lambda: f"{a[0]} = device_printf({a[1]}, {a[2]});",
        "__assertfail": lambda: f"device_assert(w, l, {e.site(i)}, {a[0]});",
        "malloc": lambda: f"{a[0]} = device_malloc({a[1]});",
        "free": lambda: f"device_free({a[0]});",
    }
    if i.op[1] not in calls:
        raise Unsupported(f"call to {i.op[1]}")
    return e.each(i, calls[i.op[1]]())
