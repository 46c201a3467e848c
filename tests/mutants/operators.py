"""Mutants: a table of small changes, each as a slip of the hand would make it, applied wherever it fits.

Every rule looks at code alone (no comment, no line of the preprocessor) and yields spans of it with what to put there.
The code is formatted by clang-format, which tells operators apart: binary ones have blanks around them, a template's
brackets, pointers and signs have not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from .text import conditions, masked, statements

Change = tuple[int, int, str]  # from, to, what to put there
Rule = Callable[[str], Iterable[Change]]

BINARY = {
    "+": "-", "-": "+", "*": "/", "/": "*", "%": "/", "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=",
    "!=": "==", "&&": "||", "||": "&&", "&": "|", "|": "&", "^": "|", "<<": ">>", ">>": "<<", "+=": "-=", "-=": "+=",
    "*=": "/=", "/=": "*=",
}  # fmt: skip
# Names that a slip puts in each other's place.
NAMES = {
    "load_fresh": "load", "__ldcg": "__ldg", "min": "max", "max": "min", "fminf": "fmaxf", "fmaxf": "fminf",
    "sigmoid": "tanh", "tanh": "sigmoid", "d_sigmoid": "d_tanh", "d_tanh": "d_sigmoid", "begin": "end", "end": "begin",
    "h0": "c0", "c0": "h0", "true": "false", "false": "true", "break": "continue", "continue": "break",
    ".x": ".y", ".y": ".x",
}  # fmt: skip
# Orders and scopes of memory, as CUDA's C++ and inline PTX write them.
ORDERS = {
    "acq_rel": "relaxed", "acquire": "relaxed", "release": "relaxed", "gpu": "cta", "sys": "cta",
    "memory_order_acquire": "memory_order_relaxed", "memory_order_release": "memory_order_relaxed",
    "memory_order_acq_rel": "memory_order_relaxed", "memory_order_seq_cst": "memory_order_relaxed",
    "thread_scope_device": "thread_scope_block", "__threadfence": "__threadfence_block",
}  # fmt: skip
BARRIER = re.compile(r"__sync\w+|__threadfence\w*|\bmeet\b|\bsync\b|wait|arrive|barrier|fence|commit")


@dataclass(frozen=True, order=True)
class Mutant:
    """A change of one place of one file."""

    file: str  # beneath csrc/
    line: int
    column: int
    kind: str
    was: str  # its lines before, without indentation
    becomes: str
    start: int
    end: int
    put: str

    @property
    def id(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def applied(self, text: str) -> str:
        return text[: self.start] + self.put + text[self.end :]


def binary(code: str) -> Iterator[Change]:
    for found in re.finditer(r"(?<=\s)(\S{1,2})(?=\s)", code):
        if found[1] in BINARY:
            yield *found.span(1), BINARY[found[1]]


def sign(code: str) -> Iterator[Change]:
    """A sign or a negation is forgotten."""
    for found in re.finditer(r"(?<=[\s(,{\[!])[-!~](?=[\w(])", code):
        yield *found.span(), ""


def index(code: str) -> Iterator[Change]:
    """The neighbour of a gate, or of another element named by a number: the next, or of the last the one before."""
    elements = [(found[1], int(found[2]), found.span(2)) for found in re.finditer(r"\b(\w+)\[(\d+)\]", code)]
    for name, number, span in elements:
        last = max(other for array, other, _ in elements if array == name)
        yield *span, str(number + 1 if number < last or last == 0 else number - 1)


def constant(code: str) -> Iterator[Change]:
    for found in re.finditer(r"(?<![\w.\[])(?<!\de[-+])(\d+)(?=[uUlL]*\b)(?![\w]*\.)", code):
        value = int(found[1])
        yield *found.span(1), str(value + 1)
        if value > 0:
            yield *found.span(1), str(value - 1)


def real(code: str) -> Iterator[Change]:
    for found in re.finditer(r"(?<![\w.])\d+(?:\.\d+(?:e[-+]?\d+)?|e[-+]?\d+)(f?)", code):
        yield *found.span(), f"(0.5{found[1]} * {found[0]})"


def condition(code: str) -> Iterator[Change]:
    for start, end in conditions(code):
        for value in ("true", "false"):
            yield start, end, value + (" " if code[end] == "?" else "")


def statement(code: str) -> Iterator[Change]:
    for start, end in statements(code):
        if not BARRIER.search(code, start, end):
            yield start, end, ""


def barrier(code: str) -> Iterator[Change]:
    for start, end in statements(code):
        if BARRIER.search(code, start, end):
            yield start, end, ""


def name(code: str) -> Iterator[Change]:
    known = {found[0] for found in re.finditer(r"\b\w+\b", code)}
    for found in re.finditer(r"\.[xyz]\b|\b\w+\b(?!:)", code):
        other = NAMES.get(found[0])
        if re.search(r"(?<!\breturn)(?<!\belse)(?:\w|\w[&*>])\s+$", code[max(0, found.start() - 20) : found.start()]):
            continue  # a declaration
        if other and (other in known or found[0] not in ("begin", "end", "h0", "c0")):
            yield *found.span(), other


def order(text: str) -> Iterator[Change]:
    """Works on the text with its literals: inline PTX is in them."""
    for found in re.finditer(r"(?<=[.\s(:])(\w+)\b", text):
        if found[1] in ORDERS and (text[found.start() - 1] == "." or "_" in found[1]):
            yield *found.span(1), ORDERS[found[1]]


RULES: dict[str, Rule] = {
    "operator": binary,
    "sign": sign,
    "index": index,
    "constant": constant,
    "real": real,
    "condition": condition,
    "statement": statement,
    "barrier": barrier,
    "name": name,
    "order": order,
}


def mutants(file: str, text: str) -> list[Mutant]:
    """All mutants of a file's text, in its order."""
    code = masked(text)
    with_literals = re.sub(r"//[^\n]*", lambda found: " " * len(found[0]), text)
    found: dict[tuple[int, int, str], Mutant] = {}
    for kind, rule in RULES.items():
        for start, end, put in rule(with_literals if kind == "order" else code):
            if text[start:end] != put:
                found.setdefault((start, end, put), described(file, text, kind, start, end, put))
    return sorted(found.values())


def described(file: str, text: str, kind: str, start: int, end: int, put: str) -> Mutant:
    begin, finish = text.rfind("\n", 0, start) + 1, text.find("\n", end)
    was, becomes = text[begin:finish], text[begin:start] + put + text[end:finish]
    return Mutant(
        file=file,
        line=text.count("\n", 0, start) + 1,
        column=start - begin + 1,
        kind=kind,
        was=" ".join(was.split()),
        becomes=" ".join(becomes.split()),
        start=start,
        end=end,
        put=put,
    )
