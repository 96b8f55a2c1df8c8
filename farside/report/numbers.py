"""Numbers as people read them: thousand separators, three significant digits, units."""

import math
from typing import Any, TypeGuard

NONE = "–"


def is_number(x: Any) -> TypeGuard[float]:
    """A finite int or float; JSON's true and NaN are not."""
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def number(x: Any) -> str:
    """Integers in full, other numbers to three significant digits; a dash for what is no number."""
    if not is_number(x):
        return NONE
    if isinstance(x, int):
        return f"{x:,}"
    if x == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(x)))
    x = round(x, digits)  # before choosing the form: 999.9 becomes 1,000
    if abs(x) >= 100:
        return f"{x:,.0f}"
    if abs(x) < 1e-4:
        mantissa, exponent = f"{x:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    digits = 2 - math.floor(math.log10(abs(x)))
    return f"{x:.{digits}f}"


def count(x: Any) -> str:
    """A large count in short: 8,192 or 4.92 million."""
    if is_number(x) and x >= 1e9:
        return f"{number(x / 1e9)} billion"
    if is_number(x) and x >= 1e6:
        return f"{number(x / 1e6)} million"
    return number(round(x)) if is_number(x) else NONE


def percent(share: Any) -> str:
    """A share between 0 and 1 as 41.4%."""
    if not is_number(share):
        return NONE
    return f"{number(float(share) * 100).removesuffix('.0')}%" if share not in (0, 1) else f"{share * 100:.0f}%"


def duration(seconds: Any) -> str:
    """Seconds as 8.31 s, 13 min 32 s or 2 h 05 min."""
    if not is_number(seconds):
        return NONE
    if seconds < 60:
        return f"{number(float(seconds))} s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {rest:02d} min"


def size(count_of_bytes: Any) -> str:
    """Bytes as 1.23 GB (decimal units)."""
    if not is_number(count_of_bytes):
        return NONE
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count_of_bytes >= scale:
            return f"{number(count_of_bytes / scale)} {unit}"
    return f"{number(count_of_bytes)} bytes"


def change(before: str, after: str) -> str:
    """``before -> after``, or only what is known."""
    if before == NONE:
        return after
    return before if after == NONE else f"{before} → {after}"


def short_hash(digest: Any) -> str:
    """The first 12 digits of a hash; a dash where there is none."""
    return str(digest)[:12] if digest else NONE
