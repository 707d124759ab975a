"""The result of a run: one row for each image, and summaries over all of them."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import validate
from .._files import write_text
from . import files, statistics, tables
from .files import TEXTS, of_now
from .record import Record
from .rows import joined_engines, joined_records, joined_rows, row_numbers
from .statistics import ClassStatistics


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
    label : (N,) int64
        The ``labels`` of the call; of an untargeted run without them the model's own predictions.
        -1 where neither is known.
    record : dict of dict
        The run that it is a result of, by part and name:

        - options: every option, as a number or a text. Arrays are named by a hash.
        - model: its ``name``, and a ``hash`` of its weights, structure and code.
        - input: ``count`` and ``shape`` of the images, where the ``labels`` come from ("given",
          "predicted" or "none"), and SHA-256 of the arrays, in C order: ``images_sha256`` and
          ``starts_sha256`` of float32 values (of a pool, those of its images and then its int64
          classes), ``labels_sha256`` and ``targets_sha256`` of int64 values.
        - versions: of advcore, Python, NumPy and torch, and the instruction set.
        - run: when it ``began``, in UTC, and the ``command`` where there was one.

        Of a part of the images it is that of the whole run. Empty in results of former versions,
        and without hashes as the option ``record`` says.
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
    label: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    record: Record = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.queries) != len(self.success):
            self.queries = (2 * self.evaluations + self.forwards).astype(np.int32)
        if len(self.label) != len(self.success):
            self.label = np.full(len(self.success), -1, np.int64)

    def __setstate__(self, state: dict[str, Any]) -> None:
        absent = {"queries": np.empty(0, np.int32), "label": np.empty(0, np.int64), "record": {}}
        self.__dict__.update({**absent, **of_now(state)})
        self.__post_init__()  # former versions lack some fields

    def __len__(self) -> int:
        return len(self.success)

    def __getitem__(self, rows: Any) -> Result:
        """Return the result of these images: a slice, row numbers, a mask (N,), or one number.

        One number gives a result of one image. ``seconds`` is the share of the rows by their
        number. ``engine`` and ``record`` are those of the whole run.

        Raises
        ------
        TypeError
            ``rows`` is none of these.
        IndexError
            An image does not exist, or a mask has another length.
        """
        index = row_numbers(rows, len(self))
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if hasattr(value, "shape"):
                values[name] = value[index]
        values["seconds"] = self.seconds * len(index) / max(len(self), 1)
        return Result(**values)

    @staticmethod
    def concatenate(results: Iterable[Result]) -> Result:
        """Return one result of the images of several, in their order.

        ``seconds`` and the counts of ``engine`` are sums. What else differs in ``engine``, and in
        ``record``, is joined by commas. Tensors stay tensors if all results have them, on the
        device of the first.

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
            field.name: joined_rows([getattr(part, field.name) for part in parts], parts)
            for field in fields(Result)
            if field.name not in (*TEXTS, "seconds")
        }
        return Result(
            engine=joined_engines([part.engine for part in parts]),
            seconds=sum(part.seconds for part in parts),
            penalty=parts[0].penalty,
            loss=parts[0].loss,
            norm=parts[0].norm,
            record=joined_records([part.record for part in parts]),
            **joined,
        )

    def __repr__(self) -> str:
        successes, note = int(self.success.sum()), statistics.already_note(self)
        mean = self.distortion[self.success].astype(np.float64).mean() if successes else 0.0
        text = f"mean {self.measure} {mean:.3f}{note}, " if successes else ""
        return f"Result({len(self)} images, {successes} adversarial, {text}{self.path_text()})"

    def _repr_html_(self) -> str:
        """Return the summary for a notebook."""
        return f"<pre>{html.escape(self.summary())}</pre>"

    @property
    def measure(self) -> str:
        """The distortion as a formula, ``||r||``, with the norm where that is not l2."""
        return "||r||" if self.norm == "l2" else f"||r||_{self.norm[1:]}"

    @property
    def targeted(self) -> bool:
        """Whether the images were to get given classes."""
        return bool(len(self)) and bool((self.target >= 0).all())

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

        It is an upper bound of the true value. It is an accuracy only of an untargeted run with
        ``labels``, and then the clean accuracy at ``eps = 0``. Without labels it is the share of
        unchanged predictions, and of a targeted run that of images not taken for their target.
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
        names = statistics.status_names()
        codes, counts = np.unique(self.status, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {names.get(int(codes[i]), str(codes[i])): int(counts[i]) for i in order}

    def status_text(self) -> str:
        """Return the statuses and their numbers of images as one line of text."""
        notes = {"stalled": " (no step gains any more: as good as converged)"}
        counts = self.status_counts().items()
        return ", ".join(f"{name} {count}{notes.get(name, '')}" for name, count in counts)

    def summary(self, eps: ArrayLike = ()) -> str:
        """Return a few lines of text: success, accuracies, distortion, evaluations, statuses.

        Where a model ran through torch, a line says why it did not run in the engine. The clean
        accuracy is that of an untargeted run with ``labels``. At each ``eps``, a number or several,
        there is the share of `robust_accuracy`.
        """
        return statistics.summary(self, _limits(eps))

    def statistics(self, eps: ArrayLike = ()) -> dict[str, Any]:
        """Return the figures of `summary` as numbers and texts, which JSON can hold.

        ``clean_accuracy`` is None where the run had no labels or had targets. ``withstood`` has the
        share of `robust_accuracy` at each ``eps``. ``distortion`` is over the successes,
        ``distortion_of_changed`` over those that were not adversarial already. A figure over no
        image is None.
        """
        return statistics.statistics(self, _limits(eps))

    def per_class(self, eps: ArrayLike = ()) -> list[ClassStatistics]:
        """Return the figures of each class, by the label of its images.

        Raises
        ------
        ValueError
            An image has no label: the run had targets and no ``labels``.
        """
        return statistics.per_class(self, _limits(eps))

    def class_counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return which class was led to which: the classes (K,), and counts (K, K) of images.

        A row is the label, a column the class of the adversarial image. Images without success are
        in neither. The classes are those that occur.

        Raises
        ------
        ValueError
            An image has no label: the run had targets and no ``labels``.
        """
        return statistics.class_counts(self)

    def path_text(self) -> str:
        """Return the back end and the device that ran."""
        return " ".join(str(self.engine[key]) for key in ("path", "device") if key in self.engine)

    def to_dataframe(self) -> Any:
        """Return a pandas.DataFrame with a row for each image (needs ``advcore[pandas]``).

        Its columns are the fields with a value for each image, and its index the number of the
        image. The status is a name. A label or target that is not known is missing; the distortion
        without success is infinite. ``attrs["record"]`` is the record.
        """
        return tables.data_frame(self)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the table of `to_dataframe` as CSV. What is missing is empty. It needs no pandas.

        Raises
        ------
        OSError
            The file cannot be written. A former one is as it was.
        """
        write_text(path, tables.csv_text(self))

    def to_json(self, path: str | os.PathLike[str], eps: ArrayLike = ()) -> None:
        """Write all but the images as JSON: figures, those of each class, engine, record, table.

        NaN and infinity are null.

        Raises
        ------
        OSError
            The file cannot be written. A former one is as it was.
        """
        write_text(path, tables.json_text(self, _limits(eps)))

    def report(
        self,
        path: str | os.PathLike[str],
        images: Any = None,
        labels: Any = None,
        class_names: Sequence[str] | None = None,
        *,
        image_names: Sequence[str] | None = None,
        eps: ArrayLike = (),
        warnings: Sequence[str] = (),
    ) -> None:
        """Write an HTML page, one file with all in it (needs ``advcore[report]``).

        It has the figures of `summary`, the curve of `robust_accuracy`, which class was led to
        which, the hardest and the easiest images, costs, warnings, options and versions.

        Parameters
        ----------
        images : (N, ...), optional
            The clean images, which a result does not hold. Without them the adversarial ones are
            shown alone.
        labels : (N,) int, optional
            True classes in the place of ``label``.
        class_names : sequence of str, optional
            Names by the number of the class.
        image_names : sequence of str (N,), optional
            Names of the images, such as those of their files.
        eps : float or several
            Distortions in the table of accuracies. By default some are chosen.
        warnings : sequence of str
            Further remarks at the head of the page.

        Raises
        ------
        ValueError
            ``images``, ``labels`` or ``image_names`` are not those of N images.
        ImportError
            Jinja2 or matplotlib is not installed.
        OSError
            The file cannot be written. A former one is as it was.
        """
        from ..report.page import Page, write_page

        result = self if labels is None else self.with_labels(labels)
        page = Page(images, class_names, image_names, _limits(eps), warnings)
        write_page(path, result, page)

    def with_labels(self, labels: Any) -> Result:
        """Return the same result with these true classes (N,).

        Raises
        ------
        TypeError, ValueError
            They are no integers, not N, or negative.
        """
        classes = validate.classes(labels, "labels", len(self), 2**31 - 1).astype(np.int64)
        kept = {**self.record, "input": {**self.record.get("input", {}), "labels": "given"}}
        return replace(self, label=classes, record=kept)

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
        files.write(path, {entry.name: getattr(self, entry.name) for entry in fields(self)})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Result:
        """Read a file of `save`, also of former versions. Its tensors come back as NumPy arrays.

        The file may come from anywhere: nothing of it is run, and all fields are checked for
        their kinds, lengths and values.

        Raises
        ------
        ValueError
            The file is not a stored result, is damaged, or has the format of a later version.
        OSError
            The file cannot be read.
        """
        return Result(**files.read(path, [entry.name for entry in fields(Result)]))


def _limits(eps: ArrayLike) -> list[float]:
    """Return distortions of an argument ``eps`` as a list."""
    limits = np.atleast_1d(np.asarray(eps, dtype=np.float64)).ravel()
    if np.isnan(limits).any():
        raise ValueError("eps must not be NaN")
    return [float(limit) for limit in limits]
