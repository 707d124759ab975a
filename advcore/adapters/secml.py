"""An attack of secml-torch: a creator, and its native `BaseEvasionAttack`."""

from __future__ import annotations

import copy
from typing import Any

from .._extras import require
from ..network.modes import reads_training
from ..result import Result
from ._call import attack_with, classes

_NEEDS = "secml", "advcore.adapters.secml"
_base = require("secmlt.adv.evasion.base_evasion_attack", *_NEEDS)
_backends = require("secmlt.adv.backends", *_NEEDS)
_perturbations = require("secmlt.adv.evasion.perturbation_models", *_NEEDS)
_identity = require("secmlt.models.data_processing.identity_data_processing", *_NEEDS)
_classifier = require("secmlt.models.pytorch.base_pytorch_nn", *_NEEDS)


class MinimumDistortionNative(_base.BaseEvasionAttack):  # type: ignore[misc, name-defined]
    """The smallest perturbation of each sample; `MinimumDistortion` makes it.

    Attributes
    ----------
    last_result : advcore.Result or None
        What is known of the last batch: queries, status and engine among it.
    """

    def __init__(
        self,
        perturbation_model: str = "l2",
        y_target: int | None = None,
        lb: float = 0.0,
        ub: float = 1.0,
        trackers: Any = None,
        **options: Any,
    ) -> None:
        self.check_perturbation_model_available(perturbation_model)
        self.y_target = y_target
        self.trackers = trackers
        self._attack = attack_with(("norm", "bounds"), **options)
        self._more = {"norm": perturbation_model, "bounds": (lb, ub)}
        self.last_result: Result | None = None

    @classmethod
    def _trackers_allowed(cls) -> bool:
        return False

    @staticmethod
    def get_perturbation_models() -> set[str]:
        """Return the norms."""
        models = _perturbations.LpPerturbationModels
        return {models.L1, models.L2, models.LINF}

    def _run(self, model: Any, samples: Any, labels: Any) -> tuple[Any, Any]:
        """Return adversarial samples and perturbations (N, ...), zero where none was found."""
        samples = samples.to(model._get_device())
        targeted = self.y_target is not None
        result = self._attack(
            _logits(model),
            samples,
            **classes(self.y_target if targeted else labels, targeted),
            **self._more,
        )
        self.last_result = result
        return result.adversarial, result.adversarial - samples


def _logits(model: Any) -> Any:
    """Return the module of a classifier, with its preprocessing where that is a module too."""
    import torch

    identity, kind = _identity.IdentityDataProcessing, _classifier.BasePyTorchClassifier
    around = [model._preprocessing, model._postprocessing]
    is_plain = [
        type(part) is identity
        or (isinstance(part, torch.nn.Module) and not any(map(reads_training, part.modules())))
        for part in around
    ]
    if type(model) is not kind or not all(is_plain):
        return model.decision_function
    before, after = (
        [] if type(part) is identity else [copy.deepcopy(part).eval()] for part in around
    )
    return torch.nn.Sequential(*before, model.model, *after) if before or after else model.model


class MinimumDistortion(_base.BaseEvasionAttackCreator):  # type: ignore[misc, name-defined]
    """Creator of the attack, as those of secml-torch are.

    Parameters
    ----------
    perturbation_model : "l2", "linf" or "l1"
    y_target : int, optional
        Class to reach, for all samples. None: untargeted.
    lb, ub : float
        Least and largest value.
    backend : "native"
    trackers : None
        secml-torch raises a NotImplementedError for others.
    **options
        Other options of `minimize_distortion`.

    Raises
    ------
    NotImplementedError
        There is no such backend or perturbation model.
    TypeError, ValueError
        An option is not as described.
    """

    def __new__(
        cls,
        perturbation_model: str = "l2",
        y_target: int | None = None,
        lb: float = 0.0,
        ub: float = 1.0,
        backend: str = _backends.Backends.NATIVE,
        trackers: Any = None,
        **options: Any,
    ) -> Any:
        """Return the attack."""
        attack = cls.get_implementation(backend)
        return attack(perturbation_model, y_target, lb, ub, trackers, **options)

    @staticmethod
    def get_backends() -> list[str]:
        """Return the names of the backends."""
        return [_backends.Backends.NATIVE]

    @staticmethod
    def _get_native_implementation() -> type[MinimumDistortionNative]:
        return MinimumDistortionNative
