"""A PTX file: its variables, functions and kernels."""

from __future__ import annotations

import re
from pathlib import PurePath

from .inline import Function, Inliner
from .syntax import Clusters, Kernel, Parameter, Variable
from .text import closing_brace, declaration, plain, signature, statements


class Module:
    """A PTX file: its variables, functions and kernels."""

    def __init__(self, text: str) -> None:
        self.variables: dict[str, Variable] = {}
        self.functions: dict[str, Function | None] = {}  # None: declared only, such as vprintf
        self.kernels: list[Kernel] = []
        self.files = {n: PurePath(path).name for n, path in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.M)}
        entries = self._read(plain(text))
        for name, parameters, attributes, body in entries:
            threads = re.search(r"\.maxntid\s+([\d,\s]+)", attributes)
            most = 1 if threads else 0
            for n in re.findall(r"\d+", threads[1]) if threads else ():
                most *= int(n)
            kernel = Kernel(name, parameters, most, clusters(attributes))
            Inliner(self, kernel).kernel(body)
            self.kernels.append(kernel)

    def _read(self, text: str) -> list[tuple[str, list[Parameter], str, str]]:
        """Takes in variables and functions; returns name, parameters, attributes and body of the entries."""
        entries, at = [], 0
        for found in re.finditer(r"\.(entry|func)\b", text):
            if found.start() < at:
                continue
            self._declarations(text[at : found.start()])
            end = next(i for i in range(found.end(), len(text)) if text[i] in "{;")
            name, results, parameters, attributes = signature(text[found.end() : end])
            at = end + 1
            if text[end] == ";":
                self.functions.setdefault(name, None)
                continue
            at = closing_brace(text, end) + 1
            body = text[end + 1 : at - 1]
            if found[1] == "entry":
                entries.append((name, parameters, attributes, body))
            else:
                self.functions[name] = Function(results, parameters, body)
        self._declarations(text[at:])
        return entries

    def _declarations(self, text: str) -> None:
        for statement in statements(text):
            if variable := declaration(statement):
                self.variables.setdefault(variable.name, variable)


def clusters(attributes: str) -> Clusters | None:
    """The attributes of an entry that are about clusters, or None if there are none."""
    dims = re.search(r"\.reqnctapercluster\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", attributes)
    most, explicit = re.search(r"\.maxclusterrank\s+(\d+)", attributes), ".explicitcluster" in attributes
    if not (dims or most or explicit):
        return None
    x, y, z = (int(n or 1) for n in dims.groups()) if dims else (0, 0, 0)
    return Clusters((x, y, z), int(most[1]) if most else 0, explicit)
