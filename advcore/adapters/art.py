"""An attack of the Adversarial Robustness Toolbox: an `art.attacks.EvasionAttack`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._extras import require
from ..oracles.module_of import module_of
from ..result import Result
from ._call import attack_with, classes

_NEEDS = "art", "advcore.adapters.art"
_attack = require("art.attacks.attack", *_NEEDS)
_estimator = require("art.estimators.estimator", *_NEEDS)
_classifier = require("art.estimators.classification.classifier", *_NEEDS)
_utils = require("art.utils", *_NEEDS)
SUM_OF_PROBABILITIES = 1e-3
"""Difference to 1 up to which outputs that are not negative are taken for probabilities."""
LEAST_PROBABILITY = 1e-30
"""Smaller probabilities count as this one, whose logarithm is finite."""


class ByClassGradients:
    """A NumPy model that is a classifier of ART, by its ``predict`` and ``class_gradient``.

    An evaluation takes the gradients of all K classes. Of probabilities the logits are their
    logarithms.
    """

    def __init__(self, estimator: Any) -> None:
        self._estimator = estimator
        self._images: Any = None
        self._outputs: Any = None
        self._are_probabilities: bool | None = None

    def forward(self, x: Any) -> Any:
        """Return logits (B, K) of images (B, ...)."""
        outputs = self._estimator.predict(x, batch_size=max(len(x), 1)).astype(np.float64)
        if self._are_probabilities is None and len(x):
            is_one = np.abs(outputs.sum(axis=1) - 1) < SUM_OF_PROBABILITIES
            self._are_probabilities = bool(is_one.all() and outputs.min() >= 0)
        self._images, self._outputs = x, np.maximum(outputs, LEAST_PROBABILITY)
        return np.log(self._outputs) if self._are_probabilities else outputs

    def backward(self, dlogits: Any) -> Any:
        """Return the gradient (B, ...) for ``dlogits`` (B, K) of the last forward."""
        rows = len(dlogits)
        gradients = self._estimator.class_gradient(self._images[:rows])
        if self._are_probabilities and not self._are_of_logarithms(gradients):
            dlogits = dlogits / self._outputs[:rows]
        return np.einsum("bk,bk...->b...", dlogits, gradients)

    def _are_of_logarithms(self, gradients: Any) -> bool:
        """Whether gradients (B, K, ...) are those of the logarithms of the probabilities.

        They are for a logistic regression of three classes or more in ART 1.20.1. Gradients of
        probabilities add up to 0, those of logarithms do with the probabilities as weights.
        """
        weights = self._outputs[: len(gradients)]
        weighted = np.einsum("bk,bk...->b...", weights, gradients)
        return bool(np.linalg.norm(weighted) < np.linalg.norm(gradients.sum(axis=1)))


class MinimumDistortion(_attack.EvasionAttack):  # type: ignore[misc, name-defined]
    """The smallest perturbation of each input, in a norm.

    Parameters
    ----------
    classifier : art.estimators.estimator.BaseEstimator with ClassGradientsMixin
        A ``PyTorchClassifier`` whose preprocessing is a standardisation, or none, runs as its
        module: in the engine or through torch, in eval mode as in ART's ``predict``. Any other
        classifier is asked for all class gradients in each evaluation. Without ``clip_values`` the
        perturbation has no bounds.
    norm : 2, np.inf, 1, or a name of `minimize_distortion`
    effort : str, as in `minimize_distortion`
    targeted : bool
        Whether ``y`` are classes to reach.
    batch_size : int, optional
    verbose : bool
        Show a progress bar (needs ``advcore[cli]``).
    options : dict, optional
        Other options of `minimize_distortion`, but ``bounds``.

    Attributes
    ----------
    last_result : advcore.Result or None
        What is known of the last run: queries, status and engine among it.

    Raises
    ------
    TypeError, ValueError
        An option is not as described.
    """

    attack_params = [  # noqa: RUF012
        *_attack.EvasionAttack.attack_params,
        *("norm", "effort", "targeted", "batch_size", "verbose", "options"),
    ]
    _estimator_requirements = (_estimator.BaseEstimator, _classifier.ClassGradientsMixin)

    def __init__(
        self,
        classifier: Any,
        norm: str | float = 2,
        effort: str = "default",
        targeted: bool = False,
        batch_size: int | None = None,
        verbose: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(estimator=classifier)
        self.norm, self.effort, self.targeted = norm, effort, targeted
        self.batch_size, self.verbose, self.options = batch_size, verbose, options
        self.last_result: Result | None = None
        self._check_params()

    def _check_params(self) -> None:
        if not isinstance(self.targeted, bool):
            raise TypeError(f"targeted must be True or False, got {self.targeted!r}")
        self._run = attack_with(
            ("bounds",),
            norm=self.norm,
            effort=self.effort,
            batch_size=self.batch_size,
            progress=self.verbose,
            **(self.options or {}),
        )

    def generate(self, x: Any, y: Any = None, **kwargs: Any) -> Any:
        """Return adversarial inputs (N, ...) of ``x.dtype``, the clean one where none was found.

        Parameters
        ----------
        x : array (N, ...), inside the classifier's ``clip_values``
        y : (N,) int or (N, K) one-hot, optional
            True classes, by default the predicted ones; if ``targeted`` the classes to reach.
        mask : array that broadcasts to ``x``, optional
            Zero or False: these values stay as they are.

        Raises
        ------
        TypeError, ValueError
            An argument is not as described.
        """
        mask = kwargs.pop("mask", None)
        if kwargs:
            raise TypeError(f"generate takes x, y and mask, got {', '.join(kwargs)}")
        if y is None and self.targeted:
            raise ValueError("y must be the classes to reach where targeted is True, got None")
        if y is not None:
            y = _utils.check_and_transform_label_format(y, nb_classes=self.estimator.nb_classes)
            y = np.argmax(y, axis=1)
        bounds = self.estimator.clip_values
        bounds = _masked(x, (-math.inf, math.inf) if bounds is None else tuple(bounds), mask)
        images = np.ascontiguousarray(x, np.float32)
        self.last_result = self._run(
            self._model(), images, **classes(y, self.targeted), bounds=bounds
        )
        return np.asarray(self.last_result.adversarial).astype(x.dtype, copy=False)

    def _model(self) -> Any:
        module = module_of(self.estimator).inner
        if module is None:
            return ByClassGradients(self.estimator)
        module.eval()
        return self.estimator


def _masked(x: Any, bounds: tuple[Any, Any], mask: Any) -> tuple[Any, Any]:
    """Return bounds that leave what is masked as it is."""
    if mask is None:
        return bounds
    try:
        free = np.broadcast_to(np.asarray(mask) != 0, x.shape)
    except ValueError:
        raise ValueError(
            f"mask must broadcast to x of shape {x.shape}, got shape {np.shape(mask)}"
        ) from None
    low, high = (np.where(free, bound, x).astype(np.float32) for bound in bounds)
    return low, high
