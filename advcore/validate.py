"""Checks of the arguments. Each error names the argument, what was expected and what came."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .errors import warn_caller

Floats = NDArray[np.float32]
LARGE = 1e30
"""Largest value of an option, well inside the range of float32. Its inverse is the smallest."""
CHANNEL_VALUES = 1 << 16
"""Number of values of each channel that `normalised_note` looks at, to be fast on large arrays."""
REMEDY = (
    "pass them in [0, 1] and put the normalisation into the model: "
    "advcore.models.preprocess(model, mean=..., std=...)"
)


def is_tensor(value: object) -> bool:
    """Return whether this is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def to_numpy(array: Any) -> NDArray[Any]:
    """Convert an array, or a torch tensor on any device, to a NumPy array; bfloat16 to float32."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        if str(array.dtype) == "torch.bfloat16":
            # Torch converts with threads, which hang in the child of a fork.
            bits = np.asarray(array.view(sys.modules["torch"].int16).numpy()).astype(np.uint16)
            return np.left_shift(bits, 16, dtype=np.uint32).view(np.float32)
        array = array.numpy()
    return np.asarray(array)


def array(value: object, name: str) -> NDArray[Any]:
    """Convert a value to a numeric NumPy array, without a copy where it is one already."""
    # NumPy would convert all that has a length and items, even a data set of torch, item by item.
    is_array = isinstance(value, (Sequence, numbers.Number)) or hasattr(value, "__array__")
    if not is_array and not is_tensor(value):
        raise TypeError(f"{name} must be an array or tensor of numbers, got {type(value).__name__}")
    try:
        values = to_numpy(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be an array or tensor of numbers, got {error}") from None
    if values.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be an array or tensor of numbers, got dtype {values.dtype}")
    return values


def images(value: object) -> NDArray[Any]:
    """Check images (N, ...): finite numbers, N >= 0, at least one value an image."""
    return images_with_range(value)[0]


def images_with_range(value: object) -> tuple[NDArray[Any], tuple[Any, Any]]:
    """Check images like `images`, and return them with their smallest and largest value.

    These are 0 where there is no image.
    """
    values = array(value, "images")
    if values.ndim < 2 or 0 in values.shape[1:]:
        hint = ": one image alone is images[None]" if values.ndim == 1 else ""
        raise ValueError(
            f"images must have shape (N, ...) with values in each, got {values.shape}{hint}"
        )
    low, high, finite = value_range(values)
    if not finite:
        bad_rows = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
        if bad_rows.size:
            raise ValueError(
                f"images must be finite, got NaN or infinity in {bad_rows.size} of {len(values)} "
                f"(first: images[{bad_rows[0]}])"
            )
    return values, (low, high)


def value_range(values: NDArray[Any]) -> tuple[Any, Any, bool]:
    """Return smallest and largest value, 0 where there is none, and whether all are finite."""
    if not values.size:
        return 0, 0, True
    if values.dtype == np.float32 and values.flags.c_contiguous:
        return _core.value_range(values)
    finite = values.dtype.kind != "f" or bool(np.isfinite(values).all())
    return values.min(), values.max(), finite


def pair(value: Any, name: str) -> tuple[Any, Any]:
    """Check that a value is a pair, and return its two parts."""
    try:
        first, second = value
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a pair (lower, upper), got {describe(value)}") from None
    return first, second


def box(
    value: tuple[Any, Any],
    shape: tuple[int, ...],
    images: NDArray[Any],
    extent: tuple[Any, Any] | None = None,
) -> tuple[Floats, Floats, Floats]:
    """Check bounds and images, and return flat float32 images (N, n) and both bounds.

    Bounds are scalars or arrays that broadcast to the images. Those that all images share come back
    as (n,), others as (N, n). They are rounded inward to float32. The images must lie inside them,
    floating-point images up to the rounding that `tolerant` allows. They are clipped to the rounded
    bounds. ``extent`` is their smallest and largest value, where it is known.
    """
    low, high = value
    count, n = shape[0], math.prod(shape[1:])
    limits: list[Floats] = []
    exact: list[NDArray[Any]] = []
    for name, part, side in (("lower", low, np.inf), ("upper", high, -np.inf)):
        bound = array(part, f"{name} bound").astype(np.float64)
        if np.isnan(bound).any():
            raise ValueError(f"{name} bound must not be NaN")
        is_per_image = bound.ndim == len(shape) and bound.shape[0] != 1
        if bound.ndim == len(shape) and not is_per_image:
            bound = bound[0]
        try:
            bound = np.broadcast_to(bound, shape if is_per_image else shape[1:])
        except ValueError:
            raise ValueError(
                f"{name} bound must be a number or broadcast to images of shape {shape}, "
                f"got shape {np.shape(part)}"
            ) from None
        limits.append(inward(bound, side).reshape((count, n) if is_per_image else (n,)))
        exact.append(bound)
    lo, hi = limits
    if lo.ndim != hi.ndim:
        lo, hi = (np.broadcast_to(part, (count, n)) for part in (lo, hi))
    if (lo > hi).any():
        raise ValueError("bounds must have lower <= upper (in float32) everywhere")
    minimum, maximum = value_range(images)[:2] if extent is None else extent
    lowest, highest = tolerant(exact[0], exact[1], images.dtype)
    inside: Any = not images.size or (minimum >= lowest.max() and maximum <= highest.min())
    if not inside:
        inside = (images >= lowest) & (images <= highest)
    if not np.all(inside):
        bad_count = int((~inside.reshape(count, n)).any(axis=1).sum())
        limit, hint = "", ""
        if np.ndim(low) == 0 and np.ndim(high) == 0:
            limit = f" [{float(low):g}, {float(high):g}]"
        if limit == " [0, 1]" and minimum >= 0 and maximum > 1.5:
            hint = ": divide by 255, or pass bounds=(0, 255) if the model takes them so"
        elif note := normalised_note(images):
            hint = f"; {note}"
        raise ValueError(
            f"images must lie inside bounds{limit}, got {bad_count} of {count} images outside "
            f"(values from {minimum:g} to {maximum:g}){hint}"
        )
    with np.errstate(over="ignore"):
        flat = np.ascontiguousarray(images.reshape(count, n), dtype=np.float32)
    largest = max(abs(float(minimum)), abs(float(maximum)))
    if largest > LARGE and (bad_count := int((~np.isfinite(flat)).any(axis=1).sum())):
        raise ValueError(
            f"images must be finite in float32, got larger values in {bad_count} of {count}"
        )
    if images.dtype != np.float32 or (images.size and (minimum < lo.max() or maximum > hi.min())):
        flat = np.clip(flat, lo, hi)
    return flat, np.ascontiguousarray(lo), np.ascontiguousarray(hi)


def tolerant(
    low: NDArray[Any], high: NDArray[Any], dtype: np.dtype[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the bounds that images of a type must not cross, wider than the exact ones by 4 eps.

    Normalising an image and undoing it leaves such errors. They are relative to the larger bound of
    a value in magnitude, so that a lower bound of 0 has them too. eps is that of the type. Integers
    have no errors.
    """
    if dtype.kind != "f":
        return low, high
    eps = np.finfo(dtype).eps
    with np.errstate(over="ignore"):
        if dtype.itemsize <= 4:  # the caller's own bounds are rounded to that type
            low, high = (bound.astype(dtype).astype(np.float64) for bound in (low, high))
    largest = np.maximum(
        np.where(np.isfinite(low), np.abs(low), 0.0), np.where(np.isfinite(high), np.abs(high), 0.0)
    )
    return low - 4 * eps * largest, high + 4 * eps * largest


def inward(bound: NDArray[np.float64], side: float) -> Floats:
    """Round a bound to float32 toward `side`: infinity for a lower one, -infinity for an upper."""
    with np.errstate(over="ignore"):
        rounded = bound.astype(np.float32)
    outside = rounded < bound if side > 0 else rounded > bound
    return np.where(outside, np.nextafter(rounded, np.float32(side)), rounded)


def classes(value: object, name: str, count: int, total: int) -> NDArray[np.int32]:
    """Check class numbers (N,) or (N, 1) in [0, K). A single number becomes that of all images."""
    values = array(value, name)
    if values.shape not in ((), (count,), (count, 1)):
        raise ValueError(
            f"{name} must have shape ({count},), one for each image, got {values.shape}"
            f"{_class_rows_note(values, count)}"
        )
    if values.dtype.kind == "f":
        conversion = "long()" if is_tensor(value) else "astype(int)"
        remedy = f"pass {name}.{conversion}"
        if (values != np.rint(values)).any():
            remedy = "they are numbers of classes, not values of a regression or probabilities"
        raise TypeError(f"{name} must be integers, got {values.dtype}: {remedy}")
    values = np.broadcast_to(values if values.ndim == 0 else values.reshape(count), (count,))
    if count and (values.min() < 0 or values.max() >= total):
        row = int(np.flatnonzero((values < 0) | (values >= total))[0])
        hint = "; a single output is the logit of class 1 of two" if total == 2 else ""
        raise ValueError(f"{name} must be in [0, {total}), got {name}[{row}] = {values[row]}{hint}")
    return np.ascontiguousarray(values, dtype=np.int32)


def _class_rows_note(values: NDArray[Any], count: int) -> str:
    """Return a note on rows (N, ...) that come in the place of a class number for each image."""
    if values.ndim != 2 or len(values) != count or not count:
        return ""
    if not np.isin(values, (0, 1)).all():
        return "; values of a regression, probabilities or lists of classes are not supported"
    if (values.sum(axis=1) <= 1).all():
        return "; one-hot? pass argmax(1)"
    return "; an image of several classes, as in multi-label problems, is not supported"


def describe(value: object) -> str:
    """Return a text of a value for a message. Arrays are named by their shapes."""
    shape = getattr(value, "shape", ())
    return f"an array of shape {tuple(shape)}" if shape else repr(value)


def number(
    value: Any,
    name: str,
    *,
    minimum: float = -math.inf,
    lower_limit: float = -math.inf,
    maximum: float = math.inf,
) -> float:
    """Check a finite real number: ``minimum <= value <= maximum`` and ``value > lower_limit``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number) or not minimum <= number <= maximum or number <= lower_limit:
        condition = f"> {lower_limit:g}" if lower_limit > -math.inf else f">= {minimum:g}"
        condition += f" and <= {maximum:g}" if maximum < math.inf else ""
        raise ValueError(f"{name} must be a finite number {condition}, got {value!r}")
    return number


def integer(value: Any, name: str, *, minimum: int, maximum: int = 2**31 - 1) -> int:
    """Check an integer in [minimum, maximum]."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if not minimum <= int(value) <= maximum:
        raise ValueError(f"{name} must be in [{minimum}, {maximum}], got {value}")
    return int(value)


def choice(value: object, name: str, options: tuple[str, ...]) -> str:
    """Check that a value is one of the names."""
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name} must be one of {', '.join(options)}, got {value!r}")
    return str(value)


def normalised_note(images: NDArray[Any]) -> str | None:
    """Return a text about the fault and its remedy, if these are normalised 8-bit images.

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
        distinct_values = np.unique(channel)
        is_whole = (distinct_values == np.rint(distinct_values)).all()
        if not 8 <= len(distinct_values) <= 256 or is_whole:
            return None
    return (
        f"images look normalised: 8-bit pictures with values from {low:.3g} to {high:.3g}, and "
        f"distortion is measured in these units; {REMEDY}"
    )


def warn_if_normalised(images: NDArray[Any]) -> None:
    """Issue a UserWarning at the caller's line with the text of `normalised_note`, if any."""
    note = normalised_note(images)
    if note is not None:
        warn_caller(note)


def _channels(images: NDArray[Any]) -> NDArray[Any] | None:
    """Return values (C, n) of the first images, if they have the shape of pictures of 64 pixels."""
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
    sample = images[: max(1, CHANNEL_VALUES // math.prod(shape[1:]))]
    return np.moveaxis(sample.reshape(len(sample), shape[0], -1), 1, 0).reshape(shape[0], -1)
