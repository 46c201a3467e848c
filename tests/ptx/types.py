"""PTX types, and the C++ types that hold them."""

from __future__ import annotations

# What a value of a PTX type is in the runtime's C++ (runtime/scalars.h).
CPP = {
    "b8": "u8", "u8": "u8", "s8": "s8",
    "b16": "u16", "u16": "u16", "s16": "s16", "f16": "f16", "bf16": "bf16",
    "b32": "u32", "u32": "u32", "s32": "s32", "f32": "f32", "f16x2": "u32", "bf16x2": "u32", "tf32": "u32",
    "b64": "u64", "u64": "u64", "s64": "s64", "f64": "f64",
    "b128": "u128", "pred": "u32",
}  # fmt: skip
BYTES = {"u8": 1, "s8": 1, "u16": 2, "s16": 2, "f16": 2, "bf16": 2}
BYTES |= {"u32": 4, "s32": 4, "f32": 4, "u64": 8, "s64": 8, "f64": 8, "u128": 16}
UNSIGNED = {1: "u8", 2: "u16", 4: "u32", 8: "u64", 16: "u128"}
SIGNED = {1: "s8", 2: "s16", 4: "s32", 8: "s64"}
FLOATS = ("f16", "bf16", "f32", "f64")


class Unsupported(Exception):
    """A construct that the translator does not know; a kernel that reaches it stops with a fault."""


def size(ptx_type: str) -> int:
    """Bytes of a PTX type."""
    return BYTES[CPP[ptx_type]]


def storage(ptx_type: str) -> str:
    """The C++ type of a register: bits, except for what vector loops are to compute on without conversions."""
    return {"f32": "f32", "f64": "f64", "pred": "u32"}.get(ptx_type) or UNSIGNED[size(ptx_type)]


def is_integer(cpp: str) -> bool:
    """Whether a C++ type of the runtime is one of its integers."""
    return cpp[0] in "us"
