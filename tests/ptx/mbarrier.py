"""mbarrier objects in shared memory."""

from __future__ import annotations

from .emit import Emitter, lane
from .memory import located, space
from .syntax import Instruction
from .types import Unsupported


@lane("mbarrier", ordered=True)
def mbarrier(e: Emitter, i: Instruction) -> str:
    kind, args = i.op[1], list(i.args)
    if kind not in ("init", "inval", "arrive", "expect_tx", "test_wait", "try_wait"):
        raise Unsupported(i.text)
    result = args.pop(0) if kind in ("arrive", "test_wait", "try_wait") else None
    spot, given = located(e, i, args[0], space(i), 8), args[1:]
    place = f"w, l, {e.site(i)}, spot"
    strong = "false" if i.has("relaxed") else "true"
    if kind in ("init", "inval"):
        count = "".join(f", {e.read(g, 'u32')}" for g in given)
        return e.each(i, f"{spot}mbarrier_{kind}({place}{count});")
    if kind == "expect_tx":
        return e.each(i, f"{spot}mbarrier_arrive({place}, {{0, {e.read(given[0], 'u32')}, true, false}});")
    assert result is not None
    if kind == "arrive":
        number = e.read(given[0], "u32") if given else "1"
        count, bytes_ = ("1", number) if i.has("expect_tx") else (number, "0")
        completes = "false" if i.has("noComplete") else "true"
        value = f"mbarrier_arrive({place}, {{{count}, {bytes_}, {completes}, {strong}}})"
        return e.each(i, spot + e.write(result, "b64", value))
    parity = i.has("parity")
    function, phase = ("mbarrier_test_parity", "u32") if parity else ("mbarrier_test", "u64")
    return e.each(i, spot + e.write(result, "pred", f"{function}({place}, {e.read(given[0], phase)}, {strong})"))
