"""The command `advcore doctor`, which looks for what makes an attack by gradients say too much."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..diagnosis import diagnose
from .app import app, one_line_errors, print_json, printing
from .arguments import array, class_numbers
from .panels import INPUT, RUN, Debug, Json, complete_file, complete_model, option
from .sources import load_model

FORMAT = "advcore.diagnosis.1"
"""Name of the form of the JSON object."""


@app.command()
def doctor(
    model: Annotated[
        str,
        option(INPUT, "as advcore attack takes it", metavar="MODEL", autocompletion=complete_model),
    ],
    images: Annotated[Path, option(INPUT, ".npy, (N, ...)", metavar="FILE")],
    labels: Annotated[
        str | None,
        option(
            INPUT,
            "true classes: .npy, .csv, .txt, or one number; default: accuracy and preprocessing "
            "are not looked at",
            metavar="FILE",
            autocompletion=complete_file,
        ),
    ] = None,
    bounds: Annotated[
        tuple[float, float],
        option(INPUT, "least and largest value of a pixel", metavar="LOWER UPPER"),
    ] = (0.0, 1.0),
    count: Annotated[
        int, option(RUN, "images that are looked at, the first ones", min=1, metavar="COUNT")
    ] = 16,
    seed: Annotated[int, option(RUN, "seed of random directions", min=0, metavar="NUMBER")] = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Looks for what hides the gradient or spoils the images, and says what to do.

    Saturated softmax, zero or wrong gradients, random outputs, missing preprocessing, training
    mode, half precision; and distances by forwards alone beside those of an attack.
    """
    with one_line_errors(debug):
        values = array(images, "--images", mapped=True)
        classes = None if labels is None else class_numbers(labels, "--labels", len(values))
        diagnosis = diagnose(
            load_model(model), values, classes, bounds=bounds, count=count, seed=seed
        )
        with printing():
            if json:
                print_json({"format": FORMAT, **diagnosis.as_dict()})
            else:
                print(diagnosis.text())
