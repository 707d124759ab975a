"""Attacks of Foolbox: a `foolbox.attacks.base.MinimizationAttack` for each norm."""

from __future__ import annotations

from typing import Any

from .._extras import require
from ..result import Result
from ._call import attack_with, classes

_NEEDS = "foolbox", "advcore.adapters.foolbox"
_base = require("foolbox.attacks.base", *_NEEDS)
_criteria = require("foolbox.criteria", *_NEEDS)
_distances = require("foolbox.distances", *_NEEDS)
_ep = require("eagerpy", *_NEEDS)


class AdvcoreAttack(_base.MinimizationAttack):  # type: ignore[misc, name-defined]
    """The smallest perturbation of each input, in the norm of the derived class.

    Parameters
    ----------
    **options
        Options of `minimize_distortion` but ``norm``, ``bounds`` and ``stop_at``: the class, the
        model and ``epsilons`` give these.

    Attributes
    ----------
    last_result : advcore.Result or None
        What is known of the last run: queries, status and engine among it.

    Raises
    ------
    TypeError, ValueError
        An option is not as described.
    """

    _norm: str

    def __init__(self, **options: Any) -> None:
        attack_with(("norm", "bounds", "stop_at"), **options)
        self.options = options
        self.last_result: Result | None = None

    def run(
        self,
        model: Any,
        inputs: Any,
        criterion: Any,
        *,
        early_stop: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the adversarial inputs, the clean one where none was found.

        Parameters
        ----------
        model : foolbox.PyTorchModel
            Its preprocessing and bounds belong to the attack. Its module may run in the engine.
        inputs : tensor (N, ...), inside the bounds of the model
        criterion : Misclassification, TargetedMisclassification, or labels (N,)
        early_stop : float, optional
            Distance at which the search of an input ends. `__call__` gives it the smallest epsilon.

        Raises
        ------
        TypeError, ValueError
            An argument is not as described.
        """
        _base.raise_if_kwargs(kwargs)
        x, restore = _ep.astensor_(inputs)
        if not isinstance(x, _ep.PyTorchTensor):
            raise TypeError(f"inputs must be a torch tensor, got {type(x.raw).__name__}")
        _base.verify_input_bounds(x, model)
        wanted = _base.get_criterion(criterion)
        if isinstance(wanted, _criteria.TargetedMisclassification):
            given = classes(wanted.target_classes.raw, True)
        elif isinstance(wanted, _criteria.Misclassification):
            given = classes(wanted.labels.raw, False)
        else:
            raise ValueError(
                "criterion must be Misclassification, TargetedMisclassification or labels, got "
                f"{type(wanted).__name__}"
            )
        run = attack_with(
            norm=self._norm, bounds=tuple(model.bounds), stop_at=early_stop, **self.options
        )
        self.last_result = run(model, x.raw, **given)
        return restore(_ep.astensor(self.last_result.adversarial.to(x.raw)))


class L2AdvcoreAttack(AdvcoreAttack):
    """The smallest perturbation of each input in l2, see `AdvcoreAttack`."""

    distance = _distances.l2
    _norm = "l2"


class LinfAdvcoreAttack(AdvcoreAttack):
    """The smallest perturbation of each input in linf, see `AdvcoreAttack`."""

    distance = _distances.linf
    _norm = "linf"


class L1AdvcoreAttack(AdvcoreAttack):
    """The smallest perturbation of each input in l1, see `AdvcoreAttack`."""

    distance = _distances.l1
    _norm = "l1"
