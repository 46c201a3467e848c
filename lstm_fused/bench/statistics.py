"""The few statistics that the benchmark needs; plain Python, so that they are easy to check."""

from __future__ import annotations

import math
from collections.abc import Sequence


def quantile(samples: Sequence[float], q: float) -> float:
    """The q-quantile (0 <= q <= 1), linear between order statistics. ValueError without samples."""
    if not samples:
        raise ValueError("samples: expected at least one")
    ordered = sorted(samples)
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def median(samples: Sequence[float]) -> float:
    """The 0.5-quantile."""
    return quantile(samples, 0.5)


def median_interval(samples: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """An interval of order statistics that holds the true median with at least `confidence`.

    Distribution-free: with k samples cut at either end the coverage is 1 - 2 P(X <= k), X ~ Binomial(n, 1/2).
    Timings are skewed and have outliers, so nothing normal is assumed. With too few samples for the
    confidence asked (fewer than 6 at 0.95) the whole range is returned.
    """
    ordered = sorted(samples)
    n = len(ordered)
    if not n:
        raise ValueError("samples: expected at least one")
    cut, below = 0, 1 / 2**n  # below = P(X <= cut); a float would overflow from n = 1030 on
    while True:
        following = below + math.comb(n, cut + 1) / 2**n
        if 1 - 2 * following < confidence or 2 * (cut + 1) >= n - 1:
            break
        cut, below = cut + 1, following
    return ordered[cut], ordered[n - 1 - cut]


def settled(samples: Sequence[float], tolerance: float, at_least: int = 7) -> bool:
    """True when the median is known to +- `tolerance` of itself (half the 95 % interval)."""
    if len(samples) < at_least:
        return False
    low, high = median_interval(samples)
    return (high - low) / 2 <= tolerance * median(samples)


def geometric_mean(values: Sequence[float]) -> float:
    """exp of the mean logarithm: the right mean for ratios. ValueError if empty or not positive."""
    if not values or min(values) <= 0:
        raise ValueError(f"values: expected positive numbers, got {list(values)}")
    return math.exp(sum(math.log(value) for value in values) / len(values))
