"""The rungs of gpu.sh that need Python: each shows one thing on a GPU, and ends with a verdict.

    python -P benchmarks/gpu_rungs.py [--dry-run] RUNG

The last line is "verdict: " and what was seen; the exit status is 0 where it is as it should be.
Each rung needs more than those before it, so the first that fails names the fault. With --dry-run
they run on a simulated GPU (tests/support/simulated_gpu.py), where no kernel runs: that tries the
rungs themselves. The variable PYTHONPATH has the package, benchmarks and tests.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
from harness.gpu_cases import agree, callable_of, random_network

import advcore
from advcore import _core
from advcore.data import embedded_digits, embedded_network
from advcore.network import Network
from advcore.oracles import memory
from advcore.solve import cuda_rounds, gpu_record, gpu_test

DEVICE = "cuda"
TRIAL = 1e-5
"""Largest difference of a trial point to the CPU's, in units of its values."""
LOSS = 1e-6
"""The same of the derivatives of the loss, which are at most 1."""


def facts() -> str:
    """What the machine and the installation have."""
    device = torch.device(DEVICE, 0)
    for name, value in gpu_record.facts(device).items():
        print(f"{name}: {value}")
    print(f"Python: {platform.python_version()}")
    print(f"CUDA_DEVICE_MAX_CONNECTIONS: {os.environ.get('CUDA_DEVICE_MAX_CONNECTIONS', 'unset')}")
    _, missing = _core.cuda_probe(0)
    assert not missing, missing
    return f"{_core.cuda_status()[1]} GPUs, the build has code for the first"


class Lockstep:
    """The same job on the CPU's session and on the GPU's, round by round."""

    def __init__(self) -> None:
        case = gpu_test.cases()[0]
        self.network, self.job = case.network, case.job
        self.device = cuda_rounds.indexed(torch.device(DEVICE))
        self.cpu = _core.Session(self.job.core, gpu_test.SLOTS)
        self.gpu = cuda_rounds.CudaSession(self.job, gpu_test.SLOTS, self.device)
        self.refill()

    def refill(self) -> None:
        """Take the rows of the next round, those of the GPU in the order of the CPU's slots."""
        self.x, _, slots, _, self.paired = self.cpu.refill()
        # The GPU's slots are looked at every four rounds only.
        assert self.cpu.counts.finished == 0, "an image has ended too early for this rung"
        found, _, rows, _, _ = self.gpu.refill()
        place = {int(slot): row for row, slot in enumerate(rows.cpu().numpy())}
        self.order = np.array([place[int(slot)] for slot in slots])
        self.found = found.cpu().numpy()[self.order]

    def margin_loss(self) -> tuple[Any, Any]:
        """Derivatives of the loss (B, K) by both, of the rows that want a gradient."""
        logits = self.network.forward(self.x)
        expected = self.cpu.margin_loss(logits)
        found = self.gpu.margin_loss(self._placed(logits)).cpu().numpy()[self.order]
        return found[: self.paired], expected

    def advance(self) -> None:
        """Give both the CPU's gradients, and take the next rows."""
        _, seeds = self.margin_loss()
        whole = np.zeros((len(self.x), self.network.classes), np.float32)
        whole[: self.paired] = seeds
        self.network.forward(self.x)
        gradients = self.network.backward(whole)
        self.cpu.advance(np.ascontiguousarray(gradients[: self.paired]))
        self.gpu.advance(self._placed(gradients))
        self.refill()

    def _placed(self, rows: Any) -> Any:
        """Rows in the GPU's order, on the device."""
        placed = np.empty_like(rows)
        placed[self.order] = rows
        return torch.from_numpy(placed).to(self.device)


def begin() -> str:
    """Images reach the slots: the first trial points are they, bit for bit."""
    both = Lockstep()
    assert np.array_equal(both.found, both.x), "a trial point differs from its image"
    return f"{len(both.x)} images arrived with all bits"


def loss() -> str:
    """Derivatives of the margin loss beside the CPU's."""
    both = Lockstep()
    both.advance()  # the first round asks for no gradient
    found, expected = both.margin_loss()
    assert len(expected), "no row wants a gradient"
    gap = float(np.abs(found - expected).max())
    assert gap < LOSS, f"derivatives of the loss are off by {gap:.2g}"
    return f"derivatives of the loss within {gap:.1g}"


def advance() -> str:
    """Three steps of the search beside the CPU's."""
    both, gaps = Lockstep(), []
    for _ in range(3):
        both.advance()
        gaps.append(float(np.abs(both.found - both.x).max()))
    assert max(gaps) < TRIAL, f"trial points are off by {gaps}"
    return f"three trial points within {max(gaps):.1g}"


def rounds() -> str:
    """The solver's own test: whole runs with rounds by the host."""
    begin = time.perf_counter()
    why = gpu_test.self_test(cuda_rounds.indexed(torch.device(DEVICE)))
    assert why is None, why
    return f"the solver's own test passed in {time.perf_counter() - begin:.2f} s"


def attacked(model: Any, images: Any, **options: Any) -> Any:
    """Result on the GPU, of a network in the engine unless it is a callable."""
    result = advcore.minimize_distortion(model, images, device=DEVICE, **options)
    assert str(result.engine["device"]).startswith("cuda"), result.engine
    return result


def native() -> str:
    """Eight digits on a native network, in a single filling."""
    images, labels = embedded_digits()
    flat, options = images[:8].reshape(8, -1), {"labels": labels[:8]}
    expected = advcore.minimize_distortion(embedded_network(), flat, **options)
    found = attacked(embedded_network(), flat, **options)
    assert found.engine["path"] == "native", found.engine
    agree(found, expected)
    return f"{found.engine['rounds']} rounds of {found.engine['kernels']}"


def fillings() -> str:
    """More images than the device holds, so that images come late and the device is filled anew."""
    network = random_network((60, 50, 10))
    images = np.random.default_rng(0).random((400, 60), dtype=np.float32)
    expected = advcore.minimize_distortion(network, images)
    few = int(3e5 / cuda_rounds.SHARE)
    with mock.patch.object(memory, "free_bytes", return_value=few):
        found = attacked(network, images, batch_size=32)
    count = int(found.engine["fillings"])
    assert count > 2, f"{count} fillings"
    agree(found, expected)
    return f"{len(images)} images in {count} fillings"


def large() -> str:
    """Images of 20,000 values, native and with rounds by the host."""
    network = random_network((20_000, 16, 5))
    images = np.random.default_rng(0).random((6, 20_000), dtype=np.float32)
    expected = advcore.minimize_distortion(network, images)
    shares = []
    for model in (network, callable_of(network)):
        found = attacked(model, images)
        assert np.array_equal(found.success, expected.success), "another success than on the CPU"
        shares.append(found.distortion.mean() / expected.distortion.mean())
    assert all(abs(share - 1) < 0.02 for share in shares), f"distortions are off: {shares}"
    return f"mean distortion {shares[0]:.4f} and {shares[1]:.4f} of the CPU's"


def threads() -> str:
    """Two runs at once, in two threads, and each alone."""
    networks = [random_network((60, 50, 10)), random_network((60, 40, 10))]
    images = np.random.default_rng(0).random((64, 60), dtype=np.float32)

    def run(network: Network) -> Any:
        return attacked(callable_of(network), images)

    alone = [run(network) for network in networks]
    together: dict[int, Any] = {}

    def keep(index: int) -> None:
        together[index] = run(networks[index])

    workers = [threading.Thread(target=keep, args=(index,)) for index in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for index, result in enumerate(alone):
        agree(together[index], result)
    return "two runs at once are those alone"


def profile() -> str:
    """Milliseconds of the solver's kernels in a run with rounds by the host."""
    from bench_cuda import run_watched

    images, labels = embedded_digits()
    flat = images.reshape(len(images), -1)[: 64 if DRY_RUN else len(images)]
    module = embedded_network().to_torch()
    figures = run_watched(
        module if DRY_RUN else module.to(DEVICE), flat, labels[: len(flat)], len(flat)
    )
    for name, value in figures.items():
        print(f"{name}: {value}")
    return (
        f"{figures['rounds']} rounds in {figures['seconds']:.2f} s, "
        f"{100 * figures['solver_share']:.0f}% of it the solver's"
    )


RUNGS: dict[str, Callable[[], str]] = {
    each.__name__: each
    for each in (
        facts, begin, loss, advance, rounds, native, fillings, large, threads, profile
    )
}  # fmt: skip
DRY_RUN = False


def main() -> None:
    """One rung."""
    global DRY_RUN
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rung", choices=RUNGS)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    DRY_RUN = options.dry_run
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with contextlib.ExitStack() as stack:
        if DRY_RUN:
            from support.simulated_gpu import simulated_gpu

            stack.enter_context(simulated_gpu())
        try:
            print(f"verdict: {RUNGS[options.rung]()}")
        except Exception as error:
            import traceback

            traceback.print_exc()
            text = (str(error).splitlines() or [""])[0]
            print(f"verdict: {type(error).__name__}: {text}")
            sys.exit(1)


if __name__ == "__main__":
    main()
