"""An attack of the form of adv-lib's, for `adv_lib.utils.attack_utils.run_attack` and own loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..options import Progress
from ._call import attack_with, classes, is_watched, watched


def advcore_attack(
    model: Any,
    inputs: Any,
    labels: Any,
    targets: Any = None,
    targeted: bool = False,
    *,
    norm: str | float = 2,
    callback: Any = None,
    **options: Any,
) -> Any:
    """Find the smallest perturbation of each input, as `adv_lib.attacks.ddn` and the like do.

    Parameters
    ----------
    model : torch.nn.Module in eval mode, (B, ...) -> (B, K) logits
        One with hooks, as those that count for adv-lib's ``run_attack``, is called for each
        evaluation; others may run in the engine.
    inputs : Tensor (N, ...), in [0, 1] unless ``bounds`` says otherwise
    labels : Tensor (N,) int
        True classes; the classes to reach where ``targeted`` is True and there are no ``targets``.
    targets : Tensor (N,) int, optional
        Classes to reach. The attack is targeted then.
    targeted : bool
    norm : 2, inf, 1 or a name of `minimize_distortion`
    callback : adv_lib.utils.visdom_logger.VisdomLogger, optional
        It gets the share of successes and the mean evaluations, by seconds. adv-lib itself
        calls its ``reset_windows``.
    **options
        Other options of `minimize_distortion`.

    Returns
    -------
    Tensor (N, ...)
        Adversarial inputs, the clean one where none was found.

    Raises
    ------
    TypeError, ValueError
        An argument is not as described.
    """
    if isinstance(targets, bool):
        raise TypeError(f"targets must be classes (N,) or None, got {targets}; pass targeted=...")
    run = attack_with(("callback",), norm=norm, **options)
    is_targeted = targeted or targets is not None
    return run(
        watched(model) if is_watched(model) else model,
        inputs,
        **classes(labels if targets is None else targets, is_targeted),
        callback=None if callback is None else _plot_on(callback),
    ).adversarial


def _plot_on(logger: Any) -> Callable[[Progress], None]:
    def plot(progress: Progress) -> None:
        share = progress.succeeded / max(progress.total, 1)
        logger.accumulate_line("success", progress.seconds, share)
        mean = progress.evaluations / max(progress.total, 1)
        logger.accumulate_line("evaluations", progress.seconds, mean)
        logger.update_lines()

    return plot
