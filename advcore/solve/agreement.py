"""Whether two back ends agree on the same images, as far as searches that round differently can."""

from __future__ import annotations

import numpy as np

from .backends import Results

WITHIN_1E3 = 0.8
"""Share of the distortions that must be within 1e-3. The CPU's own two paths, native and torch,
have 97% of the digits there."""


def unlike(found: Results, expected: Results) -> str | None:
    """How results differ from others of the same images by more than rounding can; None: no more.

    Searches that round differently part at times, so that one success, the mean distortion by 2%
    and a fifth of the distortions by more than 1e-3 may differ.
    """
    count = len(found["success"])
    other = int((found["success"] != expected["success"]).sum())
    if other > 1:
        return f"wrong results: another success for {other} of {count} images than on the CPU"
    both = found["success"] & expected["success"] & (expected["distortion"] > 0)
    if not both.any():
        return None
    a, b = found["distortion"][both].astype(float), expected["distortion"][both].astype(float)
    ratio, within = float(a.mean() / b.mean()), float((np.abs(a / b - 1) < 1e-3).mean())
    if not abs(ratio - 1) < 0.02 or within < WITHIN_1E3:
        return (
            f"wrong results: mean distortion {ratio:.3f} times that of the CPU, {within:.0%} of "
            f"{int(both.sum())} images within 1e-3"
        )
    return None
