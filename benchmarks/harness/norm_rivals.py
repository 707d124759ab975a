"""Rival attacks in linf and l1, from adv-lib as those of `rivals.py`, at fixed settings.

APGD finds an image within a given radius. The smallest radius is found here by bisection, which
tests for the target in a targeted run; adv-lib's own `minimal_apgd` tests for a change of the label
there too.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from .rivals import Attack, Rival, Settings, _import

ORDER = {"linf": float("inf"), "l1": 1.0, "l2": 2.0}
FIRST_RADIUS = {"linf": 0.5, "l1": 150.0, "l2": 10.0}
HALVINGS = 13


def _fmn(norm: str, m: Any, x: Any, y: Any, targeted: bool, s: Settings) -> torch.Tensor:
    settings = {"steps": s["steps"], "α_init": s["alpha_init"]}
    found: torch.Tensor = _import().fmn(m, x, y, norm=ORDER[norm], targeted=targeted, **settings)
    return found


def _pdpgd(norm: str, m: Any, x: Any, y: Any, targeted: bool, s: Settings) -> torch.Tensor:
    order, steps = ORDER[norm], s["steps"]
    found: torch.Tensor = _import().pdpgd(m, x, y, norm=order, targeted=targeted, num_steps=steps)
    return found


def _apgd(norm: str, m: Any, x: Any, y: Any, targeted: bool, s: Settings) -> torch.Tensor:
    low, high = torch.zeros(len(x)), torch.full((len(x),), FIRST_RADIUS[norm])
    best: torch.Tensor = x.clone()
    for _ in range(HALVINGS):
        radius = (low + high) / 2
        found = _import().apgd(
            m,
            x,
            y,
            eps=radius,
            norm=ORDER[norm],
            targeted=targeted,
            n_iter=s["steps"],
            loss_function=s["loss"],
        )
        with torch.no_grad():
            reached = (m(found).argmax(dim=1) == y) == targeted
        best[reached] = found[reached]
        low, high = torch.where(reached, low, radius), torch.where(reached, radius, high)
    return best


def apgd(norm: str) -> Rival:
    """APGD in a norm, its smallest radius by bisection."""
    settings = {"steps": 100, "loss": "ce"}
    call: Attack = functools.partial(_apgd, norm)
    return Rival(call, settings, (settings,), brief=settings, norm=norm)


def _rivals(norm: str) -> dict[str, Rival]:
    def rival(call: Any, settings: Settings) -> Rival:
        attack: Attack = functools.partial(call, norm)
        return Rival(attack, settings, (settings,), brief=settings, norm=norm)

    rates = (1.0, 0.3, 0.1) if norm == "l1" else (10.0, 1.0, 0.1)
    rivals = {
        f"FMN-1000 {norm}, rate {rate:g}": rival(_fmn, {"steps": 1000, "alpha_init": rate})
        for rate in rates
    }
    rivals[f"APGD {HALVINGS}x100 {norm}"] = apgd(norm)
    rivals[f"PDPGD-500 {norm}"] = rival(_pdpgd, {"steps": 500})
    return rivals


NORM_RIVALS = {name: rival for norm in ("linf", "l1") for name, rival in _rivals(norm).items()}
