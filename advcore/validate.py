"""Checks of the arguments at the edge: each error names argument, expectation and what came."""

from __future__ import annotations

import math
import numbers
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
LARGE = 1e30
"""Options beyond it, or below its inverse, would not survive float32."""
CHANNEL_VALUES = 1 << 16
"""Values of each channel that `normalised_note` looks at."""
REMEDY = (
    "pass them in [0, 1] and put the normalisation into the model: "
    "advcore.models.preprocess(model, mean=..., std=...)"
)


def is_tensor(value: object) -> bool:
    """Whether this is a torch tensor; never imports torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def to_numpy(array: Any) -> NDArray[Any]:
    """A NumPy array of an array or of a torch tensor on any device."""
    if hasattr(array, "detach"):
        array = array.detach().cpu().numpy()
    return np.asarray(array)


def array(value: object, name: str) -> NDArray[Any]:
    """The value as a numeric NumPy array, without a copy where it is one."""
    # NumPy would take whatever has a length and items, a data set of torch too, item by item.
    known = isinstance(value, (Sequence, numbers.Number)) or hasattr(value, "__array__")
    if not known and not is_tensor(value):
        raise TypeError(f"{name} must be an array or tensor of numbers, got {type(value).__name__}")
    if is_tensor(value) and str(getattr(value, "dtype", "")) == "torch.bfloat16":
        value = value.float()  # type: ignore[attr-defined]
    try:
        out = to_numpy(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be an array or tensor of numbers, got {error}") from None
    if out.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be an array or tensor of numbers, got dtype {out.dtype}")
    return out


def images(value: object) -> NDArray[Any]:
    """Images (N, ...) of finite numbers, N >= 0, at least one value an image."""
    out = array(value, "images")
    if out.ndim < 2 or 0 in out.shape[1:]:
        raise ValueError(f"images must have shape (N, ...) with values in each, got {out.shape}")
    if out.dtype.kind == "f":
        bad = np.flatnonzero(~np.isfinite(out).all(axis=tuple(range(1, out.ndim))))
        if bad.size:
            raise ValueError(
                f"images must be finite, got NaN or infinity in {bad.size} of {len(out)} "
                f"(first: images[{bad[0]}])"
            )
    return out


def pair(value: Any, name: str) -> tuple[Any, Any]:
    """Two things."""
    try:
        first, second = value
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a pair (lower, upper), got {shown(value)}") from None
    return first, second


def box(
    value: tuple[Any, Any], shape: tuple[int, ...], given: NDArray[Any]
) -> tuple[Floats, Floats, Floats]:
    """Flat float32 images and bounds.

    Bounds are scalars or arrays that broadcast to the images; those that every image shares come
    back as (n,), others as (N, n). They are rounded inward to float32, and the images, which must
    lie inside them (float32 ones within 4 eps), are moved inside by that.
    """
    low, high = value
    count, n = shape[0], math.prod(shape[1:])
    limits: list[Floats] = []
    exact: list[NDArray[Any]] = []
    for name, part, side in (("lower", low, np.inf), ("upper", high, -np.inf)):
        bound = array(part, f"{name} bound").astype(np.float64)
        if np.isnan(bound).any():
            raise ValueError(f"{name} bound must not be NaN")
        own = bound.ndim == len(shape) and bound.shape[0] != 1
        if bound.ndim == len(shape) and not own:
            bound = bound[0]
        try:
            whole = np.broadcast_to(bound, shape if own else shape[1:])
        except ValueError:
            raise ValueError(
                f"{name} bound must be a number or broadcast to images of shape {shape}, "
                f"got shape {np.shape(part)}"
            ) from None
        limits.append(inward(whole, side).reshape((count, n) if own else (n,)))
        if given.dtype.kind == "f" and given.dtype.itemsize <= 4:  # normalised in that precision
            with np.errstate(over="ignore"):
                nearest = whole.astype(given.dtype).astype(np.float64)
            whole = nearest - np.sign(side) * 4 * np.finfo(np.float32).eps * np.abs(nearest)
        exact.append(whole)
    lo, hi = limits
    if lo.ndim != hi.ndim:
        lo, hi = (np.broadcast_to(part, (count, n)) for part in (lo, hi))
    if (lo > hi).any():
        raise ValueError("bounds must have lower <= upper (in float32) everywhere")
    least, most = (given.min(), given.max()) if given.size else (0, 0)
    inside: Any = not given.size or (least >= exact[0].max() and most <= exact[1].min())
    if not inside:
        inside = (given >= exact[0]) & (given <= exact[1])
    if not np.all(inside):
        bad = int((~inside.reshape(count, n)).any(axis=1).sum())
        limit, hint = "", ""
        if np.ndim(low) == 0 and np.ndim(high) == 0:
            limit = f" [{float(low):g}, {float(high):g}]"
        if limit == " [0, 1]" and least >= 0 and most > 1.5:
            hint = ": divide by 255, or pass bounds=(0, 255) if the model takes them so"
        elif note := normalised_note(given):
            hint = f"; {note}"
        raise ValueError(
            f"images must lie inside bounds{limit}, got {bad} of {count} images outside "
            f"(values from {least:g} to {most:g}){hint}"
        )
    with np.errstate(over="ignore"):
        flat = np.ascontiguousarray(given.reshape(count, n), dtype=np.float32)
    largest = max(abs(float(least)), abs(float(most)))
    if largest > LARGE and (bad := int((~np.isfinite(flat)).any(axis=1).sum())):
        raise ValueError(f"images must be finite in float32, got larger values in {bad} of {count}")
    if given.dtype != np.float32 or (given.size and (least < lo.max() or most > hi.min())):
        flat = np.clip(flat, lo, hi)
    return flat, np.ascontiguousarray(lo), np.ascontiguousarray(hi)


def inward(bound: NDArray[np.float64], side: float) -> Floats:
    """The bound in float32, rounded toward ``side``: infinity for a lower one, -infinity else."""
    with np.errstate(over="ignore"):
        rounded = bound.astype(np.float32)
    outside = rounded < bound if side > 0 else rounded > bound
    return np.where(outside, np.nextafter(rounded, np.float32(side)), rounded)


def classes(value: object, name: str, count: int, total: int) -> NDArray[np.int32]:
    """Class numbers (N,) in [0, K); a single one is that of all images."""
    out = array(value, name)
    if out.shape not in ((), (count,)):
        hint = "; one-hot? pass argmax(1)" if out.shape == (count, total) else ""
        raise ValueError(
            f"{name} must have shape ({count},), one for each image, got {out.shape}{hint}"
        )
    if out.dtype.kind == "f":
        integers = "long()" if is_tensor(value) else "astype(int)"
        raise TypeError(f"{name} must be integers, got {out.dtype}: pass {name}.{integers}")
    out = np.broadcast_to(out, (count,))
    if count and (out.min() < 0 or out.max() >= total):
        bad = int(np.flatnonzero((out < 0) | (out >= total))[0])
        raise ValueError(f"{name} must be in [0, {total}), got {name}[{bad}] = {out[bad]}")
    return np.ascontiguousarray(out, dtype=np.int32)


def shown(value: object) -> str:
    """What came, for a message: an array by its shape."""
    shape = getattr(value, "shape", ())
    return f"an array of shape {tuple(shape)}" if shape else repr(value)


def number(
    value: Any,
    name: str,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
) -> float:
    """A finite real number with ``least <= value <= most`` and ``value > above``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    out = float(value)
    if not math.isfinite(out) or out < least or out <= above or out > most:
        expected = f"> {above:g}" if above > -math.inf else f">= {least:g}"
        expected += f" and <= {most:g}" if most < math.inf else ""
        raise ValueError(f"{name} must be a finite number {expected}, got {value!r}")
    return out


def integer(value: Any, name: str, *, least: int, most: int = 2**31 - 1) -> int:
    """An integer in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if not least <= int(value) <= most:
        raise ValueError(f"{name} must be in [{least}, {most}], got {value}")
    return int(value)


def choice(value: object, name: str, options: tuple[str, ...]) -> str:
    """One of the names."""
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name} must be one of {', '.join(options)}, got {value!r}")
    return str(value)


def normalised_note(images: NDArray[Any]) -> str | None:
    """A text that says what is wrong and the remedy, if these are normalised 8-bit images.

    Images count as normalised 8-bit images if (1) some values are negative and some exceed 1 in
    magnitude, (2) they are not all integers, (3) each channel has at most 256 distinct values.
    Arrays of other shapes, and of fewer than 512 values a channel, are not checked.
    """
    channels = _channels(np.asarray(images))
    if channels is None or channels.shape[1] < 512 or not np.isfinite(channels).all():
        return None
    low, high = float(channels.min()), float(channels.max())
    if low > -0.05 or max(-low, high) <= 1 + 1e-6 or max(-low, high) > 20:
        return None
    for channel in channels:
        different = np.unique(channel)
        if not 8 <= len(different) <= 256 or (different == np.rint(different)).all():
            return None
    return (
        f"images look normalised: 8-bit pictures with values from {low:.3g} to {high:.3g}, and "
        f"distortion is measured in these units; {REMEDY}"
    )


def warn_if_normalised(images: NDArray[Any], *, stacklevel: int = 2) -> None:
    """Issues a UserWarning with the text of `normalised_note`, if there is one."""
    note = normalised_note(images)
    if note is not None:
        warnings.warn(note, stacklevel=stacklevel + 1)


def _channels(images: NDArray[Any]) -> NDArray[Any] | None:
    """Values (C, n) of the first images, if they are shaped like pictures of 64 pixels or more."""
    if images.ndim < 2 or not len(images):
        return None
    shape = images.shape[1:]
    pixels = math.prod(shape[-2:]) if len(shape) > 1 else shape[0]
    if len(shape) == 1:
        count = next((c for c in (1, 3) if math.isqrt(pixels // c) ** 2 * c == pixels), 0)
        shape = (count, pixels // count) if count else ()
    elif len(shape) == 3 and shape[2] in (1, 3) and shape[0] not in (1, 3):
        images, shape = np.moveaxis(images, 3, 1), (shape[2], *shape[:2])
    elif len(shape) == 2:
        shape = (1, *shape)
    if len(shape) < 2 or shape[0] not in (1, 3) or math.prod(shape[1:]) < 64:
        return None
    some = images[: max(1, CHANNEL_VALUES // math.prod(shape[1:]))]
    return np.moveaxis(some.reshape(len(some), shape[0], -1), 1, 0).reshape(shape[0], -1)
