"""Runs of the rivals, cached, and the best of them for each image.

A run is kept in ``CACHE`` as a compressed .npz under a hash of the network's weights, the images,
the classes, the rival's version and its settings, so a change of advcore alone reruns nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from advcore._files import replacing

from . import networks, rivals
from .norm_rivals import NORM_RIVALS

MOST_PDPGD = 50
"""Images up to which PDPGD runs in linf and l1, where it sorts in every step."""
Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Run:
    """Distances that an attack reached on a case; one float32 forward confirms every success."""

    distances: Floats  # (N,) in the norm of the case, infinite where the forward did not confirm it
    evaluations: float  # forward+backward pairs an image
    forwards: float  # further forwards an image
    seconds: float
    settings: dict[str, Any]
    cpu_seconds: float  # NaN in files of former versions
    queries: float  # forwards and backwards an image


def distances(case: networks.Case, adversarial: torch.Tensor | NDArray[np.float32]) -> Floats:
    """||r|| of each image in the norm of the case, infinite where it is not confirmed."""
    adversarial = torch.as_tensor(adversarial).detach().float().clamp(0, 1)
    with torch.inference_mode():
        predictions = torch.cat([case.model(part) for part in adversarial.split(500)]).argmax(dim=1)
    classes = torch.from_numpy(case.classes)
    ok = (predictions == classes) if case.targeted else (predictions != classes)
    change = (adversarial.double() - torch.from_numpy(case.images).double()).flatten(1)
    r = change.norm(p={"l2": 2, "linf": torch.inf, "l1": 1}[case.norm], dim=1)
    return torch.where(ok, r, torch.inf).numpy()


def _path(case: networks.Case, name: str, settings: dict[str, Any]) -> Path:
    digest = hashlib.sha256(networks.weights_hash(case.model).encode())
    digest.update(case.images.tobytes() + case.classes.tobytes())
    about = {"version": rivals.VERSION, "rival": name, "targeted": case.targeted, **settings}
    digest.update(json.dumps(about, sort_keys=True).encode())
    label = "".join(c if c.isalnum() else "_" for c in name)
    return networks.CACHE / f"run-{case.name}-{label}-{digest.hexdigest()[:16]}.npz"


def rival_run(
    case: networks.Case, name: str, settings: dict[str, Any], *, refresh: bool = False
) -> Run:
    """The rival on the case, from the cache where it is there."""
    path = _path(case, name, settings)
    if path.exists() and not refresh:
        with np.load(path) as archive:
            cost = archive["cost"]
            if len(cost) == 5:
                return _run_of(archive["distances"], cost, settings)
            if rivals.RIVALS[name].one_backward:  # a file of a former version
                queries = 2 * cost[0] + cost[1]
                return _run_of(archive["distances"], [*cost, np.nan, queries], settings)
    counter = rivals.Counted(case.model)
    torch.manual_seed(0)
    begin, cpu_begin = time.perf_counter(), time.process_time()
    # Pictures of ImageNet in pairs: 68 ms an evaluation of one, all at once 155.
    size = 2 if case.name in networks.IMAGENET else len(case.images)
    parts = [torch.from_numpy(all_).split(size) for all_ in (case.images, case.classes)]
    adversarial = torch.cat(
        [
            (rivals.RIVALS | NORM_RIVALS)[name].call(counter, x, y, case.targeted, settings)
            for x, y in zip(*parts, strict=True)
        ]
    )
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    passes = np.array([counter.evaluations, counter.forwards, counter.queries]) / len(case.images)
    cost = np.array([*passes[:2], seconds, cpu_seconds, passes[2]])
    d = distances(case, adversarial)
    networks.CACHE.mkdir(parents=True, exist_ok=True)
    stored = adversarial.detach().numpy().astype(np.float32)
    with replacing(path) as file:
        np.savez_compressed(file, distances=d, cost=cost, adversarial=stored)
    return _run_of(d, cost, settings)


def _run_of(distances: Floats, cost: Any, settings: dict[str, Any]) -> Run:
    evaluations, forwards, seconds, cpu_seconds, queries = (float(value) for value in cost)
    return Run(distances, evaluations, forwards, seconds, settings, cpu_seconds, queries)


def rival_runs(
    case: networks.Case, *, refresh: bool = False, cached: bool = False
) -> Iterator[tuple[str, Run]]:
    """Each rival at its chosen settings, and, where these differ, at its defaults.

    The latter under "NAME (defaults)"; not for C&W untargeted or on a convolutional network, where
    its 1,800 to 9,000 evaluations an image are run once, nor at all on ImageNet's (45 minutes).
    Without a sweep of this network the defaults are "NAME". ``cached``: only those in the cache.
    """
    if case.norm != "l2":
        for name, rival in NORM_RIVALS.items():
            slow = name.startswith("PDPGD") and len(case.images) > MOST_PDPGD
            if rival.norm == case.norm and not slow:
                yield name, rival_run(case, name, rival.default, refresh=refresh)
        return
    tuned = rivals.chosen_settings(case.name, targeted=case.targeted)
    convolutional = case.images.ndim == 4
    plan: list[tuple[str, str, dict[str, Any]]] = []
    for name in rivals.names(targeted=case.targeted, convolutional=convolutional):
        default = rivals.RIVALS[name].default
        if name.startswith("C&W") and case.name in networks.IMAGENET:
            continue
        settings = tuned.get(name, default)
        plan.append((name, name, settings))
        once = name.startswith("C&W") and (convolutional or not case.targeted)
        if settings != default and not once:
            plan.append((f"{name} (defaults)", name, default))
    for label, name, settings in plan:
        if not cached or _path(case, name, settings).exists():
            yield label, rival_run(case, name, settings, refresh=refresh)


def default_images(name: str) -> int:
    """Images measured: 200 on dense networks, 100 on convolutional ones, the pictures there are."""
    return 200 if name in (*networks.DENSE, *networks.HARD) else 100


def load_envelope(
    name: str, targeted: bool = True, images: int | None = None, cached: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.int64], Floats, dict[str, Floats]]:
    """Images, targets (or labels), the rivals' best distance for each, and each rival's distances.

    Reads the cache and runs what is not there (``cached``: leaves it out). Infinite: not found.
    """
    case = networks.case(name, targeted=targeted, images=images or default_images(name))
    by_attack = {attack: run.distances for attack, run in rival_runs(case, cached=cached)}
    envelope_distances = np.min([np.full(len(case.images), np.inf), *by_attack.values()], axis=0)
    return case.images, case.classes, envelope_distances, by_attack
