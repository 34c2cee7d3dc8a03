"""Numbers as people read them."""

from __future__ import annotations

COUNT_UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))
BYTE_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def format_count(value: float, of: str = "") -> str:
    """Write a count: in full below a million, with three digits and a unit such as M or T(FLOPs) above."""
    for size, unit in COUNT_UNITS:
        if value >= size:
            return f"{_three_digits(value / size)} {unit}{of}"
    return f"{value:,.0f} {of}".strip()


def format_bytes(value: float) -> str:
    """Write a number of bytes in decimal units."""
    for size, unit in BYTE_UNITS:
        if value >= size:
            return f"{_three_digits(value / size)} {unit}"
    return f"{value:,.0f} B"


def format_seconds(value: float) -> str:
    """Write a time in the two units that matter."""
    if value < 0.1:
        return f"{value * 1e3:.0f} ms"
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    if value < 2 * 3600:
        return f"{value // 60:.0f} min {value % 60:02.0f} s"
    if value < 100 * 3600:
        return f"{value // 3600:.0f} h {value % 3600 // 60:02.0f} min"
    return f"{value / 86400:,.1f} days"


def format_hours(value: float) -> str:
    """Write device hours with as many digits as they deserve."""
    if 0 < value < 0.001:
        return "< 0.001"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def format_signed(value: float, digits: int) -> str:
    """Write a difference with its sign, a minus being a minus."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def format_figure(value: float, is_share: bool, unit: bool = True) -> str:
    """Write a benchmark's figure: a share in percent, anything else with three decimals."""
    if not is_share:
        return f"{value:.3f}"
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%" if unit else f"{100 * value:.1f}"


def format_share(part: float, whole: float) -> str:
    """Write a part of a whole in percent; a dash where there is no whole."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
