"""C++ as a text to be changed: where its code is, what matches a bracket, where statements and conditions lie."""

from __future__ import annotations

import re
from collections.abc import Iterator

NO_CODE = re.compile(
    r"//[^\n]*|/\*.*?\*/"  # comments
    r'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\''  # literals
    r"|^[ \t]*#(?:\\\n|[^\n])*"  # lines of the preprocessor
    r"|__launch_bounds__\([^()]*\)",  # what tells ptxas how many registers to use, and no more
    re.S | re.M,
)
OPENING, CLOSING = "([{", ")]}"
NOT_EXPRESSIONS = ("return", "static_assert", "using", "template", "if", "for", "while", "switch", "do", "else", "case")
PLACE = r"\*?[A-Za-z_][\w.]*(?:(?:->|\.|::)\w+|\[[^;=]*?\])*"  # what can be assigned to, without a type before it
EXPRESSION = re.compile(
    rf"(?:{PLACE} [-+*/%&|^]?= .*"  # an assignment
    r"|(?:\w|::|\.|->|\(\)|\[\w*\]|<[^<>();]*>)+\(.*\)"  # a call
    r"|asm\b.*)",
    re.S,
)


def masked(text: str) -> str:
    """The text with blanks where there is no code; every other character stays where it is."""
    return NO_CODE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def closing(code: str, start: int) -> int:
    """The index of the bracket that closes the one at ``start``; -1 if there is none."""
    depth = 0
    for i in range(start, len(code)):
        depth += (code[i] in OPENING) - (code[i] in CLOSING)
        if depth == 0:
            return i
    return -1


def statement_starts(code: str) -> Iterator[int]:
    """Where a statement may begin: after ``;``, a brace, ``else``, or what an ``if`` or a loop asks."""
    for found in re.finditer(r"[;{}]|\belse\b|\b(?:if(?: constexpr)?|for|while) (?=\()", code):
        end = found.end()
        if code[end : end + 1] == "(" and found[0].endswith(" "):
            end = closing(code, end) + 1
        yield end + len(code[end:]) - len(code[end:].lstrip())


def statements(code: str) -> Iterator[tuple[int, int]]:
    """Calls and assignments that are statements of their own, without the ``;`` at their end."""
    for start in sorted(set(statement_starts(code))):
        end = start
        while 0 <= end < len(code) and code[end] not in ";{})":
            end = closing(code, end) + 1 if code[end] in "([" else end + 1
            if end == 0:
                break
        statement = code[start:end]
        if not statement or code[end : end + 1] != ";" or re.match(r"\w*", statement)[0] in NOT_EXPRESSIONS:  # type: ignore[index]
            continue
        if EXPRESSION.fullmatch(statement):
            yield start, end


def conditions(code: str) -> Iterator[tuple[int, int]]:
    """What is asked by ``if`` and by ``?``, without parentheses around it."""
    for found in re.finditer(r"\bif (?:constexpr )?(?=\()", code):
        yield found.end() + 1, closing(code, found.end())
    for found in re.finditer(r"(?<=\s)\?(?=\s)", code):
        yield start_of_operand(code, found.start()), found.start()


def start_of_operand(code: str, end: int) -> int:
    """Where what a ``?`` at ``end`` asks begins: behind a bracket, a comma, an assignment, ``return``, or ``:``."""
    depth, i = 0, end - 1
    while i >= 0:
        depth += (code[i] in CLOSING) - (code[i] in OPENING)
        before = code[:i]
        if depth < 0 or (depth == 0 and (code[i] in ",;?:{}" and "::" not in code[i - 1 : i + 2])):
            break
        if depth == 0 and re.search(r"(?:[^=!<>]=|\breturn)$", before[-7:]) and code[i] == " ":
            break
        i -= 1
    return i + 1 + len(code[i + 1 : end]) - len(code[i + 1 : end].lstrip())
