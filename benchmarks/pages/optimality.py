"""Tables of README.md and docs/optimality.md, made from the figures of bench_optimality.py.

They stand between the marks <!-- optimality: ... --> and <!-- /optimality -->, and between those of
effort.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import machine

from .markdown import DOCS, README, between, table

FIGURES = ("bench_optimality_targeted", "bench_optimality_untargeted")
OPTIMALITY = DOCS / "optimality.md"
EFFORTS = ("fast", "default", "thorough")
DENSE = {
    "embedded": "the package's",
    "fc100_100_10": "784-100-100-10, sigmoid",
    "fc200_200_10": "784-200-200-10, sigmoid",
    "tanh": "784-100-100-10, tanh",
    "relu": "784-100-100-10, ReLU",
    "fc10": "784-10, linear",
    "abc_mnist_2_20": "alpha-beta-CROWN's ReLU, 2 layers",
    "abc_mnist_6_100_nat": "alpha-beta-CROWN's ReLU, 6 layers",
    "saturated": "saturated softmax",
}
CONVOLUTIONAL = {
    "colt_mnist_linf0.1": "convolutional, COLT",
    "wk_convex_linf0.1": "convolutional, Wong and Kolter",
    "smallcnn_fmn_regular": "convolutional with max-pooling, FMN",
    "rays_smallcnn_bn": "convolutional with max-pooling, RayS",
    "abc_cifar_cnn_a_mix": "CIFAR-10, convolutional",
    "vnncomp_resnet2b": "CIFAR-10, residual",
    "squeezenet1_0": "ImageNet, SqueezeNet, 15 pictures",
    "squeezenet1_0_next": "the same, next-likeliest targets, 6 pictures",
}
SHORT = (
    *("embedded", "abc_mnist_6_100_nat", "smallcnn_fmn_regular", "rays_smallcnn_bn"),
    *("colt_mnist_linf0.1", "vnncomp_resnet2b", "squeezenet1_0", "squeezenet1_0_next"),
)
"""Rows of the README: the best and the worst."""
Attacks = dict[str, dict[str, dict[str, Any]]]
"""By network and attack."""


def load_attacks(kind: str) -> Attacks:
    """The figures of "targeted" or "untargeted" runs."""
    networks = machine.load(f"bench_optimality_{kind}")["networks"]
    return {name: figures["attacks"] for name, figures in networks.items()}


def best_rival(attacks: dict[str, dict[str, Any]], *, evaluations: bool = False) -> str:
    """The rival with the smallest mean over the envelope, of those that miss no image."""
    means = {
        name: attack["mean_over_envelope"]
        for name, attack in attacks.items()
        if attack["success"] == 1 and name != "envelope" and not name.startswith("advcore")
    }
    name = min(means, key=lambda rival: means[rival])
    cost = f" ({attacks[name]['evaluations']:,.0f})" if evaluations else ""
    return f"{name.removesuffix(' (defaults)')} {means[name]:.3f}{cost}"


def short_table(targeted: Attacks) -> str:
    """Mean over the envelope and evaluations of some networks."""
    rows = []
    for network in SHORT:
        attacks = targeted[network]
        rows.append(
            (
                (DENSE | CONVOLUTIONAL)[network],
                best_rival(attacks, evaluations=True),
                *(
                    f"{a['mean_over_envelope']:.3f} ({a['evaluations']:.0f})"
                    for a in (attacks[f"advcore {effort}"] for effort in EFFORTS)
                ),
            )
        )
    return table(("network", "best single rival with success 100%", *EFFORTS), rows)


def whole_table(targeted: Attacks, untargeted: Attacks) -> str:
    """The same for every network, with untargeted runs."""
    rows = []
    for network, words in (DENSE | CONVOLUTIONAL).items():
        if network not in targeted:
            continue
        our_attacks = [targeted[network].get(f"advcore {effort}") for effort in EFFORTS]
        attacks = untargeted.get(network, {})
        our_untargeted = [attacks.get(f"advcore {effort}") for effort in EFFORTS[1:]]
        rows.append(
            (
                words,
                best_rival(targeted[network]),
                *(
                    "" if a is None else f"{a['mean_over_envelope']:.3f}, {a['evaluations']:.0f}"
                    for a in our_attacks
                ),
                *("" if a is None else f"{a['mean_over_envelope']:.3f}" for a in our_untargeted),
            )
        )
    head = ("network", "best single rival with success 100%", "advcore fast", "default", "thorough",
            "untargeted: default", "thorough")  # fmt: skip
    return table(head, rows)


def effort_table(targeted: Attacks) -> str:
    """Mean over the envelope, evaluations + forwards and the 99th percentile, by network."""
    rows = []
    for network, words in {**DENSE, "one_hot": "one-hot outputs"}.items():
        cells = [words]
        for effort in EFFORTS:
            a = targeted[network][f"advcore {effort}"]
            cells += [
                f"{a['mean_over_envelope']:.4f}",
                f"{a['evaluations']:.0f} + {a['forwards']:.0f}",
                f"{a['p99_evaluations']:.0f}",
            ]
        rows.append(tuple(cells))
    head = tuple(part for effort in EFFORTS for part in (effort, "evaluations", "p99"))
    return table(("network", *head), rows)


def files() -> dict[Path, str]:
    """Both files with their tables."""
    targeted, untargeted = load_attacks("targeted"), load_attacks("untargeted")
    text = between("optimality", OPTIMALITY.read_text(), whole_table(targeted, untargeted))
    return {
        README: between("optimality", README.read_text(), short_table(targeted)),
        OPTIMALITY: between("effort", text, effort_table(targeted)),
    }
