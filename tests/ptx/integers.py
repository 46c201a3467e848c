"""Integer arithmetic, logic and bits."""

from __future__ import annotations

from .emit import Emitter, lane
from .syntax import Instruction, Integer, Operand
from .types import CPP, UNSIGNED, Unsupported, size

LOGIC = {"and": "&", "or": "|", "xor": "^"}
PACKED = ("f16x2", "bf16x2")
CARRY = "carry"  # the register of .cc


def is_float(i: Instruction) -> bool:
    """Whether an opcode that integers and floats share is a float's."""
    return i.type in ("f16", "bf16", "f32", "f64", *PACKED)


def operands(e: Emitter, i: Instruction) -> list[str]:
    return [e.read(a, i.type) for a in i.args[1:]]


@lane("and", "or", "xor")
def logic(e: Emitter, i: Instruction) -> str:
    a, b = operands(e, i)
    return e.assign(i, i.type, f"{a} {LOGIC[i.name]} {b}")


@lane("not")
def invert(e: Emitter, i: Instruction) -> str:
    return e.assign(i, i.type, f"{'!' if i.type == 'pred' else '~'}{e.read(i.args[1], i.type)}")


@lane("cnot")
def is_zero(e: Emitter, i: Instruction) -> str:
    return e.assign(i, i.type, f"{e.read(i.args[1], i.type)} == 0")


@lane("shl", "shr")
def shift(e: Emitter, i: Instruction) -> str:
    kind = i.type.replace("b", "u")
    direction = "left" if i.name == "shl" else "right"
    value = f"shift_{direction}<{CPP[kind]}>({e.read(i.args[1], kind)}, {e.read(i.args[2], 'u32')})"
    return e.assign(i, kind, value)


@lane("shf")
def funnel_shift(e: Emitter, i: Instruction) -> str:
    low, high, n = (e.read(a, "u32") for a in i.args[1:4])
    n = f"least<u32>({n}, 32)" if i.has("clamp") else f"({n} & 31)"
    both = f"((u64){high} << 32 | {low})"
    return e.assign(i, "u32", f"({both} << {n}) >> 32" if i.has("l") else f"{both} >> {n}")


@lane("lop3")
def logic3(e: Emitter, i: Instruction) -> str:
    a, b, c, table = (e.read(x, "u32") for x in i.args[1:5])
    return e.assign(i, "u32", f"logic3({a}, {b}, {c}, {table})")


@lane("prmt")
def permute(e: Emitter, i: Instruction) -> str:
    if i.op[1:] != ("b32",):
        raise Unsupported(i.text)
    a, b, selector = (e.read(x, "u32") for x in i.args[1:4])
    return e.assign(i, "u32", f"permute_bytes({a}, {b}, {selector})")


@lane("bfe")
def extract(e: Emitter, i: Instruction) -> str:
    a, position, length = e.read(i.args[1], i.type), e.read(i.args[2], "u32"), e.read(i.args[3], "u32")
    return e.assign(i, i.type, f"extract_bits<{CPP[i.type]}>({a}, {position}, {length})")


@lane("bfi")
def insert(e: Emitter, i: Instruction) -> str:
    a, into = e.read(i.args[1], i.type), e.read(i.args[2], i.type)
    position, length = e.read(i.args[3], "u32"), e.read(i.args[4], "u32")
    return e.assign(i, i.type, f"insert_bits<{CPP[i.type]}>({a}, {into}, {position}, {length})")


@lane("popc")
def population(e: Emitter, i: Instruction) -> str:
    return e.assign(i, "u32", f"__builtin_popcountll({e.read(i.args[1], i.type)})")


@lane("clz")
def leading_zeros(e: Emitter, i: Instruction) -> str:
    return e.assign(i, "u32", f"{8 * size(i.type) - 1} - highest_bit({e.read(i.args[1], i.type)})")


@lane("brev")
def reverse(e: Emitter, i: Instruction) -> str:
    return e.assign(i, i.type, f"reverse_bits({e.read(i.args[1], i.type)})")


@lane("bfind")
def find_highest(e: Emitter, i: Instruction) -> str:
    a, width = e.read(i.args[1], i.type), 8 * size(i.type)
    if i.type[0] == "s":
        a = f"({a} < 0 ? ~{a} : {a})"  # the highest bit that differs from the sign
    found = f"highest_bit<u{width}>({a})"
    return e.assign(i, "u32", f"{found} == ~0u ? ~0u : {width - 1} - {found}" if i.has("shiftamt") else found)


@lane("dp4a")
def dot_product(e: Emitter, i: Instruction) -> str:
    a, b, c = (e.read(x, "u32") for x in i.args[1:4])
    kinds = ", ".join("s8" if t == "s32" else "u8" for t in i.op[1:3])
    return e.assign(i, "u32", f"dot_of_bytes<{kinds}>({a}, {b}, {c})")


def integer_arithmetic(e: Emitter, i: Instruction) -> str:
    """add, sub, mul, mad, div, rem, min, max, abs, neg and sad of integers."""
    if i.has("cc") or i.name in ("addc", "subc", "madc"):
        return with_carry(e, i)
    kind = CPP[i.type]
    x, unsigned = operands(e, i), UNSIGNED[size(i.type)]
    if i.name in ("mul", "mad"):
        return product(e, i, x)
    if i.has("sat"):
        sign = "+" if i.name == "add" else "-"
        return e.assign(
            i, i.type, f"least<s64>(most<s64>((s64){x[0]} {sign} (s64){x[1]}, -2147483648ll), 2147483647ll)"
        )
    # Sums are computed unsigned: a signed one that overflows is undefined in C++.
    values = {
        "add": lambda: f"({unsigned}){x[0]} + ({unsigned}){x[1]}",
        "sub": lambda: f"({unsigned}){x[0]} - ({unsigned}){x[1]}",
        "div": lambda: f"divide<{kind}>({x[0]}, {x[1]})",
        "rem": lambda: f"remainder<{kind}>({x[0]}, {x[1]})",
        "min": lambda: f"least<{kind}>({x[0]}, {x[1]})",
        "max": lambda: f"most<{kind}>({x[0]}, {x[1]})",
        "abs": lambda: f"{x[0]} < 0 ? ({kind})(({unsigned})0 - ({unsigned}){x[0]}) : {x[0]}",
        "neg": lambda: f"({unsigned})0 - ({unsigned}){x[0]}",
        "sad": lambda: f"{x[2]} + ({x[0]} < {x[1]} ? {x[1]} - {x[0]} : {x[0]} - {x[1]})",
    }
    if i.name not in values:
        raise Unsupported(i.text)
    return e.assign(i, i.type, values[i.name]())


def product(e: Emitter, i: Instruction, x: list[str]) -> str:
    bits, signed = 8 * size(i.type), i.type[0] == "s"
    wide = f"{'s' if signed else 'u'}{2 * bits}"
    full = f"({wide}){x[0]} * ({wide}){x[1]}"
    if i.has("wide"):
        if i.name == "mad":
            full = f"(u{2 * bits})({full}) + {e.read(i.args[3], f'u{2 * bits}')}"
        return e.assign(i, wide, full)
    unsigned = UNSIGNED[size(i.type)]
    low = f"(u64)({unsigned}){x[0]} * ({unsigned}){x[1]}"  # u64: u16 would be promoted to a signed int
    result = f"({unsigned})(({full}) >> {bits})" if i.has("hi") else low
    if i.name == "mad":
        result = f"({result}) + ({unsigned}){x[2]}"
    return e.assign(i, i.type, result)


def with_carry(e: Emitter, i: Instruction) -> str:
    e.kernel.registers.setdefault(CARRY, "u32")
    x, bits, signed = operands(e, i), 8 * size(i.type), i.type[0] == "s"
    unsigned = UNSIGNED[size(i.type)]
    big, product_type = f"u{2 * bits}", f"{'s' if signed else 'u'}{2 * bits}"

    def wide(value: str) -> str:
        return f"({big})({unsigned})({value})"

    if i.name in ("add", "addc"):
        value = f"{wide(x[0])} + {wide(x[1])}"
    elif i.name in ("sub", "subc"):
        value = f"{wide(x[0])} - {wide(x[1])}"
    else:
        full = f"({product_type}){x[0]} * ({product_type}){x[1]}"
        value = wide(f"({full}) >> {bits}" if i.has("hi") else full) + (f" + {wide(x[2])}" if len(x) > 2 else "")
    if i.name in ("addc", "madc"):
        value += f" + R.{CARRY}[l]"
    elif i.name == "subc":
        value += f" - R.{CARRY}[l]"
    carry = f"R.{CARRY}[l] = (u32)(z >> {bits}) & 1;" if i.has("cc") else ""
    return e.each(i, f"const {big} z = {value}; {e.write(i.args[0], unsigned, 'z')} {carry}")


@lane("addc", "subc", "madc", "rem", "sad")
def integers_only(e: Emitter, i: Instruction) -> str:
    return integer_arithmetic(e, i)


@lane("mul24", "mad24")
def product24(e: Emitter, i: Instruction) -> str:
    kind, wide = CPP[i.type], "s64" if i.type[0] == "s" else "u64"

    def low24(operand: Operand) -> str:
        return f"({wide})(({kind})((u32){e.read(operand, i.type)} << 8) >> 8)"

    value = f"{low24(i.args[1])} * {low24(i.args[2])}"
    if i.has("hi"):
        value = f"({value}) >> 16"
    if i.name == "mad24":
        value = f"({value}) + {e.read(i.args[3], i.type)}"
    return e.assign(i, i.type, value)


def constant(operand: Operand) -> int:
    """The value of an operand that PTX requires to be a literal."""
    if not isinstance(operand, Integer):
        raise Unsupported(f"expected a literal, got {operand}")
    return operand.value
