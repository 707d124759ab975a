"""The paper's way in processes: SciPy's L-BFGS-B and bisection on c, image by image.

Each process takes its share of the images, with one thread for BLAS and torch, and times every
image itself, after one that is not timed: start-up and imports are not counted, and the processes
are taken to be balanced perfectly.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import advcore
from advcore import reference
from advcore.reference.oracles import NumpyNetwork, ReferenceOracle, TorchModel

from . import networks

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
}


@dataclasses.dataclass(frozen=True)
class Loop:
    """An oracle, "numpy" (float64) or "torch" (float32), and options of `advcore.reference`."""

    oracle: str
    options: dict[str, Any]


LOOPS = {
    # On 32 held-out images 130 evaluations and 38 ms of CPU time an image, 1.3004; SciPy's own
    # stopping rule and 20 halvings 272, 91 ms and 1.2981. A float32 oracle takes as long, further
    # iterations on its noise more; cold starts 49 ms, history 5 47 ms.
    "SciPy loop, NumPy": Loop("numpy", {"steps": 8, "ftol": 1e-5}),
    "SciPy loop, NumPy, SciPy's stopping rule": Loop("numpy", {}),
    "SciPy loop, torch, cold starts": Loop("torch", {"warm_start": False}),
    "SciPy loop, torch, warm starts": Loop("torch", {}),
}


@dataclasses.dataclass(frozen=True)
class Solution:
    """Results of a loop, in the order of the images, and the seconds that each took."""

    adversarial: NDArray[np.float32]
    distortion: NDArray[np.float64]  # infinite without success
    seconds: NDArray[np.float64]
    evaluations: NDArray[np.int64]
    forwards: NDArray[np.int64]


def run(loop: Loop, case: networks.Case, processes: int) -> Solution:
    """The loop on all images of the case, every ``processes``-th one in the same process."""
    rows = [np.arange(len(case.images))[k::processes] for k in range(processes)]
    rows = [part for part in rows if len(part)]
    with _environment(ONE_THREAD), ProcessPoolExecutor(len(rows), get_context("spawn")) as pool:
        shares = [
            pool.submit(_share, loop, case.model, case.images[part], case.classes[part])
            for part in rows
        ]
        solutions = [share.result() for share in shares]
    order = np.argsort(np.concatenate(rows))
    fields = [f.name for f in dataclasses.fields(Solution)]
    return Solution(*(np.concatenate([getattr(s, f) for s in solutions])[order] for f in fields))


def _share(
    loop: Loop,
    model: torch.nn.Module,
    images: NDArray[np.float32],
    classes: NDArray[np.int64],
) -> Solution:
    """The loop on some of the images, in a process of its own."""
    torch.set_num_threads(1)
    shape = images.shape[1:]
    oracle: ReferenceOracle
    if loop.oracle == "numpy":
        oracle = NumpyNetwork(advcore.Network.from_torch(model, shape))
    else:
        oracle = TorchModel(model, shape)
    reference.minimize_distortion(oracle, images[:1], classes[:1], steps=1)
    results, seconds = [], []
    for x, y in zip(images[:, None], classes[:, None], strict=True):
        begin = time.perf_counter()
        results.append(reference.minimize_distortion(oracle, x, y, **loop.options))
        seconds.append(time.perf_counter() - begin)
    return Solution(
        np.concatenate([r.adversarial for r in results]),
        np.concatenate([r.minimum_distortion() for r in results]),
        np.array(seconds),
        np.concatenate([r.evaluations for r in results]).astype(np.int64),
        np.concatenate([r.forwards for r in results]).astype(np.int64),
    )


@contextlib.contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Variables for processes started inside; the libraries of this one have read theirs."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
