"""
Compiled engine of advcore.
"""
from __future__ import annotations
import collections.abc
import enum
import numpy
import numpy.typing
import typing
__all__: list[str] = ['CSearch', 'Counts', 'CudaQueue', 'CudaSession', 'DescentSettings', 'Job', 'Loss', 'Network', 'Norm', 'Params', 'Schedule', 'Session', 'Status', 'cuda_arena_bytes', 'cuda_probe', 'cuda_queue_missing', 'cuda_status', 'distances', 'isa', 'problem_layout', 'slot_bytes', 'solve', 'value_range']
class Status(enum.IntEnum):
    """
    How the search of one image ended.
    """
    already_adversarial = 1
    budget = 2
    converged = 0
    good_enough = 8
    interrupted = 6
    no_gradient = 7
    non_finite = 5
    not_found = 4
    stalled = 3
class Loss(enum.IntEnum):
    cross_entropy = 1
    margin = 0
class CSearch(enum.IntEnum):
    bisection = 1
    fused = 0
class Norm(enum.IntEnum):
    l1 = 2
    l2 = 0
    linf = 1
class DescentSettings:
    """
    The descent of a search.
    """
    @property
    def first_step(self) -> float:
        ...
    @first_step.setter
    def first_step(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def last_step(self) -> float:
        ...
    @last_step.setter
    def last_step(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def power(self) -> int:
        ...
    @power.setter
    def power(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def radius_rate(self) -> float:
        ...
    @radius_rate.setter
    def radius_rate(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def reach(self) -> float:
        ...
    @reach.setter
    def reach(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def start(self) -> float:
        ...
    @start.setter
    def start(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def steps(self) -> int:
        ...
    @steps.setter
    def steps(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def temperature(self) -> float:
        ...
    @temperature.setter
    def temperature(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
class Schedule:
    """
    A search of a run; csrc/params.h describes it.
    """
    fallback: bool
    same_class: bool
    def __init__(self) -> None:
        ...
    def add_stage(self, smoothing: typing.SupportsFloat | typing.SupportsIndex, budget: typing.SupportsInt | typing.SupportsIndex, temperature: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def class_limit(self) -> float:
        ...
    @class_limit.setter
    def class_limit(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def continuation_tolerance(self) -> float:
        ...
    @continuation_tolerance.setter
    def continuation_tolerance(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def descent(self) -> DescentSettings:
        ...
    @property
    def origin(self) -> float:
        ...
    @origin.setter
    def origin(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def patience(self) -> int:
        ...
    @patience.setter
    def patience(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def polish_budget(self) -> int:
        ...
    @polish_budget.setter
    def polish_budget(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def polish_tolerance(self) -> float:
        ...
    @polish_tolerance.setter
    def polish_tolerance(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def ranked(self) -> int:
        ...
    @ranked.setter
    def ranked(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
class Params:
    """
    Options of a run; csrc/params.h describes each.
    """
    c_search: CSearch
    loss: Loss
    norm: Norm
    smoothable: bool
    targeted: bool
    unsquared: bool
    def __init__(self) -> None:
        ...
    def add_schedule(self, schedule: Schedule) -> None:
        ...
    @property
    def attempts(self) -> int:
        ...
    @attempts.setter
    def attempts(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def c_init(self) -> float:
        ...
    @c_init.setter
    def c_init(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def classes(self) -> int:
        ...
    @classes.setter
    def classes(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def confidence(self) -> float:
        ...
    @confidence.setter
    def confidence(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def history(self) -> int:
        ...
    @history.setter
    def history(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def logit_cap(self) -> float:
        ...
    @logit_cap.setter
    def logit_cap(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def logit_floor(self) -> float:
        ...
    @logit_floor.setter
    def logit_floor(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def max_evaluations(self) -> int:
        ...
    @max_evaluations.setter
    def max_evaluations(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def max_queries(self) -> int:
        ...
    @max_queries.setter
    def max_queries(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def n(self) -> int:
        ...
    @n.setter
    def n(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def seed(self) -> int:
        ...
    @seed.setter
    def seed(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def squash_rate(self) -> float:
        ...
    @squash_rate.setter
    def squash_rate(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def starts(self) -> int:
        ...
    @starts.setter
    def starts(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def stop_at(self) -> float:
        ...
    @stop_at.setter
    def stop_at(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def temperatures(self) -> numpy.typing.NDArray[numpy.float32]:
        ...
    @property
    def tolerance(self) -> float:
        ...
    @tolerance.setter
    def tolerance(self, arg0: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
class Network:
    """
    A network packed for this CPU.
    """
    def __init__(self, layers: collections.abc.Sequence[tuple[typing.Annotated[numpy.typing.ArrayLike, numpy.float32], typing.Annotated[numpy.typing.ArrayLike, numpy.float32], str, typing.SupportsFloat | typing.SupportsIndex, tuple[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], str, typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(3)"], typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(2)"], typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(2)"], typing.Annotated[numpy.typing.ArrayLike, numpy.float32], str, typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(2)"], typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(2)"], typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(2)"], bool] | None]]) -> None:
        ...
    def along(self, clean: numpy.typing.NDArray[numpy.float32], end: numpy.typing.NDArray[numpy.float32], t: numpy.typing.NDArray[numpy.float32], threads: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float32]:
        ...
    def backward(self, dlogits: numpy.typing.NDArray[numpy.float32]) -> numpy.typing.NDArray[numpy.float32]:
        ...
    def forward(self, x: numpy.typing.NDArray[numpy.float32], k: typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None = None, scales: typing.Annotated[numpy.typing.ArrayLike, numpy.float32] | None = None, record_scales: bool = False) -> numpy.typing.NDArray[numpy.float32]:
        ...
    @property
    def classes(self) -> int:
        ...
    @property
    def inputs(self) -> int:
        ...
    @property
    def row_bytes(self) -> int:
        ...
    @property
    def scales(self) -> int:
        ...
    @property
    def smoothable(self) -> bool:
        ...
class Counts:
    """
    Of the finished images of a run; csrc/counts.h.
    """
    def __add__(self, arg0: Counts) -> Counts:
        ...
    def __init__(self) -> None:
        ...
    @property
    def evaluations(self) -> int:
        ...
    @evaluations.setter
    def evaluations(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def finished(self) -> int:
        ...
    @finished.setter
    def finished(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def succeeded(self) -> int:
        ...
    @succeeded.setter
    def succeeded(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
class Job:
    """
    Options and input arrays of a run: images (N, n), labels (N,), bounds (n,) or (N, n), starts (N, S, n) or None.
    """
    def __init__(self, params: Params, images: numpy.typing.NDArray[numpy.float32], labels: numpy.typing.NDArray[numpy.int32], lo: numpy.typing.NDArray[numpy.float32], hi: numpy.typing.NDArray[numpy.float32], starts: numpy.typing.NDArray[numpy.float32] | None) -> None:
        ...
    @property
    def params(self) -> Params:
        ...
class Session:
    """
    Rounds of the solver with the evaluations left to the caller.
    """
    def __init__(self, job: Job, slots: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def advance(self, gradients: numpy.typing.NDArray[numpy.float32] | None) -> None:
        ...
    def interrupt(self) -> None:
        ...
    def margin_loss(self, logits: numpy.typing.NDArray[numpy.float32]) -> numpy.typing.NDArray[numpy.float32]:
        ...
    def refill(self) -> tuple[numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.int32], numpy.typing.NDArray[numpy.bool], int]:
        ...
    def slot_rows(self) -> dict[str, int]:
        ...
    @property
    def counts(self) -> Counts:
        ...
    @property
    def results(self) -> dict[str, numpy.ndarray]:
        ...
class CudaSession:
    """
    Session on a GPU; csrc/cuda/slot_pool.h has the contract.
    """
    def __init__(self, job: Job, slots: typing.SupportsInt | typing.SupportsIndex, device: typing.SupportsInt | typing.SupportsIndex, arena: typing.SupportsInt | typing.SupportsIndex, stream: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def abandon(self) -> None:
        ...
    def advance(self, gradients: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def gather(self, x: typing.SupportsInt | typing.SupportsIndex, k: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def interrupt(self) -> None:
        ...
    def margin_loss(self, logits: typing.SupportsInt | typing.SupportsIndex, dlogits: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def refill(self) -> tuple[numpy.typing.NDArray[numpy.int32], numpy.typing.NDArray[numpy.bool]] | None:
        ...
    def waits_next(self) -> bool:
        ...
    @property
    def counts(self) -> Counts:
        ...
    @property
    def results(self) -> dict[str, numpy.ndarray]:
        ...
    @property
    def smoothed(self) -> bool:
        ...
class CudaQueue:
    """
    A whole run on a GPU; csrc/cuda/queue.h.
    """
    def __init__(self, job: Job, slots: typing.SupportsInt | typing.SupportsIndex, capacity: typing.SupportsInt | typing.SupportsIndex, device: typing.SupportsInt | typing.SupportsIndex, arena: typing.SupportsInt | typing.SupportsIndex, stream: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def abandon(self) -> None:
        ...
    def add(self, code: bytes, name: str, grid: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(3)"], threads: typing.SupportsInt | typing.SupportsIndex, shared: typing.SupportsInt | typing.SupportsIndex, arguments: collections.abc.Sequence[bytes]) -> None:
        ...
    def close(self) -> None:
        ...
    def slot_rows(self) -> dict[str, int]:
        ...
    def stop(self) -> None:
        ...
    def wait(self, seconds: typing.SupportsFloat | typing.SupportsIndex) -> bool:
        ...
    @property
    def counts(self) -> Counts:
        ...
    @property
    def fillings(self) -> int:
        ...
    @property
    def results(self) -> dict[str, numpy.ndarray]:
        ...
    @property
    def rounds(self) -> int:
        ...
    @property
    def seconds(self) -> float:
        ...
def cuda_arena_bytes(params: Params, own_bounds: bool, slots: typing.SupportsInt | typing.SupportsIndex, images: typing.SupportsInt | typing.SupportsIndex = 0) -> int:
    """
    Device memory of a CudaSession, or of a CudaQueue with so many images; needs no GPU.
    """
def cuda_probe(device: typing.SupportsInt | typing.SupportsIndex) -> tuple[int, str]:
    """
    (CUDA version of the driver, why the solver cannot run on the device; empty: it can)
    """
def cuda_queue_missing() -> str:
    """
    Why this build cannot run native networks on a GPU; empty: it can.
    """
def cuda_status() -> tuple[bool, int, str]:
    """
    (whether CUDA is in this build, devices, why there is none)
    """
def distances(x: numpy.typing.NDArray[numpy.float32], clean: numpy.typing.NDArray[numpy.float32], threads: typing.SupportsInt | typing.SupportsIndex = 1) -> numpy.typing.NDArray[numpy.float64]:
    """
    L2 distance (N,) float64 of each row of x and clean (N, n) float32; csrc/arrays.h.
    """
def isa() -> str:
    """
    The instruction set in use: base, v3 or v4.
    """
def problem_layout() -> dict[str, int]:
    """
    Where kernels outside the engine find the scalars of a slot: bytes; csrc/problem.h.
    """
def slot_bytes(params: Params, own_bounds: bool) -> int:
    """
    Memory of the solver for an image in work.
    """
def solve(network: Network, job: Job, threads: typing.SupportsInt | typing.SupportsIndex, slots: typing.SupportsInt | typing.SupportsIndex, poll: collections.abc.Callable[[Counts], bool]) -> tuple[dict[str, numpy.ndarray], typing.Any]:
    ...
def value_range(x: numpy.typing.NDArray[numpy.float32], threads: typing.SupportsInt | typing.SupportsIndex = 1) -> tuple[float, float, bool]:
    """
    (smallest, largest, whether all are finite) of the values of x; csrc/arrays.h.
    """
