"""One residual network in all the forms in which users hold a model.

    ADVCORE_DATA=... OMP_WAIT_POLICY=passive python benchmarks/bench_forms.py
        [--forms NAME ...] [--images N] [--effort NAME]

The network is ``vnncomp_resnet2b`` of CIFAR-10. Each form has the same weights and random targets.
Stored are success, mean evaluations, mean distortion, CPU microseconds an evaluation of a second
run on one thread, the record of what ran and the warnings of the call. A form is stored as soon as
it is finished, and those that are not named stay as they were. Forms of packages that are not
installed are left out.

Figures go to ``benchmarks/results/bench_forms.json``; `make_pages.py forms` makes the table of
docs/models.md from that file.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import machine, networks
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import advcore

NAME = "vnncomp_resnet2b"


class Checkpointed(nn.Module):
    """A chain whose parts are computed again in the backward."""

    def __init__(self, parts: nn.Sequential) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = checkpoint(part, x, use_reentrant=False)
        return x


class Own(nn.Module):
    """A class of the user's with a forward of its own."""

    def __init__(self, parts: nn.Sequential) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


def functional(module: nn.Module, x: Tensor) -> Tensor:
    """The network by functions of torch alone."""
    if isinstance(module, nn.Sequential):
        for part in module:
            x = functional(part, x)
        return x
    if isinstance(module, networks.Block):
        inner = F.relu(functional(module.first, x))
        return F.relu(functional(module.second, inner) + functional(module.shortcut, x))
    if isinstance(module, nn.Conv2d):
        return F.conv2d(x, module.weight, module.bias, module.stride, module.padding)
    if isinstance(module, nn.Linear):
        return F.linear(x, module.weight, module.bias)
    if isinstance(module, nn.ReLU):
        return F.relu(x)
    if isinstance(module, nn.Flatten):
        return x.flatten(1)
    return module(x)


class Functional(nn.Module):
    """A class whose forward calls functions of torch."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return functional(self.net, x)


def exported(net: nn.Module, x: Tensor) -> Any:
    rows = torch.export.Dim("rows")
    return torch.export.export(net, (x,), dynamic_shapes=({0: rows},))


def pt2_file(net: nn.Module, x: Tensor) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.pt2"
        torch.export.save(exported(net, x), path)
        return advcore.load_model(path)


def onnx_file(net: nn.Module, x: Tensor, dynamo: bool) -> Any:
    if dynamo:
        shapes: dict[str, Any] = {"dynamic_shapes": ({0: torch.export.Dim("rows")},)}
    else:
        shapes = {"dynamic_axes": {"x": {0: "rows"}, "y": {0: "rows"}}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        names = {"input_names": ["x"], "output_names": ["y"]}
        torch.onnx.export(net, (x,), str(path), dynamo=dynamo, **names, **shapes)
        return advcore.load_model(path)


def foolbox_model(net: nn.Module, x: Tensor) -> Any:
    import foolbox

    return foolbox.PyTorchModel(net, (0, 1), "cpu")


def art_classifier(net: nn.Module, x: Tensor) -> Any:
    from art.estimators.classification import PyTorchClassifier

    shape = tuple(x.shape[1:])
    return PyTorchClassifier(net, nn.CrossEntropyLoss(), shape, networks.CLASSES)


FORMS: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "module": (lambda net, x: net, ""),
    "class of its own": (lambda net, x: Own(net).eval(), ""),
    "functional code": (lambda net, x: Functional(net).eval(), ""),
    "functional code, no module": (lambda net, x: functools.partial(functional, net), ""),
    "bound method": (lambda net, x: net.forward, ""),
    "function that calls it": (lambda net, x: lambda images: net(images), ""),
    "torch.fx": (lambda net, x: torch.fx.symbolic_trace(net), ""),
    "torch.export program": (lambda net, x: exported(net, x).module(), ""),
    ".pt2 file": (pt2_file, ""),
    "ONNX file, TorchScript exporter": (lambda net, x: onnx_file(net, x, False), "onnx"),
    "ONNX file, dynamo exporter": (lambda net, x: onnx_file(net, x, True), "onnxscript"),
    "torch.compile": (lambda net, x: torch.compile(net), ""),
    "checkpointed": (lambda net, x: Checkpointed(net).eval(), ""),
    # TorchScript cannot read annotations of attributes that are strings.
    "torch.jit.script": (lambda net, x: torch.jit.script(torch.fx.symbolic_trace(net)).eval(), ""),
    "torch.jit.trace": (lambda net, x: torch.jit.trace(net, x), ""),
    "Foolbox PyTorchModel": (foolbox_model, "foolbox"),
    "ART PyTorchClassifier": (art_classifier, "art"),
}
"""By name: how a form is made of module and images, and the package that it needs."""


def measure(model: Any, case: networks.Case, effort: str) -> dict[str, Any]:
    """Figures of one form on the images of a case."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = advcore.minimize_distortion(
            model, case.images, case.classes, effort=effort, threads=1
        )
    begin = time.process_time()
    advcore.minimize_distortion(model, case.images, case.classes, effort=effort, threads=1)
    seconds = time.process_time() - begin
    found = result.success
    return {
        "images": len(found),
        "effort": effort,
        "success": float(found.mean()),
        "evaluations": float(result.evaluations.mean()),
        "distortion": float(result.distortion[found].mean()),
        "us_an_evaluation": 1e6 * seconds / int(result.evaluations.sum()),
        "engine": result.engine,
        "warnings": [str(w.message) for w in caught if w.filename == __file__],
    }


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints and stores form by form."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--effort", default="default")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    case = networks.case(NAME, targeted=True, images=args.images)
    x = torch.from_numpy(case.images[:2])
    stored = machine.figures_file("bench_forms")
    figures = json.loads(stored.read_text())["forms"] if stored.is_file() else {}
    for name in args.forms:
        make, package = FORMS[name]
        if package and importlib.util.find_spec(package) is None:
            print(f"{name}: {package} is not installed")
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporters
            model = make(case.model, x)
        figures[name] = measure(model, case, args.effort)
        print(name, figures[name])
        ordered = {form: figures[form] for form in FORMS if form in figures}
        machine.save("bench_forms", {"forms": ordered})


if __name__ == "__main__":
    main()
