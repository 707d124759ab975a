"""Models by name or from files, for `advcore.load_model` and the command line; its arrays."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import models, validate
from .._extras import require
from ..oracles.logits import batched

Floats = NDArray[np.float32]
Forward = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Task:
    """One attack: what `minimize_distortion` takes."""

    model: Any
    images: NDArray[Any]  # (N, ...)
    labels: NDArray[Any] | None  # (N,)
    targets: NDArray[Any] | None  # (N,)
    starts: NDArray[Any] | None  # (N, ...)

    def first(self, count: int | None) -> Task:
        """The same with the first `count` images; None: all."""

        def cut(values: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if values is None else values[:count]

        return Task(
            self.model, self.images[:count], cut(self.labels), cut(self.targets), cut(self.starts)
        )


def array(path: Path, option: str) -> NDArray[Any]:
    """Array of one or more dimensions of a .npy file; never unpickles."""
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{option}: {path} does not exist") from None
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{option}: {path} is not a .npy file of numbers ({error})") from None
    if not isinstance(values, np.ndarray):
        names = ", ".join(values.files)
        values.close()
        raise ValueError(f"{option}: {path} is an .npz archive ({names}), expected one .npy array")
    if values.ndim == 0:
        raise ValueError(f"{option}: {path} holds a single number, expected an array")
    return values


def check_writable(path: Path, option: str, suffixes: Collection[str] = ()) -> None:
    """Raises before a long run what writing the file would raise after it."""
    if suffixes and path.suffix.lower() not in suffixes:
        endings = ", ".join(sorted(suffixes))
        raise ValueError(f"{option}: expected a name that ends in {endings}, got {path}")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{option}: folder {path.parent} does not exist")
    if suffixes and path.is_dir():
        raise ValueError(f"{option}: {path} is a folder")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise PermissionError(f"{option}: {path} cannot be written")


def judge(model: Any, images: NDArray[Any], device: str | None) -> tuple[Forward, Floats]:
    """The model's forward, from (N, n) to logits, and the logits of the images."""
    from ..options import Options
    from ..solve.choose import PROBE_IMAGES, choose_backend

    flat = validate.images(images).reshape(len(images), math.prod(images.shape[1:]))
    flat = flat.astype(np.float32)
    backend = choose_backend(model, flat[:PROBE_IMAGES], images.shape[1:], Options(device=device))
    forward = backend.verifier.forward
    if not len(flat):
        return forward, np.empty((0, backend.classes), np.float32)
    return forward, batched(forward, flat, PROBE_IMAGES)


def load_model(source: str | Path) -> Any:
    """Model that `source` names, for `minimize_distortion`.

    ``x.onnx``: an ONNX file (extra ``onnx``). ``x.pt2``: a torch.export program.
    ``x.safetensors``: an advcore.Network. ``squeezenet1_0``: a builder of advcore.models.
    ``file.py:build`` and ``package.module:build``: what the function returns (or the object itself
    if not callable without arguments, such as a module).

    Raises
    ------
    FileNotFoundError, ImportError, ValueError
        No such file; a package that reading it needs is missing; not a model.
    """
    return model(str(source), "load_model")


def model(source: str, option: str = "--model") -> Any:
    """`load_model`; errors begin with `option`."""
    reader = _READERS.get(Path(source).suffix)
    if reader is not None:
        if not Path(source).is_file():
            raise FileNotFoundError(f"{option}: {source} does not exist")
        try:
            return reader(source)
        except ImportError:
            raise
        except Exception as error:
            raise ValueError(f"{option}: {error}") from error
    place, colon, name = source.rpartition(":")
    if source in models.BUILDERS:
        return getattr(models, source)().eval()
    if not colon or not place or not name:
        pickled = source.endswith((".pt", ".pth"))
        hint = "; write a build() that loads it" if pickled else ""
        known = ", ".join(models.BUILDERS)
        raise ValueError(
            f"{option}: expected x.onnx, x.pt2, x.safetensors, module:function or one of {known}; "
            f"got {source!r}{hint}"
        )
    module = _module(place, option)
    if not hasattr(module, name):
        raise ValueError(f"{option}: {place} has no {name!r}")
    build = getattr(module, name)
    made = hasattr(build, "parameters") or hasattr(build, "forward")
    if not callable(build) or (made and not isinstance(build, type)):
        return build
    try:
        inspect.signature(build).bind()
    except TypeError:
        raise ValueError(f"{option}: {source} must be callable without arguments") from None
    except ValueError:  # some that are not written in Python have no signature
        pass
    return _build(build, name, option)


def _build(build: Callable[[], Any], name: str, option: str) -> Any:
    try:
        return build()
    except Exception as error:
        raise ValueError(f"{option}: {name}() raised {type(error).__name__}: {error}") from error


def _onnx(source: str) -> Any:
    require("torch", "torch", "reading a .onnx file")
    require("onnx", "onnx", "reading a .onnx file")
    from .onnx_graph import load

    return load(Path(source))


def _exported(source: str) -> Any:
    require("torch", "torch", "reading a .pt2 file")
    export = importlib.import_module("torch.export")
    try:
        return export.load(source).module()
    except Exception as error:  # torch raises its own kinds for broken archives
        raise ValueError(f"{source} cannot be read by torch.export.load ({error})") from None


def _network(source: str) -> Any:
    from ..network import Network

    return Network.load(source)


_READERS = {".onnx": _onnx, ".pt2": _exported, ".safetensors": _network}


def _module(place: str, option: str) -> Any:
    """The module of that dotted name or file; what it raises becomes one error."""
    try:
        return _import(place, option)
    except (FileNotFoundError, ImportError):
        raise
    except Exception as error:
        raise ValueError(f"{option}: {place} raised {type(error).__name__}: {error}") from error


def _import(place: str, option: str) -> Any:
    if not place.endswith(".py"):
        sys.path.insert(0, "")
        return importlib.import_module(place)
    path = Path(place)
    if not path.is_file():
        raise FileNotFoundError(f"{option}: {place} does not exist")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{option}: {place} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and pickles of the file look themselves up
    sys.path.insert(0, str(path.absolute().parent))
    spec.loader.exec_module(module)
    return module
