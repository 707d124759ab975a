"""Fifty architectures of torchvision and timm: how each is read, and whether the reading is right.

    python benchmarks/survey_architectures.py [--names NAME ...] [--images N]

Each architecture gets random weights (seed 0), 10 classes, small images, and statistics of its
batch norms from a forward in training mode. For each are stored: where it runs in eval mode and
why, what is smoothed in it, and the largest differences of logits and input gradients between the
module and

- *search*: what the search evaluates, exact: the native network, or the module through torch;
- *graph*: the traced graph of operations (``advcore.network.reading``), or why there is none.

Differences are relative: of logits to the largest, of gradients by the Euclidean norm. Above
`WRONG` a reading counts as wrong. Architectures of packages that are not installed are left out. A
finished row is stored at once, and rows that are not named stay.

Figures go to ``benchmarks/results/survey_architectures.json``; `make_pages.py architectures` makes
the table of docs/architectures.md from that file.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from harness import machine
from harness.torchvision_operators import define_missing_operators
from numpy.typing import NDArray
from torch import nn

from advcore.network import Unsupported
from advcore.network.reading.trace import trace
from advcore.options import Options
from advcore.solve.choose import choose_backend

WRONG = 1e-3
CLASSES = 10
Floats = NDArray[np.float32]

TORCHVISION = {
    "alexnet": 64,
    "vgg11": 32,
    "vgg16_bn": 32,
    "resnet18": 32,
    "resnet50": 32,
    "resnext50_32x4d": 32,
    "wide_resnet50_2": 32,
    "densenet121": 32,
    "squeezenet1_0": 64,
    "squeezenet1_1": 64,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "mobilenet_v3_large": 32,
    "efficientnet_b0": 32,
    "efficientnet_v2_s": 32,
    "regnet_x_400mf": 32,
    "regnet_y_400mf": 32,
    "shufflenet_v2_x0_5": 32,
    "mnasnet0_5": 32,
    "googlenet": 64,
    "inception_v3": 80,
    "convnext_tiny": 32,
    "swin_t": 64,
    "maxvit_t": 224,
}
"""Builders of torchvision, and the side of their images."""
TIMM = {
    "vit_tiny_patch16_224": 224,
    "deit_tiny_patch16_224": 224,
    "beit_base_patch16_224": 224,
    "cait_xxs24_224": 224,
    "xcit_nano_12_p16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "mixer_s32_224": 224,
    "gmixer_12_224": 224,
    "gmlp_ti16_224": 224,
    "resmlp_12_224": 224,
    "poolformer_s12": 64,
    "convnext_atto": 32,
    "convmixer_768_32": 32,
    "edgenext_xx_small": 64,
    "mobilevit_xxs": 64,
    "nfnet_f0": 32,
    "nf_resnet50": 32,
    "repvgg_a0": 32,
    "hrnet_w18_small": 64,
    "dla34": 32,
    "dla46_c": 64,
    "seresnet18": 32,
    "senet154": 32,
    "res2net50_14w_8s": 32,
    "skresnet18": 32,
    "resnest14d": 32,
    "ghostnet_050": 32,
    "efficientnet_lite0": 32,
    "cspresnet50": 32,
    "vovnet39a": 32,
    "dpn48b": 32,
    "selecsls42b": 32,
    "rexnet_100": 32,
    "fbnetc_100": 32,
    "coatnet_0_224": 224,
    "levit_128s": 224,
    "pit_ti_224": 224,
    "visformer_tiny": 224,
}
"""Names of timm, and the side of their images."""


def torchvision_module(name: str) -> nn.Module:
    """An architecture of torchvision."""
    import torchvision

    aux: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        aux = {"aux_logits": False, "init_weights": True}
    model: nn.Module = getattr(torchvision.models, name)(weights=None, num_classes=CLASSES, **aux)
    return model


def timm_module(name: str) -> nn.Module:
    """An architecture of timm."""
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=CLASSES)
    return model


def architectures(names: Iterable[str] | None) -> dict[str, tuple[Callable[[], nn.Module], int]]:
    """Builder and side of the images by name, of the packages that are installed."""
    found: dict[str, tuple[Callable[[], nn.Module], int]] = {}
    for package, sides, build in (
        ("torchvision", TORCHVISION, torchvision_module),
        ("timm", TIMM, timm_module),
    ):
        if importlib.util.find_spec(package) is None:
            continue
        for name, side in sides.items():
            key = f"{package}: {name}"
            if names is None or key in names or name in names:
                found[key] = (lambda build=build, name=name: build(name)), side  # type: ignore[misc]
    return found


def prepare(module: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The module in eval mode, with statistics of the batch norms that are not 0 and 1.

    Weights that start at zero, as those of heads and of the ends of residual branches, are random.
    """
    generator = torch.Generator().manual_seed(0)
    for name, weight in module.named_parameters():
        if not name.endswith("bias") and not weight.any():
            scale = weight[0].numel() ** -0.5
            weight.data = scale * torch.randn(weight.shape, generator=generator)
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if norms:
        module.train()
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.eval()
        with torch.no_grad():
            module(torch.rand(8, *shape, generator=generator))
    return module.eval().requires_grad_(False)


def differences(
    evaluate: Callable[[Floats, Floats], tuple[Floats, Floats]],
    expected: tuple[Floats, Floats],
    x: Floats,
    seed: Floats,
) -> dict[str, float]:
    """Relative differences of logits and of gradients of what ``evaluate`` gives for ``x``."""
    logits, gradient = evaluate(x, seed)
    norm = float(np.linalg.norm(expected[1]))
    return {
        "logits": float(np.abs(logits - expected[0]).max() / np.abs(expected[0]).max()),
        "gradient": float(np.linalg.norm(gradient - expected[1]) / (norm or 1.0)),
    }


def by_autograd(call: Callable[[Any], Any]) -> Callable[[Floats, Floats], tuple[Floats, Floats]]:
    """Logits and input gradient of a torch callable."""

    def evaluate(x: Floats, seed: Floats) -> tuple[Floats, Floats]:
        leaf = torch.from_numpy(x.copy()).requires_grad_(True)
        logits = call(leaf)
        (gradient,) = torch.autograd.grad(logits, leaf, torch.from_numpy(seed))
        return logits.detach().numpy(), gradient.numpy()

    return evaluate


def by_search(
    backend: Any, shape: tuple[int, ...]
) -> Callable[[Floats, Floats], tuple[Floats, Floats]]:
    """Logits and input gradient of what a back end searches."""
    searched = backend.network if backend.info.path == "native" else backend.oracle

    def evaluate(x: Floats, seed: Floats) -> tuple[Floats, Floats]:
        logits = np.array(searched.forward(x.reshape(len(x), -1)))
        return logits, np.array(searched.backward(seed)).reshape(len(x), *shape)

    return evaluate


def smoothed(backend: Any) -> dict[str, int]:
    """Number of smoothed calls, by the shape of what they are applied to: maps or vectors."""
    scales = getattr(getattr(backend, "oracle", None), "_scales", None)
    if scales is None:
        return {}
    on_maps = sum(len(shape) > 1 for shape in scales.row_shapes.values())
    return {"maps": on_maps, "vectors": len(scales.row_shapes) - on_maps}


def survey(module: nn.Module, shape: tuple[int, ...], images: int = 3) -> dict[str, Any]:
    """One row: how the module is read, and the differences of the readings."""
    rng = np.random.default_rng(0)
    x = rng.random((images, *shape), dtype=np.float32)
    begin = time.perf_counter()
    backend = choose_backend(module, x.reshape(images, -1), shape, Options(threads=1))
    seconds = time.perf_counter() - begin
    seed = rng.standard_normal((images, backend.classes)).astype(np.float32)
    expected = by_autograd(module)(x, seed)
    row: dict[str, Any] = {
        "shape": list(shape),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "seconds": seconds,
        "path": backend.info.path,
        "reason": backend.info.reason,
        "kind": backend.kind,
        "smoothed": smoothed(backend),
        "search": differences(by_search(backend, shape), expected, x, seed),
    }
    try:
        graph = trace(module, torch.from_numpy(x[:1]))
    except Unsupported as unsupported:
        row["graph"] = unsupported.reason
    else:
        row["graph"] = differences(by_autograd(graph), expected, x, seed)
        row["operations"] = sum(node.op == "call_function" for node in graph.graph.nodes)
    readings = [part for part in (row["search"], row["graph"]) if isinstance(part, dict)]
    row["wrong"] = not all(max(part.values()) <= WRONG for part in readings)
    return row


def main(arguments: list[str] | None = None) -> None:
    """Surveys, prints and stores row by row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--names", nargs="+", help="default: all")
    parser.add_argument("--images", type=int, default=3)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    library = define_missing_operators()
    stored = machine.figures_file("survey_architectures")
    rows: dict[str, Any] = json.loads(stored.read_text())["rows"] if stored.is_file() else {}
    chosen = architectures(args.names)
    for name, (build, side) in chosen.items():
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = prepare(build(), (3, side, side))
            rows[name] = survey(module, (3, side, side), args.images)
        print(name, rows[name], flush=True)
        ordered = {key: rows[key] for key in [*architectures(None), *rows] if key in rows}
        machine.save("survey_architectures", {"rows": ordered})
    del library


if __name__ == "__main__":
    main()
