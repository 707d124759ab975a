"""The tables, the figure and the remarks of table 5."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import nn

from .lipschitz import Bounds, Layer, Response, describe, kernel_of
from .pictures import slug
from .tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

CONSTANT, FOURIER, PARTS = "Lipschitz constant", "Fourier bound", "sqrt(a² + b²)"
ITERATIONS, PRODUCT, GROWN = "iterations", "product so far", "largest growth"


@dataclass(frozen=True)
class Measured:
    """The measurements of one network of one seed.

    response : None where there are no pictures to attack.
    """

    layers: list[Layer]
    bounds: Bounds
    response: Response | None

    @property
    def bound(self) -> float:
        """The product of all constants."""
        return float(self.bounds.product[-1])

    @property
    def pooling(self) -> float:
        """The factor of max-pooling in the bound, which the paper takes to be 1."""
        pools = [isinstance(layer.module, nn.MaxPool2d) for layer in self.layers]
        return float(np.prod(self.bounds.constant[pools]))


def layer_table(name: str, measured: Sequence[Measured], published: Mapping[str, float]) -> Table:
    """Tabulate the layers of one network.

    published : the paper's operator norms by the name of the layer.
    """
    network = measured[0]
    product_format = ".1f" if network.bound < 1e4 else ".2e"
    explained = [
        "Layers with the constant 1 (ReLU, max-pooling without overlap) are left out.",
        f"{CONSTANT}: of a weight layer its operator norm at its real input size.",
    ]
    if np.isfinite(network.bounds.fourier).any():
        explained.append(
            f"{FOURIER}: norm of the convolution without borders, never smaller. Iterations: of "
            "the power iteration that found the norm with borders."
        )
    if np.isfinite(network.bounds.parts).any():
        explained.append(f"{PARTS}: from the norms of the 1x1 and the 3x3 convolution apart.")
    if network.response is not None:
        explained.append(
            f"{GROWN}: from the network's input to the output of this layer, over the adversarial "
            "examples."
        )
    table = Table(
        "table5_" + slug(name),
        f"{name}: its layers",
        " ".join(explained),
        corner="layer",
        formats={"": ".3f", PRODUCT: product_format, GROWN: product_format, ITERATIONS: ".0f"},
    )
    columns: dict[str, Callable[[Measured], NDArray[np.float64] | None]] = {
        CONSTANT: lambda one: one.bounds.constant,
        FOURIER: lambda one: one.bounds.fourier,
        PARTS: lambda one: one.bounds.parts,
        ITERATIONS: lambda one: one.bounds.iterations,
        PRODUCT: lambda one: one.bounds.product,
        GROWN: lambda one: None if one.response is None else one.response.grown.max(1),
    }
    for column, take in columns.items():
        arrays = [array for one in measured if (array := take(one)) is not None]
        for index in shown(network):
            layer = network.layers[index]
            norm = published.get(layer.name) if column == CONSTANT else None
            if arrays:
                table.add(describe(layer), column, [array[index] for array in arrays], norm)
    return table


def network_table(measurements: Mapping[str, Sequence[Measured]]) -> Table:
    """Tabulate the bound of each network beside the measured growth."""
    table = Table(
        "table5_networks",
        "The bound of the network and what happens",
        "Bound: the product of all constants, for the logits against pixels in [0, 1]. Max-pooling "
        "as 1: as the paper counts it. Jacobian of the logits: the largest norm at some of the "
        "clean images. Growth: the largest distance of two outputs over that of the inputs. The "
        "true constant lies between these and the bound. Excluded: the distortion, `sqrt(mean "
        "r^2)`, below which the bound proves that the image does not become its target; found: "
        "that of the adversarial examples; means.",
        corner="network",
        formats={"": ".2f", **dict.fromkeys(("bound", "max-pooling as 1"), ".3g")}
        | {"distortion excluded": ".1e", "distortion found": ".4f"},
    )
    for name, measured in measurements.items():
        table.add(name, "bound", [one.bound for one in measured])
        table.add(name, "max-pooling as 1", [one.bound / one.pooling for one in measured])
        responses = [one.response for one in measured if one.response is not None]
        if not responses:
            continue
        size = math.sqrt(math.prod(measured[0].layers[0].shape))
        table.add(name, "Jacobian", [one.jacobian.max() for one in responses])
        table.add(name, "growth, adversarial", [one.grown[-1].max() for one in responses])
        table.add(name, "growth, noise", [one.noise[-1].max() for one in responses])
        table.add(name, "distortion excluded", [one.excluded.mean() / size for one in responses])
        table.add(name, "distortion found", [one.found.mean() / size for one in responses])
    return table


def drawing(measurements: Mapping[str, Sequence[Measured]]) -> Drawing:
    """Draw a panel for each network, the deep ones in rows of their own, means over the seeds."""
    from matplotlib.figure import Figure

    deep_rows = [[name] for name in measurements if len(shown(measurements[name][0])) > 10]
    rows = [[name for name in measurements if [name] not in deep_rows], *deep_rows]
    figure = Figure(figsize=(8, 0.5 + 3.1 * len(rows)), layout="constrained")
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for row, part in zip(rows, parts, strict=True):
        panels = part.subplots(1, len(row), squeeze=False)[0]
        for axes, name in zip(panels, row, strict=True):
            _panel(axes, measurements[name])
            axes.set_title(name, fontsize="medium")
        panels[0].set_ylabel("distance over that\nof the inputs", fontsize="small")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize="small",
    )
    return figure


def _panel(axes: Axes, measured: Sequence[Measured]) -> None:
    indices = shown(measured[0])
    responses = [one.response for one in measured if one.response is not None]
    lines = [("product of the constants", "C3", [one.bounds.product for one in measured])]
    if responses:
        lines.append(("adversarial examples", "C0", [one.grown.max(1) for one in responses]))
        lines.append(("noise of the same norm", "0.55", [one.noise.max(1) for one in responses]))
    for label, color, arrays in lines:
        heights = [1.0, *np.mean(arrays, axis=0)[indices]]
        axes.plot(heights, "o-", color=color, label=label, markersize=3, linewidth=1.2)
    names = ["input", *(measured[0].layers[index].name.removesuffix("1x1") for index in indices)]
    axes.set_yscale("log")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize="x-small")
    axes.tick_params(axis="y", labelsize="small")
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def finding(measurements: Mapping[str, Sequence[Measured]]) -> str:
    """Return the range over the networks in one line."""
    times = {name: slack for name, (slack, _) in _factors(measurements).items()}
    if not times:
        return ""
    lowest, highest = min(times, key=times.__getitem__), max(times, key=times.__getitem__)
    return (
        "The product of the layers' constants is above any growth seen by a factor of "
        f"{times[lowest]:.2g} ({lowest}) to {times[highest]:.2g} ({highest})."
    )


def remarks(
    measurements: Mapping[str, Sequence[Measured]],
    absent: Mapping[str, str],
    published: Mapping[str, float],
) -> list[str]:
    """Return the remarks as paragraphs of Markdown.

    absent : the reason for each network that is missing.
    """
    factors = (
        f"{name} {slack:.3g} and {shortfall:.3g}"
        for name, (slack, shortfall) in _factors(measurements).items()
    )
    norms = ", ".join(f"{layer} {value:g}" for layer, value in published.items())
    paragraphs = [
        "**Far above what happens.** The product exceeds the largest growth or Jacobian seen, and "
        "the mean distortion found exceeds the one that it excludes, by the factors: "
        f"{'; '.join(factors)}. A large product is therefore no sign of adversarial examples, as "
        "the paper says.",
        *(f"**{name}** {why}." for name, why in absent.items()),
        f"**The published bounds** ({norms}) are quoted at second hand; 20 for conv1 and 7.3 for "
        "conv4 are quoted as well. They are of Krizhevsky's own network of 2012 (conv1 has 96 "
        "filters, pixels go from 0 to 255); torchvision's AlexNet has other layers (conv1 has 64 "
        "filters) and divides its input by the pixels' standard deviation, which the constant of "
        "its first layer depends on.",
        _border(measurements),
        _strides(measurements),
        _pooling(measurements),
    ]
    if expands := _expands(measurements):
        paragraphs.append(expands)
    return paragraphs


def _factors(measurements: Mapping[str, Sequence[Measured]]) -> dict[str, tuple[float, float]]:
    """The bound over what the Lipschitz constant is at least, distortion found over excluded."""
    factors = {}
    for name, measured in measurements.items():
        pairs = [(one.bound, one.response) for one in measured if one.response is not None]
        if pairs:
            slack = np.mean(
                [bound / max(one.grown[-1].max(), one.jacobian.max()) for bound, one in pairs]
            )
            shortfall = np.mean([one.found.mean() / one.excluded.mean() for _, one in pairs])
            factors[name] = (float(slack), float(shortfall))
    return factors


def _border(measurements: Mapping[str, Sequence[Measured]]) -> str:
    excess: dict[str, float] = {}
    iterations: list[float] = []
    for name, measured in measurements.items():
        bounds = measured[0].bounds
        iterations += [float(count) for count in bounds.iterations if np.isfinite(count)]
        for index in np.flatnonzero(np.isfinite(bounds.fourier)):
            key = f"{measured[0].layers[index].name} of {name}"
            excess[key] = 100 * (bounds.fourier[index] / bounds.constant[index] - 1)
    lowest, highest = min(excess, key=excess.__getitem__), max(excess, key=excess.__getitem__)
    return (
        "**Borders.** The Fourier form is exact for images without borders, and an upper bound for "
        f"real ones, where it is too large by {excess[lowest]:.2g}% ({lowest}) to "
        f"{excess[highest]:.2g}% ({highest}). Power iterations on the operators with their borders "
        f"took {min(iterations):.0f} to {max(iterations):.0f} steps."
    )


def _strides(measurements: Mapping[str, Sequence[Measured]]) -> str:
    """Compare equation 5 with the norms of convolutions with strides."""
    cases = []
    for name, measured in measurements.items():
        one = measured[0]
        for layer, bound in zip(one.layers, one.bounds.fourier, strict=True):
            if isinstance(layer.module, nn.Conv2d) and layer.module.stride[0] > 1:
                stride = kernel_of(layer.module)[1]
                cases.append(
                    f"{bound / stride:.3g} instead of {bound:.3g} for {layer.name} of {name}"
                )
    shown_cases = f" ({'; '.join(cases)})" if cases else ""
    return (
        "**Strides.** The paper's equation 5 weights the frequencies that fall together with "
        "stride^-2; Parseval's formula gives stride^-1. As printed it makes the norm of a "
        f"convolution too small by the factor stride{shown_cases}: subsampling alone has the norm "
        "1, the equation gives 1/stride. If the published 2.75 of conv1, with stride 4, came from "
        "it as printed, the norm is 11."
    )


def _pooling(measurements: Mapping[str, Sequence[Measured]]) -> str:
    """Explain the constant of max-pooling with overlap and without."""
    factors = {name: measured[0].pooling for name, measured in measurements.items()}
    overlapping = [f"{name} {factor:g}" for name, factor in factors.items() if factor > 1]
    return (
        "**Max-pooling** is taken for contractive in the paper. It is where windows do not overlap "
        "(SmallCNN). With windows of 3x3 at stride 2, those of AlexNet and SqueezeNet, one entry "
        "can be the largest of four windows, and moving it moves four outputs: the constant is 2, "
        "and is attained."
        + (f" Factors in the bounds: {', '.join(overlapping)}." if overlapping else "")
    )


def _expands(measurements: Mapping[str, Sequence[Measured]]) -> str:
    """Compare norms of concatenated convolutions with sqrt(a^2 + b^2)."""
    savings = [
        100 * (1 - constant / parts)
        for measured in measurements.values()
        for constant, parts in zip(
            measured[0].bounds.constant, measured[0].bounds.parts, strict=True
        )
        if np.isfinite(parts)
    ]
    if not savings:
        return ""
    return (
        "**Concatenation.** The 1x1 and 3x3 convolutions of a fire module see the same input: "
        "their outputs together have the norm of the stacked operator, which is "
        f"{min(savings):.2g} to {max(savings):.2g}% below {PARTS} from their norms apart."
    )


def shown(measured: Measured) -> list[int]:
    """Return the indices of the layers whose constant is not 1."""
    return [int(index) for index in np.flatnonzero(measured.bounds.constant != 1)]
