"""Every argument wrong in turn: always a Python exception that names it, says what was expected and what came.

The calls run in a child process, one after the other. A crash there ends no test session: it is the result of the call
during which it happened, and the sweep goes on behind it.
"""

from __future__ import annotations

import json
import re
import sys

import children
import pytest
import torch
from wrong_calls import Wrong, module_sweep, ours

ERRORS = (RuntimeError, ValueError, TypeError)


def child(first: int) -> None:
    """Runs the calls from number ``first`` on, one line of JSON before and one after each."""
    for k, wrong in enumerate(ours()[first:], first):
        print(json.dumps({"begin": k}), flush=True)
        try:
            wrong.call()
            outcome = ["returned", ""]
        except ERRORS as error:  # any other ends the child, which counts as a crash
            outcome = [type(error).__name__, str(error)]
        print(json.dumps({"end": k, "outcome": outcome}), flush=True)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[str, str]]:
    """By id: the exception's type and message, or ("returned", ""), or ("crashed", what the child said)."""
    calls, done, first = ours(), {}, 0
    while first < len(calls):
        status, output = children.run(__file__, str(first), timeout=300)
        lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        for line in lines:
            if "end" in line:
                done[calls[line["end"]].id] = tuple(line["outcome"])
        last = max((line["begin"] for line in lines if "begin" in line), default=None)
        assert last is not None, f"the child did not start:\n{output}"
        if calls[last].id not in done:
            done[calls[last].id] = ("crashed", f"status {status}\n{output[-2000:]}")
        first = last + 1
    return done


@pytest.mark.parametrize("wrong", ours(), ids=lambda w: w.id)
def test_wrong_call_raises(wrong: Wrong, outcomes: dict[str, tuple[str, str]]) -> None:
    kind, message = outcomes[wrong.id]
    assert kind not in ("returned", "crashed"), f"{kind}: {message}"
    if wrong.blamed:
        assert message.startswith(wrong.blamed), f"expected one of {wrong.blamed} to be blamed: {message}"
        assert re.search(r"expected .*got ", message, re.DOTALL), message
    for mention in wrong.mentions:
        assert re.search(mention, message), f"expected a mention of {mention}: {message}"


@pytest.mark.parametrize("theirs", list(module_sweep(torch.nn)), ids=lambda w: w.id)
def test_module_raises_as_torch_does(theirs: Wrong, outcomes: dict[str, tuple[str, str]]) -> None:
    """The same type of exception as torch.nn's, so that code which catches it goes on working."""
    with pytest.raises(ERRORS) as caught:
        theirs.call()
    assert outcomes[theirs.id][0] == caught.type.__name__, f"torch: {caught.value}; ours: {outcomes[theirs.id]}"


def test_ids_are_unique() -> None:
    """Outcomes go by id."""
    ids = [wrong.id for wrong in ours()]
    assert len(ids) == len(set(ids)), {i for i in ids if ids.count(i) > 1}


if __name__ == "__main__":
    child(int(sys.argv[1]))
