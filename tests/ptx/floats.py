"""Float arithmetic: f32, f64, f16, bf16 and packed halves. Approximate functions are computed exactly."""

from __future__ import annotations

from .emit import Emitter, lane
from .integers import PACKED, integer_arithmetic, is_float
from .syntax import Instruction
from .types import Unsupported

ROUNDING = {"rz": "FE_TOWARDZERO", "rm": "FE_DOWNWARD", "rp": "FE_UPWARD"}
HALF = {"f16x2": "f16", "bf16x2": "bf16", "f16": "f16", "bf16": "bf16"}


def operation(name: str, x: list[str], kind: str) -> str:
    """The expression of an operation on values of ``kind`` (f32 or f64)."""
    f = "f" if kind == "f32" else ""
    one = "1.f" if kind == "f32" else "1.0"
    if name in ("min", "max"):
        return f"{'least' if name == 'min' else 'most'}<{kind}>({x[0]}, {x[1]})"
    forms = {
        "add": "{0} + {1}",
        "sub": "{0} - {1}",
        "mul": "{0} * {1}",
        "div": "{0} / {1}",
        "fma": f"__builtin_fma{f}({{0}}, {{1}}, {{2}})",
        "mad": f"__builtin_fma{f}({{0}}, {{1}}, {{2}})",
        "abs": f"__builtin_fabs{f}({{0}})",
        "neg": "-{0}",
        "sqrt": f"__builtin_sqrt{f}({{0}})",
        "rcp": f"{one} / {{0}}",
        "rsqrt": f"{one} / __builtin_sqrt{f}({{0}})",
        "lg2": f"log2{f}({{0}})",
        "ex2": f"exp2{f}({{0}})",
        "sin": f"sin{f}({{0}})",
        "cos": f"cos{f}({{0}})",
        "tanh": f"tanh{f}({{0}})",
    }
    if name not in forms:
        raise Unsupported(name)
    return forms[name].format(*x)


@lane("add", "sub", "mul", "mad", "div", "min", "max", "abs", "neg")
def shared_with_integers(e: Emitter, i: Instruction) -> str:
    return float_arithmetic(e, i) if is_float(i) else integer_arithmetic(e, i)


@lane("fma", "sqrt", "rcp", "rsqrt", "sin", "cos", "lg2", "ex2", "tanh")
def float_arithmetic(e: Emitter, i: Instruction) -> str:
    if i.type in PACKED:
        return packed(e, i)
    if i.type not in ("f16", "bf16", "f32", "f64"):
        raise Unsupported(i.text)
    half = i.type in HALF
    kind = "f64" if half else i.type
    x = [e.read(a, i.type) for a in i.args[1:]]
    if half:
        x = [f"static_cast<f64>(to_f32({v}))" for v in x]
    flush = i.has("ftz") and i.type == "f32"
    if flush:
        x = [f"flush({v})" for v in x]
    copies, mode = "", i.pick(*ROUNDING)
    if mode:
        copies = "".join(f"const volatile {kind} y{k} = {v}; " for k, v in enumerate(x))
        x = [f"y{k}" for k in range(len(x))]
    value = operation(i.name, x, kind)
    if i.name == "div" and i.has("approx"):
        value = f"approximate_quotient({x[0]}, {x[1]})"
    if i.has("NaN"):
        value = f"({x[0]} != {x[0]} || {x[1]} != {x[1]} ? static_cast<{kind}>(NAN) : {value})"
    if mode:
        value = f"rounded({ROUNDING[mode]}, [&] {{ return static_cast<{kind}>({value}); }})"
    if flush:
        value = f"flush({value})"
    if i.has("sat"):
        value = f"saturate({value})"
    if i.has("relu"):
        value = f"most<{kind}>({value}, 0)"
    if half:
        value = f"narrow<{i.type}>({value})"
    elif kind == "f32" and i.name not in ("abs", "neg"):
        value = f"one_nan({value})"
    return e.each(i, copies + e.write(i.args[0], i.type, value))


def packed(e: Emitter, i: Instruction) -> str:
    value = operation(i.name, ["x", "y", "z"], "f64")
    if i.has("NaN"):
        value = f"x != x || y != y ? NAN : {value}"
    if i.has("sat"):
        value = f"saturate({value})"
    if i.has("relu"):
        value = f"most<f64>({value}, 0)"
    args = [e.read(a, "u32") for a in i.args[1:]] + ["0u", "0u"]
    function = f"[](f64 x, f64 y, f64 z) -> f64 {{ return {value}; }}"
    return e.assign(i, "u32", f"map_halves<{HALF[i.type]}>({args[0]}, {args[1]}, {args[2]}, {function})")


@lane("copysign")
def copy_sign(e: Emitter, i: Instruction) -> str:
    sign, value = e.read(i.args[1], i.type), e.read(i.args[2], i.type)
    return e.assign(i, i.type, f"std::copysign({value}, {sign})")


@lane("testp")
def test_property(e: Emitter, i: Instruction) -> str:
    x = e.read(i.args[1], i.type)
    tests = {
        "finite": f"std::isfinite({x})",
        "infinite": f"std::isinf({x})",
        "number": f"!std::isnan({x})",
        "notanumber": f"std::isnan({x})",
        "normal": f"std::isnormal({x})",
        "subnormal": f"std::fpclassify({x}) == FP_SUBNORMAL",
    }
    return e.assign(i, "pred", tests[i.op[1]])
