"""Clusters of blocks: their barrier, and the addresses of each other's shared memory."""

from __future__ import annotations

from .emit import Emitter, lane, warp_wide
from .memory import space
from .syntax import Instruction


@lane("mapa")
def map_to_rank(e: Emitter, i: Instruction) -> str:
    address, rank = e.read(i.args[1], "u64"), e.read(i.args[2], "u32")
    return e.assign(i, i.type, f"map_to_rank(w, l, {e.site(i)}, {address}, {rank}, {generic(i)})")


@lane("getctarank")
def rank_of_address(e: Emitter, i: Instruction) -> str:
    return e.assign(i, "u32", f"rank_at(w, l, {e.site(i)}, {e.read(i.args[1], 'u64')}, {generic(i)})")


def generic(i: Instruction) -> str:
    return "true" if space(i) == "generic" else "false"


@lane("barrier")
def cluster_barrier(e: Emitter, i: Instruction) -> str:
    return f"if (const u32 T = {e.mask(i)}) {{ {arrive_or_wait(e, i)} }}"


@warp_wide("barrier")
def aligned_cluster_barrier(e: Emitter, i: Instruction) -> tuple[None, str]:
    return None, arrive_or_wait(e, i)


def arrive_or_wait(e: Emitter, i: Instruction) -> str:
    if i.has("wait"):
        return f"wait_for_cluster(w, T, {e.site(i)});"
    return f"arrive_at_cluster(w, T, {'false' if i.has('relaxed') else 'true'}, {e.site(i)});"
