"""``take_rows`` and ``put_rows``: values, derivatives, transforms, wrong calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pairs import F64
from torch import Tensor

take_rows, put_rows = torch.ops.lstm_fused.take_rows.default, torch.ops.lstm_fused.put_rows.default
C = 3
# Some rows twice, some of none: below the first, beyond the last.
ROWS = torch.tensor([[4, 0, 7, 4], [9, 2, -1, 6]])
FIRST = [0, 2, -3]


def sources(dtype: torch.dtype = F64) -> list[Tensor]:
    return [torch.randn(2, 3, C, dtype=dtype), torch.randn(2, C, dtype=dtype)]


def matrix(rows: Tensor, size: int, first: int, dtype: torch.dtype = F64) -> Tensor:
    """What take_rows multiplies the sources by, as one matrix [rows, size]."""
    return (rows.flatten()[:, None] - first == torch.arange(size)).to(dtype)


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16, torch.float16])
def test_values(first: int, dtype: torch.dtype) -> None:
    given = sources(dtype)
    found = take_rows(given, ROWS, first)
    whole = torch.cat([s.flatten(0, -2) for s in given])
    assert torch.equal(found, (matrix(ROWS, 8, first, dtype) @ whole).view(2, 4, C))
    again = put_rows(found, ROWS, [2, 4], first)
    assert torch.equal(again, (matrix(ROWS, 8, first, dtype).t() @ found.flatten(0, 1)).view(2, 4, C))


def test_rows_in_other_memory_orders() -> None:
    x, rows = torch.randn(5, 7, C).transpose(0, 1), ROWS.t()
    assert torch.equal(take_rows([x], rows), take_rows([x.contiguous()], rows.contiguous()))
    values = torch.randn(1, 1, C).expand(4, 2, C)
    assert torch.equal(put_rows(values, rows, [9]), put_rows(values.contiguous(), rows.contiguous(), [9]))


def test_large_ones_are_shared_by_threads() -> None:
    x, rows = torch.randn(3000, 65), torch.randperm(3000)
    assert torch.equal(take_rows([x], rows), x[rows])
    assert torch.equal(put_rows(x, rows, [3000]), torch.zeros_like(x).index_add(0, rows, x))


def test_what_no_row_has_is_not_read() -> None:
    x = torch.full((2, C), float("nan"))
    assert not take_rows([x], torch.tensor([2, -1])).any()
    assert not put_rows(x, torch.tensor([2, -1]), [2]).any()


def test_no_rows() -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert take_rows([torch.randn(2, C)], none).shape == (0, C)
    assert torch.equal(put_rows(torch.empty(0, C), none, [2, 2]), torch.zeros(2, 2, C))
    assert torch.equal(take_rows([torch.empty(0, C)], torch.tensor([0])), torch.zeros(1, C))


@pytest.mark.parametrize("first", FIRST)
def test_derivatives(first: int) -> None:
    given = [s.requires_grad_() for s in sources()]
    values = torch.randn(2, 4, C, dtype=F64, requires_grad=True)
    for function, inputs in (
        (lambda a, b: take_rows([a, b], ROWS, first), (given[0], given[1])),
        (lambda a: take_rows([a, given[1].detach()], ROWS, first), (given[0],)),
        (lambda v: put_rows(v, ROWS, [2, 4], first), (values,)),
    ):
        check: dict[str, Any] = {"check_batched_grad": True}
        assert torch.autograd.gradcheck(
            function, inputs, check_forward_ad=True, check_batched_forward_grad=True, **check
        )
        assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True, **check)


def test_transforms() -> None:
    a, b = sources()
    several = torch.stack([a, a.sin(), a.cos()], 1)
    for k, found in enumerate(torch.vmap(lambda a: take_rows([a, b], ROWS), 1)(several)):
        assert torch.equal(found, take_rows([several[:, k], b], ROWS))
    values = torch.randn(2, 4, C, 3, dtype=F64)
    for k, found in enumerate(torch.vmap(lambda v: put_rows(v, ROWS, [8]), 3)(values)):
        torch.testing.assert_close(found, put_rows(values[..., k], ROWS, [8]))
    jacobian = torch.func.jacrev(lambda a: take_rows([a, b], ROWS))(a)
    torch.testing.assert_close(torch.func.jacfwd(lambda a: take_rows([a, b], ROWS))(a), jacobian)
    torch.testing.assert_close(torch.tensordot(jacobian, a, 3), take_rows([a, torch.zeros_like(b)], ROWS))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    torch._dynamo.reset()

    def there_and_back(a: Tensor, b: Tensor, rows: Tensor) -> Tensor:
        taken = torch.ops.lstm_fused.take_rows([a, b], rows)
        return torch.ops.lstm_fused.put_rows(taken.sin(), rows, a.shape[:2])

    given = [s.requires_grad_() for s in sources()]
    compiled = torch.compile(there_and_back, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    found, wanted = (torch.autograd.grad(f(*given, ROWS).square().sum(), given) for f in (compiled, there_and_back))
    for x, y in zip(found, wanted, strict=True):
        assert torch.equal(x, y)


def test_opcheck() -> None:
    given = [s.requires_grad_() for s in sources()]
    values = torch.randn(2, 4, C, requires_grad=True)
    torch.library.opcheck(take_rows, (given, ROWS))
    torch.library.opcheck(take_rows, (given, ROWS, 2))
    torch.library.opcheck(put_rows, (values, ROWS, [2, 5]))
    torch.library.opcheck(put_rows, (values, ROWS, [10], 2))


X = torch.zeros(2, C)
WRONG: list[tuple[Any, tuple[Any, ...], str]] = [
    (take_rows, ([], ROWS), "sources: expected at least one tensor"),
    (
        take_rows,
        ([X, X[:, :2]], ROWS),
        r"sources\[1\]: expected rows of 3 x Float on cpu, got \[2, 2\] of Float on cpu",
    ),
    (take_rows, ([X, X.double()], ROWS), r"sources\[1\]: expected rows of 3 x Float"),
    (take_rows, ([torch.tensor(0.0)], ROWS), r"sources\[0\]: expected rows"),
    (take_rows, ([X], ROWS.int()), "rows: expected dtype Long, got Int"),
    (put_rows, (X, ROWS, [2]), r"values: expected a row for each of \[2, 4\], got shape \[2, 3\]"),
    (put_rows, (X, torch.tensor([1, 2, 3]), [2]), r"values: expected a row for each of \[3\]"),
    (put_rows, (X, torch.tensor([1.0, 2.0]), [2]), "rows: expected dtype Long, got Float"),
    (put_rows, (X, torch.tensor([0, 1]), [-2]), "size: expected none below 0, got"),
]


@pytest.mark.parametrize(("op", "arguments", "message"), WRONG)
def test_wrong_calls(op: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        op(*arguments)
