"""Models by name or from files, for `advcore.load_model` and the command line."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import models
from .._extras import require


def load_model(source: str | Path) -> Any:
    """Load the model that `source` names, for `minimize_distortion`.

    Parameters
    ----------
    source : str or Path
        One of these forms:

        - ``x.onnx``, an ONNX file (extra ``onnx``);
        - ``x.pt2``, a torch.export program from a source that you trust; entries with pickles are
          refused;
        - ``x.safetensors``, an advcore.Network;
        - ``squeezenet1_0`` or another name in `advcore.models.BUILDERS`;
        - ``file.py:build`` or ``package.module:build``, a function without arguments that returns
          the model, or the model itself.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ImportError
        A package that reading it needs is missing.
    ValueError
        It is not a model.
    """
    return model(str(source), "load_model")


def model(source: str, option: str = "--model") -> Any:
    """Load a model as `load_model` does; errors begin with `option`."""
    reader = _READERS.get(Path(source).suffix)
    if reader is not None:
        if not Path(source).is_file():
            raise FileNotFoundError(f"{option}: {source} does not exist")
        try:
            return reader(source)
        except ImportError:
            raise
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{option}: {text}") from error
    place, colon, name = source.rpartition(":")
    if source in models.BUILDERS:
        return getattr(models, source)().eval()
    if not colon or not place or not name:
        is_pickle = source.endswith((".pt", ".pth"))
        hint = "; write a build() that loads it" if is_pickle else ""
        file = source.removesuffix(":")
        if file.endswith(".py"):
            hint = f"; add the function: {file}:build"
        names = ", ".join(models.BUILDERS)
        raise ValueError(
            f"{option}: expected x.onnx, x.pt2, x.safetensors, module:function or one of {names}; "
            f"got {source!r}{hint}"
        )
    module = _import_module(place, option)
    if not hasattr(module, name):
        raise ValueError(f"{option}: {place} has no {name!r}")
    build = getattr(module, name)
    is_model = hasattr(build, "parameters") or hasattr(build, "forward")
    if not callable(build) or (is_model and not isinstance(build, type)):
        return build
    try:
        inspect.signature(build).bind()
    except TypeError:
        raise ValueError(f"{option}: {source} must be callable without arguments") from None
    except ValueError:  # some functions that are not written in Python have no signature
        pass
    return _build(build, name, option)


def _build(build: Callable[[], Any], name: str, option: str) -> Any:
    try:
        return build()
    except Exception as error:
        raise ValueError(f"{option}: {name}() raised {type(error).__name__}: {error}") from error


def _read_onnx(source: str) -> Any:
    require("torch", "torch", "reading a .onnx file")
    require("onnx", "onnx", "reading a .onnx file")
    from .onnx_graph import load

    return load(Path(source))


def _read_exported(source: str) -> Any:
    require("torch", "torch", "reading a .pt2 file")
    from .exported import PickledEntries, check_no_pickles

    export = importlib.import_module("torch.export")
    try:
        check_no_pickles(source)
        with _quiet("torch.export", "torch.export.pt2_archive._package"):
            return export.load(source).module()
    except PickledEntries:
        raise
    except Exception as error:  # torch raises its own kinds for broken archives
        raise ValueError(f"{source} cannot be read by torch.export.load ({error})") from None


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Silence loggers, which print tracebacks for damaged files beside the exception."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _read_network(source: str) -> Any:
    from ..network import Network

    return Network.load(source)


_READERS = {".onnx": _read_onnx, ".pt2": _read_exported, ".safetensors": _read_network}
"""Function that reads a model from a file, by the file's suffix."""


def _import_module(place: str, option: str) -> Any:
    """Import the module of a dotted name or file; its own errors become a ValueError."""
    try:
        return _run_import(place, option)
    except (FileNotFoundError, ImportError):
        raise
    except Exception as error:
        raise ValueError(f"{option}: {place} raised {type(error).__name__}: {error}") from error


def _run_import(place: str, option: str) -> Any:
    """Import the module of a dotted name or file, as it raises."""
    if not place.endswith(".py"):
        _add_to_path("")
        return importlib.import_module(place)
    path = Path(place)
    if not path.is_file():
        raise FileNotFoundError(f"{option}: {place} does not exist")
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{option}: {place} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look up their module here
    _add_to_path(str(path.absolute().parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _module_name(path: Path) -> str:
    """Return a name for the module of a file that no other module has."""
    loaded = sys.modules.get(path.stem)
    is_other = loaded is not None and getattr(loaded, "__file__", None) not in (
        str(path),
        str(path.absolute()),
    )
    if path.stem in sys.stdlib_module_names or is_other:
        return f"advcore_model_{path.stem}"
    return path.stem


def _add_to_path(folder: str) -> None:
    """Let modules of this folder be imported, before installed ones but not before Python's own."""
    own = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    own |= {str(Path(place, "lib-dynload")) for place in own}
    places = [index for index, place in enumerate(sys.path) if place in own]
    sys.path.insert(max(places, default=-1) + 1, folder)
