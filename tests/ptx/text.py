"""PTX text to statements, declarations and literals."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from .syntax import Bits, Integer, Operand, Parameter, Sink, Special, Symbol, Variable
from .types import CPP, Unsupported, size


def split(text: str, separator: str = ",") -> list[str]:
    """The parts of ``text`` between separators that no bracket encloses."""
    parts, depth, part = [], 0, ""
    for c in text:
        depth += (c in "([{<") - (c in ")]}>")
        if c == separator and depth == 0:
            parts.append(part.strip())
            part = ""
        else:
            part += c
    return [*parts, part.strip()] if part.strip() else parts


def statements(body: str) -> Iterator[str]:
    """The statements of a body; ``{`` and ``}`` of scopes, and ``label:``, are statements of their own."""
    text, depth = "", 0
    for c in body:
        if c == "{" and depth == 0 and not text.strip():
            yield "{"
            text = ""
        elif c == "}" and depth == 0:
            yield "}"
            text = ""
        elif c == ";" and depth == 0:
            yield " ".join(text.split())
            text = ""
        elif c == ":" and depth == 0 and re.fullmatch(r"\s*[\w$]+", text):
            yield text.strip() + ":"
            text = ""
        else:
            depth += (c == "{") - (c == "}")
            text += c


def cpp_name(name: str) -> str:
    """A PTX name as a part of a C++ name."""
    return re.sub(r"\W", "_", name.lstrip("%"))


def plain(text: str) -> str:
    """PTX without comments and debug sections; ``.loc`` lines become statements."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"\.section\s+\S+\s*\{.*?\}", "", text, flags=re.S)
    text = re.sub(r"^\s*\.(version|target|address_size|file)\b.*$", "", text, flags=re.M)
    # Of an inlined call only the place of the call is kept: a fault is looked for in the kernel, not in a header.
    text = re.sub(r"^\s*\.loc[^\n]*inlined_at[^\n]*$", "", text, flags=re.M)
    return re.sub(r"^\s*\.loc\s+(\d+)\s+(\d+)[^\n]*$", r".loc \1 \2;", text, flags=re.M)


def closing_brace(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return i
    raise Unsupported("a body without end")


def signature(text: str) -> tuple[str, list[Parameter], list[Parameter], str]:
    """Name, results, parameters and attributes."""
    text, results, parameters = text.strip(), [], []
    if text.startswith("("):
        end = text.index(")")
        results, text = parameter_list(text[1:end]), text[end + 1 :].strip()
    found = re.match(r"[\w$]+", text)
    if not found:
        raise Unsupported(f"signature: {text}")
    text = text[found.end() :].strip()
    if text.startswith("("):
        end = text.index(")")
        parameters, text = parameter_list(text[1:end]), text[end + 1 :]
    return found[0], results, parameters, text


def parameter_list(text: str) -> list[Parameter]:
    pattern = re.compile(
        r"\.(?:param|reg)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+"
        r"(?:\.ptr\s*(?:\.(?!align)\w+\s*)*(?:\.align\s+\d+\s+)?)?([\w$%]+)(?:\[(\d+)\])?"
    )
    parameters, offset = [], 0
    for part in split(text):
        found = pattern.match(part)
        if not found:
            raise Unsupported(f"parameter: {part}")
        align, ptx_type, name, count = found.groups()
        bytes_ = size(ptx_type) * int(count or 1)
        alignment = int(align or size(ptx_type))
        offset = -(-offset // alignment) * alignment
        parameters.append(Parameter(name, offset, bytes_))
        offset += bytes_
    return parameters


def declaration(statement: str) -> Variable | None:
    """The variable that a statement declares, or None for another statement."""
    found = re.match(
        r"(?:\.(?:visible|extern|weak|common)\s+)*\.(global|const|shared|local)\s+"
        r"((?:\.\w+(?:\s+\d+)?\s+)*)([\w$%]+)((?:\[\d*\])*)\s*(?:=\s*(.*))?$",
        statement,
        re.S,
    )
    if not found:
        return None
    space, attributes, name, dims, initial = found.groups()
    element = size([t for t in re.findall(r"\.(\w+)", attributes) if t in CPP][-1])
    align = re.search(r"\.align\s+(\d+)", attributes)
    lengths = re.findall(r"\[(\d*)\]", dims)
    count = 1
    for n in lengths:
        count *= int(n or 1)
    values = split(re.sub(r"[{}]", "", initial)) if initial else []
    data = b"".join(literal_bytes(v, element) for v in values)
    open_ended = "" in lengths
    return Variable(
        name,
        space,
        max(len(data), 0 if open_ended else element * count),
        int(align[1]) if align else element,
        data,
        dynamic=space == "shared" and open_ended,
    )


def literal_bytes(text: str, length: int) -> bytes:
    if text.lower().startswith("0f"):
        return struct.pack("<I", int(text[2:], 16))
    if text.lower().startswith("0d"):
        return struct.pack("<Q", int(text[2:], 16))
    if not re.match(r"-?\d", text):
        raise Unsupported(f"initialiser: {text}")
    return (int(text.rstrip("U"), 0) & ((1 << 8 * length) - 1)).to_bytes(length, "little")


def literal(text: str) -> Operand:
    """An operand that is no variable."""
    if text == "_":
        return Sink()
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
        return Bits(32, int(text[2:], 16))
    if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
        return Bits(64, int(text[2:], 16))
    if re.fullmatch(r"[-+]?(0[xX][0-9a-fA-F]+|\d+)U?", text):
        return Integer(integer(text.rstrip("U")))
    if re.fullmatch(r"[-+]?\d*\.\d*([eE][-+]?\d+)?", text):
        return Bits(64, struct.unpack("<Q", struct.pack("<d", float(text)))[0])
    if text.startswith("%"):
        return Special(text[1:])
    return Integer(32) if text == "WARP_SZ" else Symbol(text)


def integer(text: str) -> int:
    """PTX's integer literals: a leading 0 is octal, as in C."""
    digits = text.lstrip("+-")
    octal = len(digits) > 1 and digits[0] == "0" and digits.isdigit()
    value = int(digits, 8) if octal else int(digits, 0)
    return -value if text.startswith("-") else value
