"""Try an installed advcore, in an environment with NumPy alone or with torch.

Attacks 100 digits with the network of the package; with torch also as a torch module. Prints facts
as JSON. Fails where a result does not hold, where CUDA is not said to be there or missing, or where
the notice of what is inside is not installed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import advcore
from advcore import _core, data


def has_driver() -> bool:
    """Return whether this machine has NVIDIA's driver."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def main() -> None:
    """Attack, check what came out, and print the facts."""
    images, labels = (each[:100] for each in data.embedded_digits())
    network = data.embedded_network()
    models: dict[str, Any] = {"native": network}
    if importlib.util.find_spec("torch"):
        models["torch"] = network.to_torch()
    mean = {}
    for name, model in models.items():
        result = advcore.minimize_distortion(model, images, labels=labels, device="cpu")
        assert result.success.all(), result.summary()
        assert (network.forward(result.adversarial).argmax(axis=1) != labels).all()
        mean[name] = round(float(np.mean(result.distortion)), 4)
    built, devices, reason = _core.cuda_status()
    assert built or reason.startswith("this build of advcore has no CUDA"), reason
    if built and not has_driver():
        assert (devices, reason) == (0, "no NVIDIA driver"), (devices, reason)
    notice = metadata.distribution("advcore").read_text("licenses/NOTICE")
    assert notice is not None
    assert "libcudart_static" in notice, notice
    assert Path(advcore.__file__).parents[1].name == "site-packages", advcore.__file__
    print(json.dumps({"mean distortion": mean, "isa": _core.isa(), "cuda": reason or devices}))


if __name__ == "__main__":
    main()
