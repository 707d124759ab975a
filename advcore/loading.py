"""Models and arrays that the command line reads from files."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._extras import require


@dataclass(frozen=True)
class Job:
    """One attack: what `minimize_distortion` takes."""

    model: Any
    images: NDArray[Any]  # (N, ...)
    labels: NDArray[Any] | None  # (N,)
    targets: NDArray[Any] | None  # (N,)
    starts: NDArray[Any] | None  # (N, ...)

    def first(self, count: int | None) -> Job:
        """The same with the first `count` images; None: all."""

        def cut(values: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if values is None else values[:count]

        return Job(
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


def check_writable(path: Path, option: str) -> None:
    """FileNotFoundError before a long run instead of after it."""
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{option}: folder {path.parent} does not exist")


def model(source: str) -> Any:
    """Model that `source` names.

    ``x.pt2``: torch.export program. ``x.safetensors``: advcore.Network. ``file.py:build`` and
    ``package.module:build``: what the function returns (or the object itself if not callable
    without arguments, such as a module).
    """
    if source.endswith((".pt2", ".safetensors")):
        if not Path(source).is_file():
            raise FileNotFoundError(f"--model: {source} does not exist")
        return _exported(source) if source.endswith(".pt2") else _network(source)
    place, colon, name = source.rpartition(":")
    if not colon or not place or not name:
        pickled = source.endswith((".pt", ".pth"))
        hint = "; write a build() that loads it" if pickled else ""
        raise ValueError(
            f"--model: expected x.pt2, x.safetensors or module:function, got {source!r}{hint}"
        )
    module = _module(place)
    if not hasattr(module, name):
        raise ValueError(f"--model: {place} has no {name!r}")
    build = getattr(module, name)
    made = hasattr(build, "parameters") or hasattr(build, "forward")
    if not callable(build) or (made and not isinstance(build, type)):
        return build
    try:
        inspect.signature(build).bind()
    except TypeError:
        raise ValueError(f"--model: {source} must be callable without arguments") from None
    except ValueError:  # some that are not written in Python have no signature
        pass
    try:
        return build()
    except Exception as error:
        raise ValueError(f"--model: {name}() raised {type(error).__name__}: {error}") from error


def _exported(source: str) -> Any:
    require("torch", "torch", "reading a .pt2 file")
    export = importlib.import_module("torch.export")
    try:
        return export.load(source).module()
    except Exception as error:  # torch raises its own kinds for broken archives
        raise ValueError(
            f"--model: {source} cannot be read by torch.export.load ({error})"
        ) from None


def _network(source: str) -> Any:
    from .network import Network

    return Network.load(source)


def _module(place: str) -> Any:
    """The module of that dotted name or file; what it raises becomes one error."""
    try:
        return _import(place)
    except (FileNotFoundError, ImportError):
        raise
    except Exception as error:
        raise ValueError(f"--model: {place} raised {type(error).__name__}: {error}") from error


def _import(place: str) -> Any:
    if not place.endswith(".py"):
        sys.path.insert(0, "")
        return importlib.import_module(place)
    path = Path(place)
    if not path.is_file():
        raise FileNotFoundError(f"--model: {place} does not exist")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"--model: {place} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and pickles of the file look themselves up
    sys.path.insert(0, str(path.absolute().parent))
    spec.loader.exec_module(module)
    return module
