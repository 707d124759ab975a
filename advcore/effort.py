"""The parts of an effort: its searches, with their stages, descent and stopping rules."""

from __future__ import annotations

from dataclasses import dataclass

EFFORTS = ("fast", "default", "thorough", "exhaustive")


@dataclass(frozen=True)
class Descent:
    """Normalised gradient descent on the exact network before a polish (csrc/solver/descent.h)."""

    steps: int = 0
    first_step: float = 0.3  # length of the first step, as a fraction of ||r||
    last_step: float = 0.01  # length of the last step, as a fraction of ||r||
    radius_rate: float = 0.03  # largest relative change of the radius in the first round
    power: int = 1  # with 3 the steps stay long for most of the descent
    temperature: float = 0.0  # T as a fraction of the clean margin; 0: the exact margin
    start: float = 1.0  # it begins at this many times the r where the stages ended
    reach: float = 0.0  # largest step, as a multiple of that ||r||; 0: none


@dataclass(frozen=True)
class Schedule:
    """One search: through networks that are smoothed less and less, a descent and a polish.

    Without stages it goes on from the best image.

    Attributes
    ----------
    smoothing : tuple of float
        k of each stage; 0 is the exact network.
    budget : tuple of int
        Evaluations of each stage.
    temperature : tuple of float
        T of each stage, as a fraction of the margin at the clean image.
    origin : float
        The search begins at ``lo + origin * (hi - lo)``. Negative: at the clean image.
    patience : int
        A stage stops after so many rounds near its best point without a better one.
    continuation_tolerance : float
        A step shorter than this fraction of ||r|| ends every stage but the last.
    descent : Descent
    polish_tolerance : float
        The polish stops at this relative gain.
    polish_budget : int
        Iterations of the polish.
    fallback : bool
        Run only while no search has converged on an image.
    ranked : int
        Untargeted: instead of a search, so many classes are ranked at the best image by their
        linearised distance from the clean one.
    class_limit : float
        Above 0: the search is for the next of these classes, and is run only where its distance is
        below so many times the best one.
    same_class : bool
        Untargeted: the search is for the class of the best image.
    """

    smoothing: tuple[float, ...] = ()
    budget: tuple[int, ...] = ()
    temperature: tuple[float, ...] = ()
    origin: float = -1.0
    patience: int = 12
    continuation_tolerance: float = 0.1
    descent: Descent = Descent()
    polish_tolerance: float = 1e-4
    polish_budget: int = 30
    fallback: bool = False
    ranked: int = 0
    class_limit: float = 0.0
    same_class: bool = False


@dataclass(frozen=True)
class Effort:
    """Searches in their order, of which an effort runs the first.

    The larger of two efforts runs the searches of the smaller one, in the same order, and then more
    of them: so it is never worse.

    Attributes
    ----------
    searches : tuple of Schedule
    attempts : int
        So many of them are run in any case, those that follow until one has found an image.
    """

    searches: tuple[Schedule, ...]
    attempts: int
