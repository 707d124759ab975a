"""Times as texts."""

from __future__ import annotations


def rough(seconds: float) -> str:
    """Return a time in words of one or two units, such as "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def precise(seconds: float) -> str:
    """Return a time of three digits with its unit, such as "0.132 ms" or "41.3 s"."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
