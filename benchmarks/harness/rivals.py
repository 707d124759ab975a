"""Rival attacks from their own package, targeted and untargeted, as functions of one form.

adv-lib 0.2.8 (``pip install --no-deps adv-lib==0.2.8 tqdm``). Two packages that it imports, visdom
for its logs and torchvision for a perceptual distance, take no part in these attacks; where they
are missing, or do not fit torch, empty modules stand in for them.

Each rival has its default settings (the package's but for the number of steps) and a grid of
others, which `sweep_rivals.py` tries on held-out images; what it chose for a network is in
``results/rival_settings.json``.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

VERSION = "adv-lib 0.2.8"
SETTINGS = Path(__file__).parents[1] / "results" / "rival_settings.json"
Settings = dict[str, Any]
Attack = Callable[[torch.nn.Module, torch.Tensor, torch.Tensor, bool, Settings], torch.Tensor]


def is_installed() -> bool:
    """Whether adv-lib is there."""
    return importlib.util.find_spec("adv_lib") is not None


@functools.cache
def _import() -> types.ModuleType:
    for name, parts in (("torchvision", ("models", "transforms")), ("visdom", ("Visdom",))):
        try:
            importlib.import_module(name)
        except (ImportError, RuntimeError):  # absent, or built for another torch
            module = types.ModuleType(name)
            for part in parts:
                setattr(module, part, types.ModuleType(part))
            sys.modules[name] = module
    return importlib.import_module("adv_lib.attacks")


class Counted(torch.nn.Module):
    """A model that counts the rows it evaluates, and which of them with a gradient.

    SuperDeepFool takes a backward for each class, so its evaluations cost more than one pair.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.evaluations = 0  # rows propagated forward with a graph, for a backward
        self.forwards = 0  # rows propagated forward only
        self.queries = 0  # rows propagated forward, and rows propagated backward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The model's logits."""
        logits: torch.Tensor = self.model(x)
        self.queries += len(x)
        if x.requires_grad and torch.is_grad_enabled():
            self.evaluations += len(x)
            logits.register_hook(self._count_backward)
        else:
            self.forwards += len(x)
        return logits

    def _count_backward(self, gradient: torch.Tensor) -> None:
        self.queries += len(gradient)


@dataclasses.dataclass(frozen=True)
class Rival:
    """An attack, its default settings, and the others to try."""

    call: Attack
    default: Settings
    grid: tuple[Settings, ...]
    brief: Settings  # changes for a run of few steps that cost what they do in a long one
    targeted: bool = True  # False: untargeted only
    searching: tuple[str, int] | None = None  # setting to be smaller in a sweep, and its value
    compared: bool = True  # False: takes part in bench_speed or bench_anytime only
    one_backward: bool = True  # False: a backward for each class
    norm: str = "l2"


def _ddn(m: Any, x: torch.Tensor, y: torch.Tensor, t: bool, s: Settings) -> torch.Tensor:
    return _import().ddn(
        m,
        x,
        y,
        t,
        steps=s.get("steps", 1000),
        levels=None,
        γ=s["gamma"],
        init_norm=s["init_norm"],
    )


def _alma(m: Any, x: torch.Tensor, y: torch.Tensor, t: bool, s: Settings) -> torch.Tensor:
    penalties = importlib.import_module("adv_lib.utils.lagrangian_penalties").all_penalties
    return _import().alma(
        m,
        x,
        y,
        penalty=penalties[s["penalty"]],
        targeted=t,
        num_steps=s.get("steps", 1000),
        distance="l2",
        init_lr_distance=s["init_lr_distance"],
        α=s["alpha"],
        ρ_init=s["rho_init"],
        lr_reduction=s["lr_reduction"],
    )


def _pdgd(m: Any, x: torch.Tensor, y: torch.Tensor, t: bool, s: Settings) -> torch.Tensor:
    rates = {key: value for key, value in s.items() if key != "steps"}
    return _import().pdgd(m, x, y, t, num_steps=s.get("steps", 500), **rates)


def _fmn(m: Any, x: torch.Tensor, y: torch.Tensor, t: bool, s: Settings) -> torch.Tensor:
    return _import().fmn(
        m,
        x,
        y,
        norm=2,
        targeted=t,
        steps=s.get("steps", 1000),
        α_init=s["alpha_init"],
        γ_init=s["gamma_init"],
    )


def _carlini_wagner(m: Any, x: torch.Tensor, y: torch.Tensor, t: bool, s: Settings) -> torch.Tensor:
    return _import().carlini_wagner_l2(m, x, y, t, binary_search_steps=9, **s)


def _superdeepfool(m: Any, x: torch.Tensor, y: torch.Tensor, t: bool, s: Settings) -> torch.Tensor:
    return _import().sdf(m, x, y, t, **s)


def _fab(m: Any, x: torch.Tensor, y: torch.Tensor, t: bool, s: Settings) -> torch.Tensor:
    found = _import().fab(
        m, x, y, norm=2, n_iter=s["steps"], α_max=s["alpha_max"], η=s["eta"], targeted=t
    )
    return torch.as_tensor(found)


def _grid(default: Settings, *changes: Settings) -> tuple[Settings, ...]:
    return (default, *({**default, **change} for change in changes))


_DDN = {"gamma": 0.05, "init_norm": 1.0}
_DDN_100 = {**_DDN, "steps": 100}
_ALMA = {
    "init_lr_distance": 1.0,
    "alpha": 0.9,
    "penalty": "P2",
    "rho_init": 1.0,
    "lr_reduction": 0.01,
}
_PDGD = {"primal_lr": 0.1, "dual_ratio_init": 0.01, "dual_lr": 0.1}
_FMN = {"alpha_init": 1.0, "gamma_init": 0.05}
_CW = {"learning_rate": 0.01, "initial_const": 1e-3, "max_iterations": 1000}
_CW_SHORT = {**_CW, "max_iterations": 200}
_FAB = {"steps": 100, "alpha_max": 0.1, "eta": 1.05}
_SDF = {"steps": 100, "overshoot": 0.02}

_CW_CHANGES: tuple[Settings, ...] = (
    {"initial_const": 0.1},
    {"initial_const": 10.0},
    {"initial_const": 0.1, "learning_rate": 0.03},
    {"initial_const": 0.1, "learning_rate": 0.1},
)

_BRIEF = {"steps": 50}

RIVALS: dict[str, Rival] = {
    "DDN-1000": Rival(
        _ddn,
        _DDN,
        _grid(
            _DDN,
            {"gamma": 0.02},
            {"gamma": 0.01},
            {"gamma": 0.005},
            {"gamma": 0.1},
            {"gamma": 0.01, "init_norm": 2.0},
        ),
        brief=_BRIEF,
    ),
    "DDN-100": Rival(
        _ddn,
        _DDN_100,
        _grid(
            _DDN_100,
            {"gamma": 0.02},
            {"gamma": 0.03},
            {"gamma": 0.1},
            {"gamma": 0.2},
            {"gamma": 0.03, "init_norm": 2.0},
            {"init_norm": 2.0},
            {"init_norm": 3.0},
            {"gamma": 0.1, "init_norm": 2.0},
        ),
        brief=_BRIEF,
        compared=False,
    ),
    "ALMA-1000": Rival(
        _alma,
        _ALMA,
        _grid(
            _ALMA,
            {"init_lr_distance": 0.3},
            {"init_lr_distance": 3.0},
            {"alpha": 0.5},
            {"alpha": 0.5, "init_lr_distance": 0.3},
            {"penalty": "P3"},
            {"rho_init": 0.1},
            {"lr_reduction": 0.001},
            {"lr_reduction": 0.001, "init_lr_distance": 0.3},
        ),
        brief=_BRIEF,
    ),
    "PDGD-500": Rival(
        _pdgd,
        _PDGD,
        _grid(
            _PDGD,
            {"primal_lr": 0.03},
            {"primal_lr": 0.01},
            {"primal_lr": 0.3},
            {"dual_ratio_init": 1.0},
            {"primal_lr": 0.03, "dual_ratio_init": 1.0},
            {"dual_lr": 0.03},
            {"dual_lr": 0.03, "dual_ratio_init": 1.0},
        ),
        brief=_BRIEF,
    ),
    "FMN-1000": Rival(
        _fmn,
        _FMN,
        _grid(
            _FMN,
            {"alpha_init": 0.1},
            {"alpha_init": 0.3},
            {"alpha_init": 3.0},
            {"alpha_init": 10.0},
            {"gamma_init": 0.3},
            {"alpha_init": 3.0, "gamma_init": 0.3},
        ),
        brief=_BRIEF,
    ),
    "C&W 9x1000": Rival(
        _carlini_wagner,
        _CW,
        _grid(_CW, *_CW_CHANGES),
        brief={"max_iterations": 20},
        searching=("max_iterations", 400),
    ),
    "C&W 9x200": Rival(
        _carlini_wagner,
        _CW_SHORT,
        _grid(_CW_SHORT, *_CW_CHANGES),
        brief={"max_iterations": 20},
    ),
    "SuperDeepFool": Rival(
        _superdeepfool,
        _SDF,
        _grid(_SDF, {"overshoot": 0.1}),
        brief={"steps": 10},
        targeted=False,
        one_backward=False,
    ),
    "FAB": Rival(
        _fab,
        _FAB,
        _grid(_FAB, {"alpha_max": 0.3}, {"eta": 1.01}),
        brief={"steps": 10},
        targeted=False,
        compared=False,
        one_backward=False,
    ),
}


def names(*, targeted: bool, convolutional: bool) -> list[str]:
    """Rivals whose distortions are compared; C&W on convolutional networks with 200 steps."""
    left_out = "C&W 9x1000" if convolutional else "C&W 9x200"
    return [
        name
        for name, rival in RIVALS.items()
        if name != left_out and rival.compared and (rival.targeted or not targeted)
    ]


def chosen_settings(network: str, *, targeted: bool) -> dict[str, Settings]:
    """Settings that the sweep chose, by rival; empty where there was none."""
    if not SETTINGS.exists():
        return {}
    sweeps = json.loads(SETTINGS.read_text())
    by_network: dict[str, dict[str, dict[str, Settings]]] = sweeps["chosen"]
    return by_network.get(network, {}).get("targeted" if targeted else "untargeted", {})
