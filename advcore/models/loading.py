"""Models by name or from files, for `advcore.load_model` and the command line."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import models
from .._extras import require


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
