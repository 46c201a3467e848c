"""The one place where tests say how large an error may be.

The rule, norm-wise, per result (an output, a final state, a gradient):

    error <= max(2 x torch's own error, 4 eps x scale)

where both errors are differences from the same exact result (the oracle, one precision up), and ``eps`` is the
spacing of the result's dtype at 1. Why it has this form:

* *Norm-wise*, since cancellation makes a single element's relative error meaningless: what a kernel promises is a
  small error against the size of the whole result.
* *Against torch's own error*, since the error of a recurrence grows with T, H and the gain of the weights in a way
  that no constant covers; torch's layer meets the same growth. Twice it, because two sound orders of summation
  differ by about that much.
* *Or 4 eps x scale*, since on a tiny case torch may be exact by luck, and a result that is stored in its dtype has
  an error of eps / 2 to begin with.
* *Over 20 seeds*, since one draw of either error is luck: the ratio of two single draws passes 2 often.

Two norms are taken. The root mean square over all elements and seeds is steady, and the rule as stated. Alone it would
hide a single wrong element among thousands, in the 16-bit types even a grossly wrong one; so the largest element over
all seeds is held to the same rule, four times as wide, since it is the luck of one draw again.

The same rule judges bfloat16 and float16 against torch's own layer in that dtype, and float64 against the
extended-precision oracle.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from oracles import Array

Results = dict[str, Array]

TIMES_TORCH = 2.0
TIMES_EPS = 4.0
# A single draw (a hypothesis example) cannot be averaged over seeds, so its floor is wider: rounding errors of a few
# dozen dependent operations add up in the worst case, and there is no torch error beside it to grow with them.
TIMES_EPS_ONE_DRAW = 64.0


# Of the tf32 format, whose significands have 10 bits behind the point: what products of float32 on tensor cores read.
EPS_TF32 = 2.0**-10


def eps(dtype: torch.dtype, tf32: bool = False) -> float:
    return EPS_TF32 if tf32 else torch.finfo(dtype).eps


def root_mean_square(values: Sequence[Array]) -> float:
    flat = np.concatenate([np.asarray(v, dtype=np.float64).ravel() for v in values])
    return float(np.sqrt(np.mean(flat * flat))) if flat.size else 0.0


def largest(values: Sequence[Array]) -> float:
    return max((float(np.abs(v).max()) for v in values if v.size), default=0.0)


NORMS = {"root mean square": (root_mean_square, 1), "largest element": (largest, 4)}


def check(
    ours: Sequence[Results],
    theirs: Sequence[Results],
    exact: Sequence[Results],
    dtype: torch.dtype,
    tf32: bool = False,
    least: int = 20,
) -> None:
    """Asserts the rule for every named result; each sequence holds one ``Results`` per seed.

    Fewer seeds than 20 are ``least`` where every result has thousands of elements, whose mean is as steady.
    """
    assert len(ours) == len(theirs) == len(exact) >= least, f"the rule is stated over at least {least} seeds"
    failures = []
    for name in exact[0]:
        wanted = [r[name] for r in exact]
        error = [r[name] - w for r, w in zip(ours, wanted, strict=True)]
        error_of_torch = [r[name] - w for r, w in zip(theirs, wanted, strict=True)]
        for norm_name, (norm, width) in NORMS.items():
            e, e_torch, scale = norm(error), norm(error_of_torch), norm(wanted)
            bound = width * max(TIMES_TORCH * e_torch, TIMES_EPS * eps(dtype, tf32) * scale)
            if not e <= bound:  # a NaN fails
                failures.append(f"{name}, {norm_name}: error {e:.3g} > {bound:.3g} (torch {e_torch:.3g}, {scale=:.3g})")
    assert not failures, "\n".join(failures)


def close(ours: Array, wanted: Array, dtype: torch.dtype, scale: float | None = None, terms: int = 1) -> bool:
    """For one draw: the largest difference is within 64 eps of the wanted result's largest element (or ``scale``).

    A sum of n ``terms`` of random sign, about sqrt(n) in size, gathers rounding errors of its n partial sums, about
    eps * n together: relative to the sum, sqrt(n) eps. So the bound widens by sqrt(n) / 8 from n = 64 on.
    """
    assert ours.shape == wanted.shape, (ours.shape, wanted.shape)
    size = largest([wanted]) if scale is None else scale
    return bool(largest([ours - wanted]) <= TIMES_EPS_ONE_DRAW * eps(dtype) * size * max(1.0, terms**0.5 / 8))
