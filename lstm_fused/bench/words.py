"""Numbers of a report as words, for every table."""

from __future__ import annotations

from lstm_fused.bench.measure import Timing


def seconds(value: float) -> str:
    """Three significant digits with the unit that fits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}" if value < 1000 * scale else f"{value / scale:.0f} {unit}"
    return f"{value / 1e-6:.3g} us"


def timed(timing: Timing) -> str:
    """Median with half the interquartile range in percent; `~` where the budget ended before it settled."""
    return f"{'' if timing.settled else '~'}{seconds(timing.median)} ±{100 * timing.spread / 2:.0f}%"


def size(nbytes: int) -> str:
    """Bytes as KiB or MiB."""
    return f"{nbytes / 2**20:g} MiB" if nbytes >= 2**20 else f"{nbytes / 2**10:g} KiB"


def shade(ratio: float) -> str:
    """Colour of a ratio: red where we are slower than torch by more than the noise."""
    return "red" if ratio < 0.97 else "yellow" if ratio < 1.15 else "green"
