"""Which operators ran: the fused kernels, the reference, or both."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Calls(TorchDispatchMode):
    """Counts the operators that reach the backend, below autograd and torch.func's transforms.

    ``fused`` has the package's own by name; ``products`` counts the matrix products of the reference (those inside a
    fused operator are not seen).
    """

    def __init__(self) -> None:
        super().__init__()
        self.fused: dict[str, int] = {}
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "lstm_fused":
            self.fused[name] = self.fused.get(name, 0) + 1
        self.products += name in ("mm", "addmm", "bmm", "baddbmm")
        return func(*args, **(kwargs or {}))
