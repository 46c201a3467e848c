"""The body of a kernel as a flat list of instructions: names resolved, and calls replaced by what they call."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .syntax import Instruction, Kernel, Label, Local, Memory, Not, Operand, Pair, Parameter, Register, Slot, Vector
from .text import cpp_name, declaration, literal, split, statements
from .types import Unsupported, storage

if TYPE_CHECKING:
    from .parse import Module

IGNORED_DIRECTIVES = (".pragma", ".file", ".callprototype", ".calltargets", ".alias")
DEEPEST_CALL = 16


@dataclass
class Function:
    """A device function, to be inlined where it is called."""

    results: list[Parameter]
    parameters: list[Parameter]
    body: str


class Scopes:
    """What names mean, innermost scope first."""

    def __init__(self, outermost: dict[str, Operand]) -> None:
        self.stack = [outermost]

    def find(self, name: str) -> Operand | None:
        return next((s[name] for s in reversed(self.stack) if name in s), None)

    def set(self, name: str, operand: Operand) -> None:
        self.stack[-1][name] = operand

    def leave(self) -> None:
        if len(self.stack) > 1:
            self.stack.pop()


class Inliner:
    """Fills a kernel from its body, and from the bodies of the functions that it calls."""

    def __init__(self, module: Module, kernel: Kernel) -> None:
        self.module, self.out = module, kernel
        self.count = 0
        self.place = ""

    def kernel(self, body: str) -> None:
        """The whole kernel; falling off its end is a return."""
        self.body(body, Scopes({}), None, 0)
        self.out.items.append(Instruction(("ret",), (), text="ret"))

    def unique(self, name: str) -> str:
        self.count += 1
        return f"{cpp_name(name)}_{self.count}"

    def body(self, text: str, scopes: Scopes, end: Label | None, depth: int) -> None:
        """Appends a body; in an inlined function ``ret`` jumps to ``end``."""
        labels: dict[str, Label] = {}

        def label(name: str) -> Label:
            return labels.setdefault(name, Label(self.unique("L")))

        for statement in statements(text):
            if statement == "{":
                scopes.stack.append({})
            elif statement == "}":
                scopes.leave()
            elif statement.endswith(":"):
                self.out.items.append(label(statement[:-1]))
            elif statement.startswith(".branchtargets"):
                table = self.out.items[-1]
                assert isinstance(table, Label)
                targets = split(statement.removeprefix(".branchtargets"))
                self.out.jump_tables[table.name] = [label(t).name for t in targets]
            elif statement.startswith("."):
                self.directive(statement, scopes)
            elif statement:
                self.instruction(statement, scopes, label, end, depth)

    def directive(self, statement: str, scopes: Scopes) -> None:
        if found := re.match(r"\.loc (\d+) (\d+)", statement):
            if found[2] != "0":
                self.place = f"{self.module.files.get(found[1], '?')}:{found[2]}"
        elif found := re.match(r"\.reg\s*\.(\w+)\s+(.*)$", statement):
            for name in split(found[2]):
                family = re.fullmatch(r"([\w$%]+)<(\d+)>", name)
                names = [f"{family[1]}{i}" for i in range(int(family[2]))] if family else [name]
                for each in names:
                    register = Register(self.unique("r_" + cpp_name(each)))
                    self.out.registers[register.name] = storage(found[1])
                    scopes.set(each, register)
        elif found := re.match(r"\.param\s+(?:\.align\s+\d+\s+)?\.\w+\s+([\w$]+)", statement):
            scopes.set(found[1], Slot(self.unique("slot_" + found[1])))
        elif not statement.startswith(IGNORED_DIRECTIVES):
            variable = declaration(statement)
            if variable is None:
                raise Unsupported(statement)
            if variable.space == "local":
                offset = -(-self.out.local_bytes // variable.align) * variable.align
                scopes.set(variable.name, Local(offset))
                self.out.local_bytes = offset + variable.size
            else:
                self.module.variables.setdefault(variable.name, variable)

    def instruction(
        self, statement: str, scopes: Scopes, label: Callable[[str], Label], end: Label | None, depth: int
    ) -> None:
        guard: Register | None = None
        negated, text = False, statement
        if found := re.match(r"@(!?)([%\w$]+)\s+(.*)$", statement):
            negated, text = bool(found[1]), found[3]
            register = scopes.find(found[2])
            assert isinstance(register, Register)
            guard = register
        found = re.match(r"([\w.:]+)\s*(.*)$", text)
        if not found:
            raise Unsupported(statement)
        op, rest = tuple(found[1].split(".")), found[2]

        def emit(op: tuple[str, ...], args: list[Operand]) -> None:
            self.out.items.append(Instruction(op, tuple(args), guard, negated, statement, self.place))

        if op[0] == "call":
            if guard:
                raise Unsupported(f"predicated call: {statement}")
            self.call(rest, scopes, emit, depth)
        elif op[0] == "bra":
            emit(op, [label(rest.strip())])
        elif op[0] == "brx":
            index, table = split(rest)
            emit(op, [self.operand(index, scopes), label(table)])
        elif op[0] == "ret" and end:
            emit(("bra",), [end])
        elif op[0] in ("bar", "barrier") and "red" in op:
            # Two steps: threads leave their predicate and wait; after the barrier they fetch the result.
            result, *args = [self.operand(a, scopes) for a in split(rest)]
            kind = next(k for k in ("popc", "and", "or") if k in op)
            emit(("bar", "reduce"), args)
            emit(("barrier_result", kind), [result, args[0]])
        else:
            emit(op, [self.operand(a, scopes) for a in split(rest)])
            if op[:2] == ("mbarrier", "try_wait"):
                emit(("nanosleep",), [])  # the others' turn

    def call(
        self, text: str, scopes: Scopes, emit: Callable[[tuple[str, ...], list[Operand]], None], depth: int
    ) -> None:
        parts = split(text)
        results = []
        if parts[0].startswith("("):
            results = [self.operand(r, scopes) for r in split(parts.pop(0)[1:-1])]
        name = parts[0]
        args = [self.operand(a, scopes) for a in split(parts[1][1:-1])] if len(parts) > 1 else []
        function = self.module.functions.get(name)
        if function is None:
            emit(("host_call", name), [*results, *args])
            return
        if depth > DEEPEST_CALL:
            raise Unsupported(f"recursion: {name}")
        names = [p.name for p in (*function.results, *function.parameters)]
        end = Label(self.unique("end"))
        self.body(function.body, Scopes(dict(zip(names, [*results, *args], strict=True))), end, depth + 1)
        self.out.items.append(end)

    def operand(self, text: str, scopes: Scopes) -> Operand:
        text = text.strip()
        if text.startswith("{"):
            return Vector(tuple(self.operand(t, scopes) for t in split(text[1:-1])))
        if text.startswith("["):
            found = re.match(r"\[\s*([^\]]+?)\s*(?:\+\s*(-?\w+))?\s*\]$", text)
            if not found:
                raise Unsupported(f"address: {text}")
            return Memory(self.operand(found[1], scopes), int(found[2], 0) if found[2] else 0)
        if "|" in text:
            first, second = text.split("|")
            return Pair(self.operand(first, scopes), self.operand(second, scopes))
        if text.startswith("!"):
            return Not(self.operand(text[1:], scopes))
        return scopes.find(text) or literal(text)
