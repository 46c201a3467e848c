"""cvt, comparisons and selection."""

from __future__ import annotations

from .emit import Emitter, lane
from .floats import HALF, ROUNDING
from .integers import LOGIC, PACKED
from .syntax import Instruction, Pair
from .types import CPP, FLOATS, Unsupported, size

TO_INTEGRAL = {"rni": "std::nearbyint", "rzi": "std::trunc", "rmi": "std::floor", "rpi": "std::ceil"}
ORDERED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
ORDERED |= {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}  # of unsigned integers


@lane("cvt")
def convert(e: Emitter, i: Instruction) -> str:
    to, of = i.op[-2:]
    if to in PACKED and of == "f32":
        return pack_halves(e, i, HALF[to])
    if to == "tf32":
        return e.assign(i, "u32", f"bit_cast<u32>(to_tf32({e.read(i.args[1], 'f32')}))")
    if to not in CPP or of not in CPP or to in PACKED or of in PACKED:
        raise Unsupported(i.text)
    x = e.read(i.args[1], of)
    if of in HALF:
        x = f"to_f32({x})"
    if i.has("ftz") and of == "f32":
        x = f"flush({x})"
    if of in FLOATS and to in FLOATS:
        return float_to_float(e, i, x)
    if of in FLOATS:
        return e.assign(i, to, f"to_integer<{CPP[to]}>({TO_INTEGRAL[i.pick(*TO_INTEGRAL) or 'rzi']}({x}))")
    if to in FLOATS:
        return integer_to_float(e, i, x)
    if i.has("sat"):
        bits = 8 * size(to)
        low, high = (0, (1 << bits) - 1) if to[0] == "u" else (-(1 << bits - 1) + 1, (1 << bits - 1) - 1)
        x = f"least<s128>(most<s128>((s128){x}, (s128){low}ll{' - 1' if low else ''}), (s128){high}ull)"
    return e.assign(i, to, x)


def pack_halves(e: Emitter, i: Instruction, half: str) -> str:
    high, low = (e.read(a, "f32") for a in i.args[1:3])  # PTX names the upper half first
    if i.has("relu"):
        high, low = f"most({high}, 0.f)", f"most({low}, 0.f)"
    if half == "bf16" and i.has("rz"):
        return e.assign(i, "u32", f"pack(to_bf16_towards_zero({low}), to_bf16_towards_zero({high}))")
    if i.has("rz"):
        raise Unsupported(i.text)
    return e.assign(i, "u32", f"pack(narrow<{half}>({low}), narrow<{half}>({high}))")


def float_to_float(e: Emitter, i: Instruction, x: str) -> str:
    to, of = i.op[-2:]
    if integral := i.pick(*TO_INTEGRAL):
        x = f"{TO_INTEGRAL[integral]}({x})"
    if i.has("relu"):
        x = f"most<f32>({x}, 0)"
    if i.has("sat"):
        x = f"saturate({x})"
    mode = i.pick(*ROUNDING)
    if to == "bf16" and mode == "rz":
        return e.assign(i, to, f"to_bf16_towards_zero({x})")
    if to in HALF:
        if mode:
            raise Unsupported(i.text)
        return e.assign(i, to, f"narrow<{to}>({x})")
    if mode and (of, to) == ("f64", "f32"):
        return directed(e, i, x)
    value = f"static_cast<{to}>({x})"
    return e.assign(i, to, f"flush({value})" if i.has("ftz") and to == "f32" else value)


def integer_to_float(e: Emitter, i: Instruction, x: str) -> str:
    to = i.op[-2]
    if to in HALF:
        return e.assign(i, to, f"narrow<{to}>(static_cast<f64>({x}))")
    return directed(e, i, x) if i.pick(*ROUNDING) else e.assign(i, to, f"static_cast<{to}>({x})")


def directed(e: Emitter, i: Instruction, x: str) -> str:
    """A conversion that rounds in a direction."""
    to, of = i.op[-2:]
    value = f"rounded({ROUNDING[i.pick(*ROUNDING)]}, [&] {{ return static_cast<{to}>(y); }})"
    return e.each(i, f"const volatile {CPP[of]} y = {x}; {e.write(i.args[0], to, value)}")


def comparison(relation: str, a: str, b: str, floats: bool) -> str:
    """A comparison; ``equ`` and its like hold also where an operand is NaN."""
    if relation in ("num", "nan"):
        numbers = f"({a} == {a} && {b} == {b})"
        return numbers if relation == "num" else f"!{numbers}"
    if relation in ORDERED:
        if floats and relation == "ne":
            return f"({a} < {b} || {a} > {b})"
        return f"({a} {ORDERED[relation]} {b})"
    return f"({a} != {a} || {b} != {b} || {a} {ORDERED[relation[:-1]]} {b})"


@lane("setp", "set")
def compare(e: Emitter, i: Instruction) -> str:
    relation, combine = i.op[1], i.pick(*LOGIC)
    if i.type in PACKED:
        return compare_halves(e, i, relation)
    a, b = e.read(i.args[1], i.type), e.read(i.args[2], i.type)
    if i.type in HALF:
        a, b = f"to_f32({a})", f"to_f32({b})"
    code = f"const u32 yes = {comparison(relation, a, b, i.type in FLOATS)};"
    other = ""
    if combine:
        code += f" const u32 third = {e.read(i.args[3], 'pred')};"
        other = f" {LOGIC[combine]} third"
    if i.name == "set":
        to = i.op[-2]
        true = "narrow<f16>(1)" if to == "f16" else "1.f" if to == "f32" else "~0u"
        return e.each(i, code + e.write(i.args[0], to, f"(yes{other}) ? {true} : {true} - {true}"))
    target = i.args[0]
    if isinstance(target, Pair):
        code += e.write(target.first, "pred", f"yes{other}") + e.write(target.second, "pred", f"(!yes){other}")
    else:
        code += e.write(target, "pred", f"yes{other}")
    return e.each(i, code)


def compare_halves(e: Emitter, i: Instruction, relation: str) -> str:
    if i.pick(*LOGIC):
        raise Unsupported(i.text)
    code = ""
    for k in (0, 1):
        a, b = (f"to_f32(half_of<{HALF[i.type]}>({e.read(s, 'u32')}, {k}))" for s in i.args[1:3])
        code += f"const u32 yes{k} = {comparison(relation, a, b, True)};"
    target = i.args[0]
    if isinstance(target, Pair):
        return e.each(i, code + e.write(target.first, "pred", "yes0") + e.write(target.second, "pred", "yes1"))
    to = i.op[-2]
    one = {"f16x2": "0x3c00u", "bf16x2": "0x3f80u"}.get(to, "0xffffu")
    return e.each(i, code + e.write(i.args[0], "u32", f"(yes0 ? {one} : 0u) | (yes1 ? {one} : 0u) << 16"))


@lane("selp")
def select(e: Emitter, i: Instruction) -> str:
    a, b = e.read(i.args[1], i.type), e.read(i.args[2], i.type)
    return e.assign(i, i.type, f"{e.read(i.args[3], 'pred')} ? {a} : {b}")


@lane("slct")
def select_by_sign(e: Emitter, i: Instruction) -> str:
    kind = i.op[-2]
    return e.assign(
        i, kind, f"{e.read(i.args[3], i.type)} >= 0 ? {e.read(i.args[1], kind)} : {e.read(i.args[2], kind)}"
    )
