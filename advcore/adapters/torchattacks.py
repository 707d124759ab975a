"""An attack of torchattacks: a `torchattacks.attack.Attack`."""

from __future__ import annotations

from typing import Any

from .._extras import require
from ..result import Result
from ._call import attack_with, classes

_attack = require("torchattacks.attack", "torchattacks", "advcore.adapters.torchattacks")


class MinimumDistortion(_attack.Attack):  # type: ignore[misc, name-defined]
    """The smallest perturbation of each image, in a norm.

    Parameters
    ----------
    model : torch.nn.Module, (B, ...) -> (B, K) logits
        torchattacks puts it into eval mode for the time of the attack. It may run in the engine.
    norm : "L2", "Linf", "L1", or as in `minimize_distortion`
    **options
        Other options of `minimize_distortion`, but ``bounds``, which are (0, 1).

    Attributes
    ----------
    last_result : advcore.Result or None
        What is known of the last run: queries, status and engine among it.

    Raises
    ------
    TypeError, ValueError
        An option is not as described.
    """

    def __init__(self, model: Any, norm: str | float = "L2", **options: Any) -> None:
        super().__init__("MinimumDistortion", model)
        self.supported_mode = ["default", "targeted"]
        self.norm = norm.lower() if isinstance(norm, str) else norm
        self._run = attack_with(("bounds",), norm=self.norm, **options)
        self.last_result: Result | None = None

    def forward(self, inputs: Any, labels: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return the adversarial images, the clean one where none was found.

        Parameters
        ----------
        inputs : Tensor (N, ...), in [0, 1] after undoing the normalisation that was set
        labels : Tensor (N,) int, optional
            True classes, by default the predicted ones; see torchattacks for targeted modes.

        Raises
        ------
        TypeError, ValueError
            An argument is not as described, or the model is to be in training mode.
        """
        if self._model_training:
            raise ValueError("model_training must be False: the attack is on a fixed function")
        images = inputs.detach().to(self.device)
        if self.targeted:
            labels = self.get_target_label(images, labels)
        if labels is not None:
            labels = labels.detach().to(self.device)
        result = self._run(self._normalised_model(), images, **classes(labels, self.targeted))
        self.last_result = result
        return result.adversarial

    def _normalised_model(self) -> Any:
        """Return the model for images that are not normalised."""
        if self._normalization_applied is not False:
            return self.model
        from ..oracles.wrapper_input import with_input

        used = self.normalization_used
        return with_input(self.model, used["mean"].to(self.device), used["std"].to(self.device))
