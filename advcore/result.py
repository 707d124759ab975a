"""The result of a run: one row for each image, and summaries over all of them."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._arrays import read_archive
from ._files import replacing
from .validate import to_numpy

_TEXTS = ("engine", "penalty", "loss", "norm")
"""Fields that are stored as JSON texts."""
_COUNTS = ("rounds", "round_seconds", "fillings")
"""Entries of ``engine`` that add up over runs."""
_OPTIONAL = ("penalty_distortion", "norm", "queries")
"""Fields that a stored result may lack."""
_KINDS = {
    "adversarial": "f",
    "success": "b",
    "distortion": "f",
    "rms_distortion": "f",
    "margin": "f",
    "prediction": "iu",
    "target": "iu",
    "c": "f",
    "status": "iu",
    "evaluations": "iu",
    "forwards": "iu",
    "iterations": "iu",
    "rescues": "iu",
    "penalty_distortion": "f",
    "queries": "iu",
}
"""Kind of the values of each field that has a row for each image, as letters of ``dtype.kind``."""


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
    distortion : (N,) float32, ``||r||`` in the ``norm`` of the run; infinite without success
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
        - budget: ``max_evaluations`` or ``max_queries`` was reached. The result is the best image
          so far, if any.
        - stalled: No step gains any more. It is as good a result as a converged one, and
          the usual end on networks with kinks, such as ResNets.
        - not_found: No adversarial image was found.
        - non_finite: The model returned NaN or infinity where the search could not avoid it. A
          logit of -infinity masks a class and does not count.
        - interrupted: Ctrl-C, the time limit, the callback or an error of the model ended the run.
          The result is the best image so far, if any.
        - no_gradient: An adversarial image was found, but the gradient at the clean image was zero
          on every network that was tried. The way began in a random direction, and the distortion
          may be far above the smallest.
        - good_enough: The distortion is ``stop_at`` or less, which ended the search.
    evaluations : (N,) int32, pairs of a forward and a backward
    forwards : (N,) int32, forwards without a backward, which ``evaluations`` does not count
    iterations : (N,) int32, steps of all phases
    rescues : (N,) int32
        Fallback searches run because the regular ones found nothing, or only a point far from the
        boundary.
    seconds : float, wall time of the run, or the sum of those of `concatenate`
    penalty, loss : str, the options of the run
    norm : "l2", "linf" or "l1", that of ``distortion``
    penalty_distortion : (N,) float32 or None
        ``||r||_2`` of the minimiser at the final ``c``, the paper's own quantity, where the run
        found one. NaN without success. ``adversarial`` may be a smaller point that the search
        passed.
    queries : (N,) int32
        All forwards and all backwards for the image: twice ``evaluations``, ``forwards``, and the
        forwards of its label and its verification. Of results of former versions, and those made by
        hand, without the last.
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
    norm: str = "l2"
    queries: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))

    def __post_init__(self) -> None:
        if len(self.queries) != len(self.success):
            self.queries = (2 * self.evaluations + self.forwards).astype(np.int32)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"queries": np.empty(0, np.int32), **_of_now(state)})
        self.__post_init__()  # former versions lack the queries

    def __len__(self) -> int:
        return len(self.success)

    def __getitem__(self, rows: Any) -> Result:
        """Return the result of these images: a slice, row numbers, a mask (N,), or one number.

        One number gives a result of one image. ``seconds`` is the share of the rows by their
        number. ``engine`` is that of the whole run.

        Raises
        ------
        TypeError
            ``rows`` is none of these.
        IndexError
            An image does not exist, or a mask has another length.
        """
        index = _row_numbers(rows, len(self))
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if hasattr(value, "shape"):
                values[name] = value[index]
        values["seconds"] = self.seconds * len(index) / max(len(self), 1)
        return Result(**values)

    @staticmethod
    def concatenate(results: Iterable[Result]) -> Result:
        """Return one result of the images of several, in their order.

        ``seconds`` and the counts of ``engine`` are sums. What else differs in ``engine`` is joined
        by commas. Tensors stay tensors if all results have them, on the device of the first.

        Raises
        ------
        TypeError
            Something else than results came.
        ValueError
            There are none, or they differ in the shape of their images, ``penalty``, ``loss`` or
            ``norm``.
        """
        parts = list(results)
        for part in parts:
            if not isinstance(part, Result):
                raise TypeError(f"results must be Result objects, got {type(part).__name__}")
        if not parts:
            raise ValueError("results must be one Result or more, got none")
        shapes = [tuple(part.adversarial.shape[1:]) for part in parts]
        for name, values in (
            ("shape of their images", shapes),
            ("penalty", [part.penalty for part in parts]),
            ("loss", [part.loss for part in parts]),
            ("norm", [part.norm for part in parts]),
        ):
            if len(set(values)) > 1:
                found = ", ".join(str(value) for value in dict.fromkeys(values))
                raise ValueError(f"results must have one {name}, got {found}")
        joined: dict[str, Any] = {
            field.name: _joined_rows([getattr(part, field.name) for part in parts], parts)
            for field in fields(Result)
            if field.name not in (*_TEXTS, "seconds")
        }
        return Result(
            engine=_joined_engines([part.engine for part in parts]),
            seconds=sum(part.seconds for part in parts),
            penalty=parts[0].penalty,
            loss=parts[0].loss,
            norm=parts[0].norm,
            **joined,
        )

    def __repr__(self) -> str:
        successes = int(self.success.sum())
        mean = f"mean {self.measure} {self._mean():.3f}{already_note(self)}, " if successes else ""
        return f"Result({len(self)} images, {successes} adversarial, {mean}{self._path()})"

    @property
    def measure(self) -> str:
        """The distortion as a formula, ``||r||``, with the norm where that is not l2."""
        return "||r||" if self.norm == "l2" else f"||r||_{self.norm[1:]}"

    def minimum_distortion(self) -> NDArray[np.float64]:
        """Return the distortions (N,) in float64, infinite without success.

        They are those of ``distortion``, also in results that were made or changed by hand.
        """
        return np.where(self.success, self.distortion.astype(np.float64), np.inf)

    @overload
    def curve(self, eps: float) -> float: ...
    @overload
    def curve(self, eps: ArrayLike) -> NDArray[np.float64]: ...
    def curve(self, eps: ArrayLike) -> float | NDArray[np.float64]:
        """Return the share of all images with an adversarial example within ``||r|| <= eps``.

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

    def status_text(self) -> str:
        """Return the statuses and their numbers of images as one line of text."""
        notes = {"stalled": " (no step gains any more: as good as converged)"}
        counts = self.status_counts().items()
        return ", ".join(f"{name} {count}{notes.get(name, '')}" for name, count in counts)

    def summary(self) -> str:
        """Return a few lines of text: success, distortion, evaluations, speed, statuses.

        Where a model ran through torch, a line says why it did not run in the engine.
        """
        count, successes = len(self), int(self.success.sum())
        if count == 0:
            return f"0 images, {self._path()}"
        lines = [
            f"{count} images, {successes} adversarial ({successes / count:.1%}), "
            f"{self.seconds:.3g} s, {images_per_second(self):.4g} images/s, {self._path()}"
        ]
        if self.engine.get("path") == "torch" and "reason" in self.engine:
            lines.append(f"why through torch: {self.engine['reason']}")
        if successes:
            median = np.median(self.distortion[self.success].astype(np.float64))
            rms = self.rms_distortion[self.success].astype(np.float64)
            lines.append(
                f"distortion {self.measure}: mean {self._mean():.4f}, median {median:.4f}"
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
        lines.append("status: " + self.status_text())
        blind = int((self.status == status_code("no_gradient")).sum())
        if blind:
            lines.append(
                f"no gradient at {blind} of the clean images: found from a random direction, "
                "distortions may be far above the smallest"
            )
        return "\n".join(lines)

    def _mean(self) -> float:
        return float(self.distortion[self.success].astype(np.float64).mean())

    def _path(self) -> str:
        return " ".join(str(self.engine[key]) for key in ("path", "device") if key in self.engine)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a compressed ``.npz`` without pickles. Tensors are stored as arrays.

        The file appears at ``path`` only when it is complete, and then takes the place of a former
        one.

        Raises
        ------
        ValueError
            ``path`` does not end in ``.npz``.
        OSError
            The file cannot be written. A former one is as it was.
        """
        name = os.fspath(path)
        if not name.endswith(".npz"):
            raise ValueError(f"path must end in .npz, got {name!r}")
        arrays: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name in _TEXTS:
                arrays[entry.name] = np.array(json.dumps(value))
            elif value is not None:
                arrays[entry.name] = to_numpy(value)
        with replacing(name) as file:
            np.savez_compressed(file, **arrays)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Result:
        """Read a file of `save`, also of former versions. Its tensors come back as NumPy arrays.

        The file may come from anywhere: nothing of it is run, and all fields are checked for
        their kinds, lengths and values.

        Raises
        ------
        ValueError
            The file is not a stored result, or is damaged.
        OSError
            The file cannot be read.
        """
        try:
            values: dict[str, Any] = dict(read_archive(path, _check_names))
            values = _of_now(values)
            for name in _TEXTS:
                if name in values:
                    values[name] = _json(values[name], name)
            values["seconds"] = _number(values["seconds"], "seconds")
            _check_fields(values)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: not a stored result: {error}") from error
        return Result(**values)


def _of_now(values: dict[str, Any]) -> dict[str, Any]:
    """Rename the fields of former versions: their ``norm`` was the penalty, and all were in l2."""
    if "norm" not in values or "penalty" in values:
        return values
    return {("penalty" if name == "norm" else name): values[name] for name in values}


def _row_numbers(rows: Any, count: int) -> NDArray[np.intp]:
    """Return the row numbers, from 0, that an index of `Result` means."""
    if isinstance(rows, slice):
        return np.arange(count)[rows]
    index = to_numpy(rows)
    if index.size == 0 and index.dtype.kind == "f":  # an empty list
        index = index.astype(np.intp)
    if isinstance(rows, tuple) or index.ndim > 1 or index.dtype.kind not in "bui":
        raise TypeError(f"rows must be a slice, row numbers or a mask (N,), got {rows!r}")
    if index.dtype.kind == "b" and index.shape != (count,):
        raise IndexError(f"a mask of the rows must have shape ({count},), got {index.shape}")
    return np.atleast_1d(np.arange(count)[index])


def _joined_rows(values: list[Any], parts: list[Result]) -> Any:
    """Return the rows of a field of all results; NaN where a result lacks an optional field."""
    if all(value is None for value in values):
        return None
    values = [
        np.full(len(part), np.nan, np.float32) if value is None else value
        for value, part in zip(values, parts, strict=True)
    ]
    if all(hasattr(value, "detach") for value in values):
        torch = sys.modules["torch"]
        return torch.cat([value.to(values[0].device) for value in values])
    return np.concatenate([to_numpy(value) for value in values])


def _joined_engines(engines: list[dict[str, str | int | float]]) -> dict[str, str | int | float]:
    """Return one record of what ran, of those of several runs."""
    joined: dict[str, str | int | float] = {}
    for name in dict.fromkeys(name for engine in engines for name in engine):
        values = [engine[name] for engine in engines if name in engine]
        if name in _COUNTS:
            joined[name] = sum(values)  # type: ignore[arg-type]
        elif len(set(values)) == 1:
            joined[name] = values[0]
        else:
            joined[name] = ", ".join(dict.fromkeys(str(value) for value in values))
    return joined


def _check_names(names: Collection[str]) -> None:
    """Raise ValueError unless a stored result has these members."""
    expected = {field.name for field in fields(Result)}
    present = set(_of_now(dict.fromkeys(names)))
    missing, unknown = sorted(expected - present - set(_OPTIONAL)), sorted(present - expected)
    if missing or unknown:
        raise ValueError(f"missing {missing}, unknown {unknown}")


def _json(value: NDArray[Any], name: str) -> Any:
    """Return what a stored JSON text holds: a mapping for ``engine``, else a text."""
    try:
        content = json.loads(str(value))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON ({error})") from error
    if name != "engine":
        if not isinstance(content, str):
            raise ValueError(f"{name} must be a text, got {content!r:.60}")
    elif not isinstance(content, dict) or not all(
        isinstance(entry, (str, int, float)) for entry in content.values()
    ):
        raise ValueError(f"engine must map names to texts and numbers, got {content!r:.60}")
    return content


def _number(value: NDArray[Any], name: str) -> float:
    """Return a stored finite number that is not negative."""
    if value.shape != () or value.dtype.kind not in "fiu":
        raise ValueError(f"{name} must be a number, got {value.dtype} of shape {value.shape}")
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"{name} must be finite and >= 0, got {float(value)}")
    return float(value)


def _check_fields(values: Mapping[str, Any]) -> None:
    """Raise ValueError unless all fields with a row for each image fit together."""
    images = values["success"].shape[:1]
    for name, kinds in _KINDS.items():
        array = values.get(name)
        if array is None:
            continue
        if array.dtype.kind not in kinds:
            raise ValueError(f"{name} holds {array.dtype}")
        fits = array.ndim > 1 if name == "adversarial" else array.ndim == 1
        if not fits or array.shape[:1] != images:
            raise ValueError(f"{name} has shape {array.shape} for {images} images")
    unknown = set(np.unique(values["status"]).tolist()) - set(_statuses().values())
    if unknown:
        raise ValueError(f"status holds {sorted(unknown)}, which are no values of advcore.Status")


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
