"""Random images on which a model is tried and its rounding is measured; the trial of a backward."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..options import Options
from ..oracles import NumpyOracle
from ..oracles.gradient_check import check_gradient
from .backends import Backend
from .rounds import OracleBackend

Floats = NDArray[np.float32]
PROBE_IMAGES = 64
"""Images on which a model is tried, and the noise of its logits is measured."""
UNBOUNDED_WIDTH = 256.0
"""Distance of bounds above which they say nothing about the images."""


def probe_images(lo: Floats, hi: Floats) -> Floats:
    """Random images inside the bounds, (PROBE_IMAGES, n).

    They are not the caller's, and they are in [0, 1] where values or images have bounds of their
    own: what is measured on them must not depend on which images are in the run. Bounds that are
    wider than 8-bit values count as none: logits at +-1e6 differ by more than those of any image.
    In both cases the verification measures at each result, see `are_probed`.
    """
    u = np.random.default_rng(0).random((PROBE_IMAGES, lo.shape[-1]), dtype=np.float32)
    if not _bounds_are_shared(lo, hi):
        return u
    low, high = float(lo.min()), float(hi.min())
    if high - low > UNBOUNDED_WIDTH:
        low = min(max(0.0, low), high - 1)
        high = low + 1
    return (low + (high - low) * u).astype(np.float32)


def probed_noise(backend: Backend, lo: Floats, hi: Floats) -> float:
    """`Backend.noise` on `probe_images`; for a module that is kept it is measured once."""
    noises = getattr(getattr(backend.verifier, "oracle", None), "noises", None)
    if noises is None:
        return backend.noise(probe_images(lo, hi))
    is_shared = _bounds_are_shared(lo, hi)
    bounds = (float(lo.min()), float(hi.max())) if is_shared else (0.0, 1.0)
    key = (backend.info.path, is_shared, *bounds)
    if key not in noises:
        noises[key] = backend.noise(probe_images(lo, hi))
    return float(noises[key])


def trial_images(lo: Floats, hi: Floats) -> tuple[Floats, tuple[Floats, Floats]]:
    """Random images (PROBE_IMAGES, n) and bounds (n,) around them, for `choose_backend`.

    They take the place of the caller's images where nothing may depend on which of them are in the
    run. They are inside bounds that all images share, else in [0, 1].
    """
    if lo.ndim == 2:
        lo, hi = np.zeros_like(lo[0]), np.ones_like(hi[0])
    with np.errstate(over="ignore"):
        is_wide = hi - lo > UNBOUNDED_WIDTH
    low = np.where(is_wide, np.minimum(np.maximum(lo, 0), hi - 1), lo)
    high = np.where(is_wide, low + 1, hi)
    u = np.random.default_rng(1).random((PROBE_IMAGES, len(lo)), dtype=np.float32)
    return np.clip(low + (high - low) * u, lo, hi), (lo, hi)


def are_probed(lo: Floats, hi: Floats) -> bool:
    """Whether `probe_images` are like any image inside the bounds."""
    return not lo.size or (
        _bounds_are_shared(lo, hi) and float(hi.min()) - float(lo.min()) <= UNBOUNDED_WIDTH
    )


def _bounds_are_shared(lo: Floats, hi: Floats) -> bool:
    """Whether all values of all images have the same bounds."""
    return lo.ndim == 1 and bool(lo.min() == lo.max() and hi.min() == hi.max())


def check_backward(
    backend: Backend, sample: Floats, box: tuple[Floats, Floats], options: Options
) -> None:
    """Compare the backward of a NumPy model with differences of its forward; see `check_gradient`.

    Torch derives its gradients itself, and a straight-through gradient, which a module may have on
    purpose, is of another size than the differences.
    """
    if isinstance(backend, OracleBackend) and isinstance(backend.oracle, NumpyOracle):
        batches = backend.oracle.batches
        rows = options.batch_size or len(sample)
        check_gradient(backend.oracle, sample, box, batches.most if batches else rows)
