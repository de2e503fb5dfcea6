"""How a measured number is written for people: percent, points, nats, minutes, gibibytes.

Rounding follows the width of the interval, so no digit is shown that the data do not carry.
The numbers themselves come from `compare`; where they stand is for `report` and `page`.
"""

from __future__ import annotations

import math

from timechat.records import Measure

SHARE_UNITS = frozenset({"", "share"})
"""Units of a value from 0 to 1, shown as percent with differences in percentage points."""

TURNED = "lower is better: sign turned in the difference"
"""The note of a measure that `compare` turned, so that a positive difference is better."""

VERDICT_WORDS = {
    "improved": "improved",
    "not_improved": "not improved",
    "inconclusive": "inconclusive",
    "kept": "kept",
    "lost": "lost",
    "undecided": "undecided",
}


def is_share(unit: str) -> bool:
    return unit in SHARE_UNITS


def write_number(value: float, places: int, *, signed: bool = False) -> str:
    """A fixed-point number; never "-0.0", and words of its own where it is not finite."""
    if math.isnan(value):
        return "?"
    if math.isinf(value):
        return "-∞" if value < 0 else "+∞" if signed else "∞"
    return f"{value:+z.{places}f}" if signed else f"{value:z.{places}f}"


def choose_places(measure: Measure) -> int:
    """Decimals for a measure's figures: about two digits of the interval's width.

    One more where an end would be rounded to zero, which would hide the side it lies on.
    """
    factor = 100 if is_share(measure.unit) else 1
    low, high = (factor * end for end in measure.ci95)
    width = high - low
    if is_share(measure.unit):
        places = 0 if 10 <= width < math.inf else 1
    else:
        bounds = ((50.0, 0), (5.0, 1), (0.1, 2), (1e-12, 3))
        places = next((p for bound, p in bounds if bound <= width < math.inf), 2)
    hidden = any(0 < abs(end) < 0.5 * 10**-places for end in (low, high))
    return places + 1 if hidden else places


def write_level(value: float, measure: Measure) -> str:
    """A before or an after: "71 %", or a bare number in the measure's unit; of a measure whose sign
    was turned as it was counted, since nobody reads "-15 % refusals"."""
    places = choose_places(measure)
    value = -value if TURNED in measure.note else value
    if is_share(measure.unit):
        return write_number(100 * value, places) + " %"
    return write_number(value, places)


def write_change(measure: Measure) -> str:
    """The difference: "+69 points", or a bare signed number in the measure's unit."""
    return write_amount(measure.difference, measure.unit, choose_places(measure))


def write_amount(value: float, unit: str, places: int) -> str:
    """A signed difference in `unit`: shares become points, other units stay unnamed."""
    if is_share(unit):
        return write_number(100 * value, places, signed=True) + " points"
    return write_number(value, places, signed=True)


def write_bounds(measure: Measure) -> tuple[str, str]:
    """The interval's ends; signed unless both are on the positive side."""
    low, high = measure.ci95
    factor = 100 if is_share(measure.unit) else 1
    places = choose_places(measure)
    signed = low < 0
    return (
        write_number(factor * low, places, signed=signed),
        write_number(factor * high, places, signed=signed),
    )


def write_interval(measure: Measure) -> str:
    low, high = write_bounds(measure)
    return f"[{low}, {high}]"


def write_duration(seconds: float) -> str:
    """Seconds as "4.2 s", "2 min 35 s" or "3 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def write_bytes(size: float) -> str:
    """Bytes in binary units: "2.1 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
