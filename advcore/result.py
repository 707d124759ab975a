"""What a run returns: one row per image, and a few figures over all of them."""

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
_OPTIONAL = ("penalty_distortion",)
_BROKEN = (ValueError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(eq=False, repr=False)
class Result:
    """Adversarial images and what is known about each; N images, NumPy unless said otherwise.

    An image without success holds its clean image. ``c`` multiplies the distortion term of the
    chosen penalty, ``c * ||r||^2`` or ``c * ||r||``: a larger c gives a smaller r.

    Attributes
    ----------
    engine : dict of str to str or int
        Which path ran (``path``: "native", "torch" or "numpy"), where, and why.
    adversarial : (N, ...) float32, a torch tensor where the images were one
        The clean image without success, or, with the status interrupted, one that was found but
        not verified.
    success : (N,) bool
        Whether ``adversarial`` was verified to have the required margin.
    distortion : (N,) float32, ``||r||_2``; infinite without success
    rms_distortion : (N,) float32, ``||r||_2 / sqrt(n)``, the distortion of Szegedy et al.
    margin : (N,) float32
        Target's logit minus the best other, at ``adversarial``; untargeted: best other minus the
        label's. Without success, the best margin seen.
    prediction : (N,) int64, class of ``adversarial``
    target : (N,) int64, -1 where untargeted
    c : (N,) float32 or float64, its final value; NaN where there is none
    status : (N,) int8, values of ``advcore.Status``

        - converged: the stopping rule of the last phase was met;
        - already_adversarial: the clean image has the required margin, the distortion is 0;
        - budget: ``max_evaluations`` reached; the best so far, if any;
        - stalled: no further progress; the result is valid;
        - not_found: no adversarial image found;
        - non_finite: the model returned NaN or infinity (but for -infinity in the logits, which
          masks a class) where the search could not avoid it;
        - interrupted: by Ctrl-C, the time limit or the callback; the best so far, if any.
    evaluations : (N,) int32, pairs of a forward and a backward
    forwards : (N,) int32, forwards without a backward, not counted in ``evaluations``
    iterations : (N,) int32
    rescues : (N,) int32, further searches, where those of the effort had found nothing, or an
        image only on the way outward at the end of a search
    seconds : float, wall time of the run
    penalty, loss : str, as given
    norm : str, former name of ``penalty``
    penalty_distortion : (N,) float32 or None
        ``||r||_2`` of the minimiser at the final ``c``, the paper's own quantity, where the run
        found one; NaN without success. `adversarial` may be a smaller point seen on the way.
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
        """Former name of ``penalty``; warns with a FutureWarning."""
        warnings.warn("Result.norm is called Result.penalty now", FutureWarning, stacklevel=2)
        return self.penalty

    def __len__(self) -> int:
        return len(self.success)

    def __repr__(self) -> str:
        found = int(self.success.sum())
        mean = f"mean ||r|| {self._mean():.3f}, " if found else ""
        return f"Result({len(self)} images, {found} adversarial, {mean}{self._path()})"

    def minimum_distortion(self) -> NDArray[np.float64]:
        """Distortion of each image, (N,): infinite without success, 0 if adversarial already."""
        return np.where(self.success, self.distortion.astype(np.float64), np.inf)

    @overload
    def curve(self, eps: float) -> float: ...
    @overload
    def curve(self, eps: ArrayLike) -> NDArray[np.float64]: ...
    def curve(self, eps: ArrayLike) -> float | NDArray[np.float64]:
        """Share of all images with an adversarial example within ``||r||_2 <= eps``.

        Images without success count as robust at any ``eps``, images that were adversarial from
        the start as distortion 0. ``eps`` is a number or an array, and so is what is returned;
        NaN for an empty batch.
        """
        return self._share(self._within(eps))

    @overload
    def robust_accuracy(self, eps: float) -> float: ...
    @overload
    def robust_accuracy(self, eps: ArrayLike) -> NDArray[np.float64]: ...
    def robust_accuracy(self, eps: ArrayLike) -> float | NDArray[np.float64]:
        """``1 - curve(eps)``: share of images that withstood the attack within ``eps``.

        An upper bound of the true value. For untargeted runs against the true labels it starts,
        at ``eps = 0``, from the clean accuracy.
        """
        return self._share(len(self) - self._within(eps))

    def _within(self, eps: ArrayLike) -> NDArray[np.int64]:
        """Images with an adversarial example within ``eps``."""
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
        """How many images ended with each status, by name; most frequent first."""
        names = {int(code): name for name, code in _statuses().items()}
        codes, counts = np.unique(self.status, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {names.get(int(codes[i]), str(codes[i])): int(counts[i]) for i in order}

    def summary(self) -> str:
        """A few lines of text: success, distortion, evaluations, speed, statuses."""
        count, found = len(self), int(self.success.sum())
        if count == 0:
            return f"0 images, {self._path()}"
        lines = [
            f"{count} images, {found} adversarial ({found / count:.1%}), {self.seconds:.3g} s, "
            f"{images_per_second(self):.4g} images/s, {self._path()}"
        ]
        if found:
            median = np.median(self.distortion[self.success].astype(np.float64))
            rms = self.rms_distortion[self.success].astype(np.float64)
            lines.append(
                f"distortion ||r||: mean {self._mean():.4f}, median {median:.4f}"
                f"{already_note(self)}; rms: mean {rms.mean():.4f}"
            )
        if self.penalty_distortion is not None and found:
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
        """Write a compressed ``.npz`` without pickles; tensors are stored as arrays.

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
        """Read a file of `save`, also of former versions; every array is NumPy.

        Raises
        ------
        ValueError
            The file is not a stored result.
        """
        values: dict[str, Any] = {}
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                values = {name: stored[name] for name in stored.files}
        except (TypeError, AttributeError, *_BROKEN) as error:  # of an array: no "with", no files
            raise ValueError(f"{os.fspath(path)}: not a stored result") from error
        known = {field.name for field in fields(Result)}
        if "norm" in values and "penalty" not in values:  # as former versions wrote it
            values["penalty"] = values.pop("norm")
        missing = sorted(known - set(values) - set(_OPTIONAL))
        if missing or set(values) - known:
            raise ValueError(
                f"{os.fspath(path)}: not a stored result; missing {missing}, "
                f"unknown {sorted(set(values) - known)}"
            )
        for name in _TEXTS:
            values[name] = json.loads(str(values[name]))
        values["seconds"] = float(values["seconds"])
        return Result(**values)


def images_per_second(result: Result) -> float:
    """Finished images, all but the interrupted ones, by wall time."""
    finished = int((result.status != status_code("interrupted")).sum())
    return finished / max(result.seconds, 1e-9)


def already_note(result: Result) -> str:
    """What stands behind a mean distortion: "(N already adversarial count as 0)", or nothing."""
    already = int((result.status == status_code("already_adversarial")).sum())
    return f" ({already} already adversarial count as 0)" if already else ""


def status_code(name: str) -> int:
    """Value of a status by name, from the compiled module."""
    return _statuses()[name]


def _statuses() -> dict[str, int]:
    from ._core import Status

    return {name: int(member.value) for name, member in Status.__members__.items()}
