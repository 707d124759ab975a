"""The result of a run: one row for each image, and summaries over all of them."""

from __future__ import annotations

import json
import os
import warnings
import zipfile
import zlib
from dataclasses import dataclass, fields
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .validate import to_numpy

_TEXTS = ("engine", "penalty", "loss")
"""Fields that are stored as JSON texts."""
_OPTIONAL = ("penalty_distortion",)
"""Fields that a stored result may lack."""
_READ_ERRORS = (ValueError, EOFError, zipfile.BadZipFile, zlib.error)
"""Errors of NumPy for files that are no archives of arrays."""


@dataclass(eq=False, repr=False)
class Result:
    """Adversarial images of N images and what is known about each, as NumPy arrays.

    ``c`` multiplies the distortion term of the
    chosen penalty, ``c * ||r||^2`` or ``c * ||r||``: a larger c gives a smaller r.

    Attributes
    ----------
    engine : dict of str to str or int
        The back end that ran (``path``: "native", "torch" or "numpy"), where it ran, and why.
    adversarial : (N, ...) float32, a torch tensor where the images were one
        Without success the clean image. With the status interrupted it may be the best image that
        was found, which is not verified.
    success : (N,) bool
        Whether ``adversarial`` was verified to have the required margin.
    distortion : (N,) float32, ``||r||_2``; infinite without success
    rms_distortion : (N,) float32, ``||r||_2 / sqrt(n)``, the distortion of Szegedy et al.
    margin : (N,) float32
        Logit of the target minus the largest other one, at ``adversarial``. Untargeted: the largest
        other one minus that of the label. Without success: the largest margin that was evaluated.
    prediction : (N,) int64, class of ``adversarial``
    target : (N,) int64, -1 where untargeted
    c : (N,) float32 or float64
        The final c, NaN where there is none.
    status : (N,) int8, values of ``advcore.Status``

        - converged: The stopping rule of the last phase was met.
        - already_adversarial: The clean image has the required margin. The distortion is 0.
        - budget: ``max_evaluations`` was reached. The result is the best image so far, if any.
        - stalled: There was no further progress. The result is valid.
        - not_found: No adversarial image was found.
        - non_finite: The model returned NaN or infinity where the search could not avoid it. A
          logit of -infinity masks a class and does not count.
        - interrupted: Ctrl-C, the time limit or the callback ended the run. The result is the best
          image so far, if any.
    evaluations : (N,) int32, pairs of a forward and a backward
    forwards : (N,) int32, forwards without a backward, which ``evaluations`` does not count
    iterations : (N,) int32, steps of all phases
    rescues : (N,) int32
        Fallback searches run because the regular ones found nothing, or only a point far from the
        boundary.
    seconds : float, wall time of the run
    penalty, loss : str, the options of the run
    norm : str, former name of ``penalty``
    penalty_distortion : (N,) float32 or None
        ``||r||_2`` of the minimiser at the final ``c``, the paper's own quantity, where the run
        found one. NaN without success. ``adversarial`` may be a smaller point that the search
        passed.
    """

    engine: dict[str, str | int | float]
    adversarial: Any
    success: NDArray[np.bool_]
    distortion: NDArray[np.float32]
    rms_distortion: NDArray[np.float32]
    margin: NDArray[np.floating[Any]]
    prediction: NDArray[np.int64]
    target: NDArray[np.int64]
    c: NDArray[np.floating[Any]]
    status: NDArray[np.int8]
    evaluations: NDArray[np.int32]
    forwards: NDArray[np.int32]
    iterations: NDArray[np.int32]
    rescues: NDArray[np.int32]
    seconds: float
    penalty: str
    loss: str
    penalty_distortion: NDArray[np.float32] | None = None

    @property
    def norm(self) -> str:
        """Former name of ``penalty``, which warns with a FutureWarning."""
        warnings.warn("Result.norm is called Result.penalty now", FutureWarning, stacklevel=2)
        return self.penalty

    def __len__(self) -> int:
        return len(self.success)

    def __repr__(self) -> str:
        successes = int(self.success.sum())
        mean = f"mean ||r|| {self._mean():.3f}, " if successes else ""
        return f"Result({len(self)} images, {successes} adversarial, {mean}{self._path()})"

    def minimum_distortion(self) -> NDArray[np.float64]:
        """Return the distortions (N,), infinite without success, 0 if already adversarial."""
        return np.where(self.success, self.distortion.astype(np.float64), np.inf)

    @overload
    def curve(self, eps: float) -> float: ...
    @overload
    def curve(self, eps: ArrayLike) -> NDArray[np.float64]: ...
    def curve(self, eps: ArrayLike) -> float | NDArray[np.float64]:
        """Return the share of all images with an adversarial example within ``||r||_2 <= eps``.

        Images without success count as robust at any ``eps``. Clean images that are already
        adversarial count as distortion 0. The share has the shape of ``eps``, a number or an array.
        It is NaN for an empty batch.

        Raises
        ------
        ValueError
            ``eps`` is NaN.
        """
        return self._share(self._within(eps))

    @overload
    def robust_accuracy(self, eps: float) -> float: ...
    @overload
    def robust_accuracy(self, eps: ArrayLike) -> NDArray[np.float64]: ...
    def robust_accuracy(self, eps: ArrayLike) -> float | NDArray[np.float64]:
        """Return ``1 - curve(eps)``, the share of images that withstood the attack within ``eps``.

        It is an upper bound of the true value. For untargeted runs against the true labels it is
        the clean accuracy at ``eps = 0``.
        """
        return self._share(len(self) - self._within(eps))

    def _within(self, eps: ArrayLike) -> NDArray[np.int64]:
        """Return the number of images with an adversarial example within ``eps``."""
        limits = np.asarray(eps, dtype=np.float64)
        if np.isnan(limits).any():
            raise ValueError("eps must not be NaN")
        ordered = np.sort(self.minimum_distortion())
        within = np.searchsorted(ordered, np.minimum(limits, np.finfo(np.float64).max), "right")
        return np.asarray(within, dtype=np.int64)

    def _share(self, images: NDArray[np.int64]) -> float | NDArray[np.float64]:
        share = images / len(self) if len(self) else np.full(images.shape, np.nan)
        return float(share) if images.ndim == 0 else np.asarray(share, dtype=np.float64)

    def status_counts(self) -> dict[str, int]:
        """Return how many images ended with each status, by name, the most frequent first."""
        names = {int(code): name for name, code in _statuses().items()}
        codes, counts = np.unique(self.status, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {names.get(int(codes[i]), str(codes[i])): int(counts[i]) for i in order}

    def summary(self) -> str:
        """Return a few lines of text: success, distortion, evaluations, speed, statuses."""
        count, successes = len(self), int(self.success.sum())
        if count == 0:
            return f"0 images, {self._path()}"
        lines = [
            f"{count} images, {successes} adversarial ({successes / count:.1%}), "
            f"{self.seconds:.3g} s, {images_per_second(self):.4g} images/s, {self._path()}"
        ]
        if successes:
            median = np.median(self.distortion[self.success].astype(np.float64))
            rms = self.rms_distortion[self.success].astype(np.float64)
            lines.append(
                f"distortion ||r||: mean {self._mean():.4f}, median {median:.4f}"
                f"{already_note(self)}; rms: mean {rms.mean():.4f}"
            )
        if self.penalty_distortion is not None and successes:
            penalty = self.penalty_distortion[self.success].astype(np.float64)
            if np.isfinite(penalty).any():
                lines.append(f"penalty minimiser ||r||: mean {np.nanmean(penalty):.4f}")
        lines.append(
            f"evaluations: mean {self.evaluations.mean():.1f}, "
            f"p99 {np.percentile(self.evaluations, 99):.0f}; "
            f"further forwards: mean {self.forwards.mean():.1f}"
        )
        lines.append("status: " + ", ".join(f"{k} {n}" for k, n in self.status_counts().items()))
        return "\n".join(lines)

    def _mean(self) -> float:
        return float(self.distortion[self.success].astype(np.float64).mean())

    def _path(self) -> str:
        return " ".join(str(self.engine[key]) for key in ("path", "device") if key in self.engine)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a compressed ``.npz`` without pickles. Tensors are stored as arrays.

        Raises
        ------
        ValueError
            ``path`` does not end in ``.npz``.
        """
        name = os.fspath(path)
        if not name.endswith(".npz"):
            raise ValueError(f"path must end in .npz, got {name!r}")
        arrays: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _TEXTS:
                arrays[field.name] = np.array(json.dumps(value))
            elif value is not None:
                arrays[field.name] = to_numpy(value)
        np.savez_compressed(name, **arrays)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Result:
        """Read a file of `save`, also of former versions. Its tensors come back as NumPy arrays.

        Raises
        ------
        ValueError
            The file is not a stored result.
        """
        values: dict[str, Any] = {}
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                values = {name: stored[name] for name in stored.files}
        except (TypeError, AttributeError, *_READ_ERRORS) as error:  # An .npy file gives an array.
            raise ValueError(f"{os.fspath(path)}: not a stored result") from error
        names = {field.name for field in fields(Result)}
        if "norm" in values and "penalty" not in values:  # Former versions wrote it so.
            values["penalty"] = values.pop("norm")
        missing = sorted(names - set(values) - set(_OPTIONAL))
        if missing or set(values) - names:
            raise ValueError(
                f"{os.fspath(path)}: not a stored result; missing {missing}, "
                f"unknown {sorted(set(values) - names)}"
            )
        for name in _TEXTS:
            values[name] = json.loads(str(values[name]))
        values["seconds"] = float(values["seconds"])
        return Result(**values)


def images_per_second(result: Result) -> float:
    """Return the finished images, all but the interrupted ones, per second of wall time."""
    finished = int((result.status != status_code("interrupted")).sum())
    return finished / max(result.seconds, 1e-9)


def already_note(result: Result) -> str:
    """Return a note on a mean distortion, " (N already adversarial count as 0)", or nothing."""
    already = int((result.status == status_code("already_adversarial")).sum())
    return f" ({already} already adversarial count as 0)" if already else ""


def status_code(name: str) -> int:
    """Return the value of a status by name, from the compiled module."""
    return _statuses()[name]


def _statuses() -> dict[str, int]:
    from ._core import Status

    return {name: int(member.value) for name, member in Status.__members__.items()}
