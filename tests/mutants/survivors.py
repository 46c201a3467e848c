"""Mutants that no test can tell from the kernels as they are, or that none here does: each with the reason.

Named by their file and their line before and after the change, so that entries outlive changes elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .operators import Mutant


@dataclass(frozen=True)
class Survivor:
    file: str
    was: str
    becomes: tuple[str, ...]
    why: str
    times: int = 1  # how many places of the file with this line may survive


ANY_FIRST_STAGED = (
    "Equivalent: a product that stages is aimed before it multiplies, so what it begins with is never read."
)
IN_GRID = "plan.kind == Kind::grid"
SURVIVORS = (
    Survivor(
        "cells/activations.h",
        "return x > high ? high : x;",
        ("return x >= high ? high : x;",),
        "Equivalent: where both are the same, either is the result.",
    ),
    Survivor(
        "cells/activations.h",
        "return x < low ? low : x;",
        ("return x <= low ? low : x;",),
        "Equivalent: where both are the same, either is the result. (Of zeros with two signs no limit is one.)",
    ),
    Survivor(
        "cells/lstm.h",
        "static constexpr bool reads_h0 = false; // the cell update uses h_{t-1} beside U h_{t-1}",
        ("static constexpr bool reads_h0 = true; // the cell update uses h_{t-1} beside U h_{t-1}",),
        "Equivalent: h_{t-1} is read, and the LSTM's derivative has no use for it.",
    ),
    Survivor(
        "cuda/backward.cu",
        "for (std::int64_t step = steps - 1; step >= -1 && error.empty(); --step) {",
        ("for (std::int64_t step = steps - 1; step >= -2 && error.empty(); --step) {",),
        "Equivalent: a step -2 has no rows, so nothing is started for it.",
    ),
    Survivor(
        "cuda/backward.cuh",
        "const int before = has_previous ? steps.data_row(step - 1, b) : 0;",
        ("const int before = has_previous ? steps.data_row(step - 1, b) : 1;",),
        "Equivalent: where there is no previous step, nobody asks for its row.",
    ),
    Survivor(
        "cuda/backward.cuh",
        "if constexpr (Cell::carries_cell) {",
        ("if constexpr (true) {",),
        "Equivalent, of the one in load_given: the GRU's derivative has no use for c, so the compiler leaves it out.",
    ),
    Survivor(
        "cuda/backward.cuh",
        "each_item(product, units.begin, {all.begin, all.end < now ? all.end : now},",
        (
            "each_item(product, units.begin, {all.begin, all.end <= now ? all.end : now},",
            "each_item(product, units.begin, {all.begin, false ? all.end : now},",
        ),
        "Equivalent: rows of later blocks lie beyond the rows of one product, of which no lane has items; where the "
        "two ends are the same, either is right.",
    ),
    Survivor(
        "cuda/backward.cuh",
        "if (any) meeting.arrive();",
        ("if (true) meeting.arrive();",),
        "Equivalent in results: it counts where there is a hint alone, and one that comes too early is but early.",
    ),
    Survivor(
        "cuda/backward.cuh",
        "if (same) look_ahead(step - 1, end, all, given);",
        ("if (true) look_ahead(step - 1, end, all, given);",),
        "Equivalent in results: what is read ahead in vain is read again by run_rows, which aims again, too.",
    ),
    Survivor(
        "cuda/backward.cuh",
        "const int now = steps.active(step), later = steps.active(step + 1), most = now > later ? now : later;",
        (
            "const int now = steps.active(step), later = steps.active(step + 1), most = false ? now : later;",
            "const int now = steps.active(step), later = steps.active(step + 1), most = now >= later ? now : later;",
        ),
        "Equivalent: source_rows has none beyond `later`; where both are the same, either is right.",
    ),
    Survivor(
        "cuda/backward.cuh",
        "product.aim(source_rows(step, end, {all.begin, all.end < most ? all.end : most}, later));",
        (
            "product.aim(source_rows(step, end, {all.begin, true ? all.end : most}, later));",
            "product.aim(source_rows(step, end, {all.begin, all.begin < most ? all.end : most}, later));",
            "product.aim(source_rows(step, end, {all.begin, all.end <= most ? all.end : most}, later));",
        ),
        "Equivalent: source_rows has none beyond `later`, which is at most `most`.",
    ),
    Survivor(
        "cuda/backward.cuh",
        "if (plan.kept) return {kept_row<Storage>(plan, step + 1, row_of_block(plan, b)), false};",
        (
            "if (plan.kept) return {kept_row<Storage>(plan, step - 1, row_of_block(plan, b)), false};",
            "if (plan.kept) return {kept_row<Storage>(plan, step + 1, row_of_block(plan, b)), true};",
        ),
        "Equivalent: of a step only whether it is even counts; and plan block, which keeps rows, awaits none.",
    ),
    Survivor(
        "cuda/backward.cuh",
        "run_rows(step, begin, end, {row, mine.end}, now, later, same, given);",
        ("run_rows(step, end, end, {row, mine.end}, now, later, same, given);",),
        "Equivalent in results: what a lane carries is written after every step, not after the last alone.",
    ),
    Survivor(
        "cuda/backward.cuh",
        "template <int gate = 0>",
        ("template <int gate = 1>",),
        "Equivalent: of every cell the first two gates lie where they belong, so their shift is the same: none.",
    ),
    Survivor(
        "cuda/block.cuh",
        "if (arrived && hint && threadIdx.x % 32 == 0 && threadIdx.x / 32 < counted)",
        ("if (arrived && hint && threadIdx.x % 32 == 0 && threadIdx.x / 32 <= counted)",),
        "Equivalent in results: one warp more counts, so the hint comes earlier.",
    ),
    Survivor(
        "cuda/block.cuh",
        "if (!arrived || !hint) __syncthreads();",
        ("if (true) __syncthreads();", "if (arrived || !hint) __syncthreads();"),
        "Equivalent in results: a barrier that is not needed. (There is a hint in plan grid alone, which counts.)",
    ),
    Survivor(
        "cuda/block.cuh",
        'if (hint) asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(arrived) : "memory");',
        ('if (false) asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(arrived) : "memory");',),
        "Equivalent: the other branch does the same with more order.",
    ),
    Survivor(
        "cuda/block.cuh",
        f": arrived({IN_GRID} ? arrived + blockIdx.x : nullptr), hint(hint), counted(hint ? counted : 1) {{}}",
        (
            ": arrived(true ? arrived + blockIdx.x : nullptr), hint(hint), counted(hint ? counted : 1) {}",
            f": arrived({IN_GRID} ? arrived + blockIdx.x : nullptr), hint(hint), counted(false ? counted : 1) {{}}",
        ),
        "Equivalent in results: a block that meets nobody else waits for itself alone; and a hint that comes when one "
        "warp has written is but earlier, for data says itself whether it is there.",
    ),
    Survivor(
        "cuda/block.cuh",
        "unsigned count = 0;",
        ("unsigned count = 1;",),
        "Equivalent: the loop reads it before it is asked for.",
    ),
    Survivor(
        "cuda/forward.cu",
        "auto kernel = plan.rows == 1 ? forward_kernel<Cell, Storage, 1> : forward_kernel<Cell, Storage, 8>;",
        ("auto kernel = true ? forward_kernel<Cell, Storage, 1> : forward_kernel<Cell, Storage, 8>;",),
        "Equivalent in results: a product of one row takes a block's rows one after the other, in the room for eight.",
    ),
    Survivor(
        "cuda/forward.cu",
        "if constexpr (sizeof(Storage) <= 4)",
        ("if constexpr (true)",),
        "Equivalent in results: no plan in double is by tensor cores, so kernels are compiled that nobody starts.",
    ),
    Survivor(
        "cuda/forward.cu",
        "if (plan.kind != Kind::step) {",
        ("if (false) {",),
        "Equivalent in results: the steps are started one by one, as in plan step.",
    ),
    Survivor(
        "cuda/forward.cuh",
        "for (int row = mine.begin; row < mine.end; row += product.rows)",
        ("for (int row = mine.begin; row <= mine.end; row += product.rows)",),
        "Equivalent in results: a pass over no rows, in which all warps take part.",
    ),
    Survivor(
        "cuda/forward.cuh",
        "if (same && more) meeting.arrive();",
        ("if (true) meeting.arrive();", "if (same || more) meeting.arrive();"),
        "Equivalent in results: it counts where there is a hint alone, and one that comes too early is but early.",
    ),
    Survivor(
        "cuda/forward.cuh",
        "if constexpr (items > 1) put(i, b, unit), save(step, end, b, unit, same, given[i]);",
        ("if constexpr (items > 1) put(i, b, unit), save(step, begin, b, unit, same, given[i]);",),
        "Equivalent: several items are of plan block, whose launch ends with the sequence; so each row's c is written "
        "where the row ends.",
    ),
    Survivor(
        "cuda/forward.cuh",
        "const bool more = step + 1 < end && mine.begin < mine.end;",
        ("const bool more = step + 1 <= end && mine.begin < mine.end;",),
        "Equivalent in results: blocks of the same rows meet once more than they need, all of them.",
    ),
    Survivor(
        "cuda/forward.cuh",
        "given.carried = h0 ? load_fresh(h0 + unit) : Compute(0);",
        ("given.carried = h0 ? load(h0 + unit) : Compute(0);",),
        "Equivalent: the unit is the block's own, so nobody else writes its state, and L1 is coherent within a block.",
    ),
    Survivor(
        "cuda/forward.cuh",
        "unsigned word = 0;",
        ("unsigned word = 1;",),
        "Equivalent: with a hint it is set before it is stored, without one it is not stored.",
    ),
    Survivor(
        "cuda/forward.cuh",
        "__device__ bool goes_on(int step, int b) const { return step > 0 && b < steps.active(step - 1); }",
        ("__device__ bool goes_on(int step, int b) const { return step >= 0 && b < steps.active(step - 1); }",),
        "Equivalent: step -1 has no active rows.",
    ),
    Survivor(
        "cuda/forward.cuh",
        "const bool written = step > begin && goes_on(step, b);",
        ("const bool written = step >= begin && goes_on(step, b);",),
        "Equivalent: a launch that begins after step 0 is of plan step, which keeps no rows and awaits none.",
    ),
    Survivor(
        "cuda/forward.cuh",
        "if (plan.kept && written) return {kept_row<Storage>(plan, step - 1, row_of_block(plan, b)), false};",
        ("if (false) return {kept_row<Storage>(plan, step - 1, row_of_block(plan, b)), false};",),
        "Equivalent in results: the block's own rows of the output have the same numbers, only further away.",
    ),
    Survivor(
        "cuda/forward.cuh",
        "if constexpr (Cell::carries_cell) c1 = host::clamp(number(c1), a.cell_clip);",
        ("if constexpr (true) c1 = host::clamp(number(c1), a.cell_clip);",),
        "Equivalent: the GRU's c1 is read by nobody.",
    ),
    Survivor(
        "cuda/launch.cuh",
        'if (error != cudaSuccess) return error_text("cudaFuncSetAttribute", error);',
        ('if (false) return error_text("cudaFuncSetAttribute", error);',),
        "No test: no plan asks for more shared memory than a block may have, so the call never fails.",
    ),
    Survivor(
        "cuda/launch.cuh",
        "if (plan.kind == Kind::grid) {",
        ("if (false) {",),
        "No test: on the emulated device the blocks of any launch that fits are together.",
    ),
    Survivor(
        "cuda/launch.cuh",
        "int together = 0;",
        ("int together = 1;",),
        "Equivalent: the call that follows sets it, or its failure is reported.",
    ),
    Survivor(
        "cuda/launch.cuh",
        'if (error != cudaSuccess) return error_text("cudaOccupancyMaxActiveBlocksPerMultiprocessor", error);',
        ('if (false) return error_text("cudaOccupancyMaxActiveBlocksPerMultiprocessor", error);',),
        "No test: the call has no reason to fail for a kernel whose attribute was just set.",
    ),
    Survivor(
        "cuda/launch.cuh",
        "if (rows * units > static_cast<std::int64_t>(together) * current_device().multiprocessors)",
        (
            "if (false)",
            "if (rows / units > static_cast<std::int64_t>(together) * current_device().multiprocessors)",
        ),
        "No test: no plan has more blocks than fit, so this second look finds nothing.",
    ),
    Survivor(
        "cuda/launch.cuh",
        "if (rows * units > static_cast<std::int64_t>(together) * current_device().multiprocessors)",
        ("if (rows * units >= static_cast<std::int64_t>(together) * current_device().multiprocessors)",),
        "No test: the emulation counts no registers here, so that several blocks fit where a device has room for one, "
        "and plans never have as many as fit.",
    ),
    Survivor(
        "cuda/launch.cuh",
        'return "plan grid: expected blocks that are on the device together, got " + std::to_string(rows * units);',
        ('return "plan grid: expected blocks that are on the device together, got " + std::to_string(rows / units);',),
        "No test: no plan has more blocks than fit, so this is never said.",
    ),
    Survivor(
        "cuda/product.cuh",
        "for (int i = 0; i < plan.units_per_block * per_unit; ++i) {",
        ("for (int i = 0; i <= plan.units_per_block * per_unit; ++i) {",),
        "Equivalent: beyond the block's units there is no row, and the loop goes on.",
    ),
    Survivor(
        "cuda/product.cuh",
        "first_staged = -1;",
        ("first_staged = 1;", "first_staged = -2;"),
        "Equivalent: a pass over the columns begins at a multiple of 32, so all of these stand for no pass.",
    ),
    Survivor(
        "cuda/product.cuh",
        "int first_staged = -1;",
        ("int first_staged = 1;", "int first_staged = -0;", "int first_staged = -2;"),
        ANY_FIRST_STAGED,
    ),
    Survivor(
        "cuda/product.cuh",
        "first_staged = begin;",
        (";",),
        "Equivalent in results: what is staged is staged once more.",
    ),
    Survivor(
        "cuda/product.cuh",
        "__syncthreads();",
        (";",),
        "Equivalent in results, of the one at the end of keep_weights: every product begins with the barrier of its "
        "first staging, before it reads a weight. Without either of the other two the race detector speaks.",
    ),
)


def explanation(mutant: Mutant, known: Sequence[Survivor] = SURVIVORS) -> str:
    """Why this mutant survives; empty if nobody has said."""
    return next((k.why for k in known if explains(k, mutant)), "")


def is_equivalent(why: str) -> bool:
    """Whether an explanation says that no result can show the change."""
    return why.startswith("Equivalent")


def explained(survived: Sequence[Mutant], known: Sequence[Survivor] = SURVIVORS) -> list[tuple[Mutant, str]]:
    """Each with its explanation. One that is for a single place explains no other place with the same line."""
    used = Counter[tuple[str, str, str]]()
    result = []
    for mutant in survived:
        same = (mutant.file, mutant.was, mutant.becomes)
        used[same] += 1
        result.append((mutant, next((k.why for k in known if explains(k, mutant) and used[same] <= k.times), "")))
    return result


def out_of_date(mutants: Sequence[Mutant], known: Sequence[Survivor] = SURVIVORS) -> list[Survivor]:
    """Explanations of what is no mutant of these files any more."""
    return [k for k in known if any(m.file == k.file for m in mutants) and not any(explains(k, m) for m in mutants)]


def explains(known: Survivor, mutant: Mutant) -> bool:
    return (known.file, known.was) == (mutant.file, mutant.was) and mutant.becomes in known.becomes
