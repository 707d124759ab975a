"""An attack for `attackbench.run_attack` of attackbenchlib."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from ._call import attack_with, classes, watched

TRIAL_QUERIES = 160
"""Queries of random images by which a call tries a model; tests/adapters/test_attackbench.py counts
them."""

MOST_QUERIES = 2**30
"""A budget for runs without one: with a budget, the trials of a model are on random images."""


class Tracked:
    """The model of the benchmark while it counts.

    It charges an evaluation to the input that is nearest. The trials of the model are on random
    images, so they run before its counters are on, and all inputs are charged with equal parts.
    """

    def __init__(self, model: Any, inputs: Any) -> None:
        self._model, self._inputs = model, inputs
        self.part = -(-TRIAL_QUERIES // max(len(inputs), 1))

    def __enter__(self) -> Tracked:
        self._model._benchmark_mode = False
        return self

    def __exit__(self, *error: object) -> None:
        self._begin()

    def __call__(self, images: Any) -> Any:
        """Return the logits. The search begins with an input itself."""
        if not self._model._benchmark_mode and (images[:1] == self._inputs).flatten(1).all(1).any():
            self._begin()
        return self._model(images)

    def _begin(self) -> None:
        if not self._model._benchmark_mode:
            self._model._benchmark_mode = True
            self._model.num_forwards += self.part


def advcore_attack(
    model: Any,
    inputs: Any,
    labels: Any,
    targets: Any = None,
    targeted: bool = False,
    *,
    threat_model: str = "l2",
    effort: str = "default",
    max_queries: int | None = None,
    smoothing: bool = False,
    **options: Any,
) -> Any:
    """Find the smallest perturbation of each input within the query budget of the benchmark.

    attackbenchlib passes the arguments by the names of this signature. It counts each forward and
    backward and takes the smallest adversarial input that it sees, so the model is called as it
    is in each evaluation, and never with smoothed activations.

    Parameters
    ----------
    model : attackbench's BenchModel, or any torch.nn.Module
    inputs : Tensor (N, ...) in [0, 1]
    labels : Tensor (N,) int
    targets : Tensor (N,) int, optional
        Classes to reach if ``targeted``.
    targeted : bool
    threat_model : "l2", "linf" or "l1"
    effort : str, as in `minimize_distortion`
    max_queries : int, optional
        Budget of each input. None: the one that the benchmark has set on the model.
    smoothing : bool
        True is not for the benchmark: what it sees are inputs that fool a smoothed model.
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
    if targeted and targets is None:
        raise ValueError("targets must be given where targeted is True, got None")
    with ExitStack() as stack:
        called: Any = watched(model)
        if getattr(model, "_benchmark_mode", False):
            called = stack.enter_context(Tracked(model, inputs))
            max_queries = max_queries or model.num_max_propagations or MOST_QUERIES
            max_queries -= called.part
        run = attack_with(
            norm=threat_model,
            effort=effort,
            max_queries=max_queries,
            smoothing=smoothing,
            **options,
        )
        result = run(called, inputs, **classes(targets if targeted else labels, targeted))
    return result.adversarial


advcore_attack.__dict__.update(_attackbench_name="advcore", _attackbench_lib="advcore")
