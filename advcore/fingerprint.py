"""Hashes of what the results of a job depend on: a model in memory, an option, the package."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import _core
from ._version import __version__
from .network import Network
from .validate import is_tensor, to_numpy

PACKAGE = Path(__file__).parent
DECIDING = (
    "*.py", "network/*.py", "oracles/*.py", "solve/*.py", "models/*.py", "jobs/*.py",
)  # fmt: skip
"""Files of the package that decide the results, besides the compiled module and the kernels; the
others present them."""
LIBRARIES = ("torch", "numpy", "builtins", "advcore")
"""Packages whose code counts by the version alone."""


def code_version(uses_torch: bool) -> dict[str, str]:
    """Return versions of all that the bits of a result depend on besides model and options."""
    found = {"build": _package_hash()} | versions(uses_torch)
    if uses_torch:
        found["torch threads"] = str(sys.modules["torch"].get_num_threads())
    return found


def versions(uses_torch: bool) -> dict[str, str]:
    """Return the versions of advcore, NumPy and torch, and the instruction set."""
    found = {
        "advcore": __version__,
        "instruction set": _core.isa(),
        "numpy": np.__version__,
    }
    if uses_torch:
        found["torch"] = str(sys.modules["torch"].__version__)
    return found


def device_of(model: Any, device: Any) -> str:
    """Return where a model runs, a GPU with its name, for the option ``device`` of a call."""
    torch = sys.modules.get("torch")
    if device is None and torch is not None and isinstance(model, torch.nn.Module):
        tensors = [*model.parameters(), *model.buffers()]
        device = tensors[0].device if tensors else None
    if device is None:
        return "the model's own" if callable(model) else "cpu"
    kind = str(device).partition(":")[0]
    if kind == "cuda" and torch is not None and torch.cuda.is_available():
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return kind


@functools.cache
def _package_hash() -> str:
    digest = hashlib.sha256()
    for path in _deciding_files():
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _deciding_files() -> list[Path]:
    """Return the files of the package that decide the results, wherever they are installed."""
    kernels = importlib.util.find_spec("advcore.kernels")
    folders = [] if kernels is None else list(kernels.submodule_search_locations or ())
    files = [Path(str(_core.__file__))]
    for folder in folders:
        files += sorted(Path(folder).glob("*.py"))
    for pattern in DECIDING:
        files += sorted(PACKAGE.glob(pattern))
    return files


def text_of(value: Any) -> str:
    """Return a value of an option as text. Arrays are named by a hash."""
    if isinstance(value, (tuple, list)):
        return f"({', '.join(text_of(part) for part in value)})"
    if is_tensor(value) or isinstance(value, np.ndarray):
        return f"array {hash_of(value)}"
    return str(value)


def hash_of(value: Any) -> str:
    """Return a hash of a model, or of another object.

    It covers the arrays, numbers and texts that the object and its classes hold, the structure and
    weights of torch modules, and the code of its functions and classes, with the functions, values
    and models of the same module that they name. It does not depend on the place of anything in
    memory.
    """
    walk = _Walk()
    walk.add(value)
    return walk.digest.hexdigest()[:16]


class _Walk:
    """A walk over an object and what it holds."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self._seen: list[Any] = []  # kept, so that no number of an object is used again
        self._numbers: dict[int, int] = {}
        self._in_module = False

    def add(self, value: Any) -> None:
        """Hash a value."""
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes, Path)):
            self._text(f"{type(value).__name__} {value!r}")
        elif isinstance(value, (np.ndarray, np.generic)) or is_tensor(value):
            self._array(value)
        elif isinstance(value, (types.ModuleType, types.BuiltinFunctionType)):
            self._text(f"{value.__name__}")
        elif id(value) in self._numbers:
            self._text(f"seen {self._numbers[id(value)]}")
        else:
            self._numbers[id(value)] = len(self._seen)
            self._seen.append(value)
            self._add_object(value)

    def _text(self, text: str) -> None:
        content = text.encode("utf-8", "surrogatepass")
        self.digest.update(f"{len(content)}:".encode() + content)

    def _array(self, value: Any) -> None:
        if getattr(value, "is_quantized", False):
            value = value.dequantize()
        if is_tensor(value) and str(value.layout) != "torch.strided":
            value = value.to_dense()
        array = to_numpy(value)
        self._text(f"{array.dtype} {array.shape}")
        if array.dtype.hasobject:
            self._text(repr(array))
        else:
            content: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            self.digest.update(content)

    def _add_object(self, value: Any) -> None:
        if isinstance(value, Mapping):
            for key in value:
                self.add(key)
                self.add(value[key])
        elif isinstance(value, (tuple, list)):
            self._text(f"{type(value).__name__} {len(value)}")
            for part in value:
                self.add(part)
        elif isinstance(value, (set, frozenset)):
            self._text(str(sorted(map(repr, value))))
        elif isinstance(value, types.CodeType):
            self._code(value)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self.add(value.__func__)
            self.add(value.__self__)
        elif isinstance(value, functools.partial):
            self.add((value.func, value.args, value.keywords))
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, Network):
            self.add(value.layers)
        else:
            self._instance(value)

    def _instance(self, value: Any) -> None:
        self._class(type(value))
        if dataclasses.is_dataclass(value):
            self.add({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
            return
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(value, torch.nn.Module):
            self._module(value)
            return
        self.add(dict(getattr(value, "__dict__", {})) | _slots(value))

    def _module(self, module: Any) -> None:
        """Hash parameters, buffers and parts of a module, and its own attributes.

        What compiled and quantised modules hold elsewhere is hashed too.
        """
        if "_orig_mod" in module._modules:  # The attributes of torch.compile change with each call.
            self.add(module._modules["_orig_mod"])
            return
        for kind in ("_parameters", "_buffers", "_modules"):
            self.add(dict(getattr(module, kind, None) or {}))
        hooks = [getattr(module, name, {}) for name in ("_forward_hooks", "_forward_pre_hooks")]
        self.add([list(each.values()) for each in hooks])
        if not self._in_module:
            self._in_module = True
            self._unregistered(module)
            self._in_module = False
        inner = vars(sys.modules["torch"].nn.Module())
        own = {
            name: value
            for name, value in vars(module).items()
            if not name.startswith("_") or (name not in inner and _is_value(value))
        }
        self.add(own)

    def _unregistered(self, module: Any) -> None:
        """Hash entries of the state that are no parameters or buffers, and compiled constants."""
        known = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        known |= {name for name, _ in module.named_buffers(remove_duplicate=False)}
        state = module.state_dict()
        self.add({name: state[name] for name in state if name not in known})
        if hasattr(module, "code_with_constants"):
            code, constants = module.code_with_constants
            self.add((code, dict(constants.const_mapping)))

    def _class(self, kind: type) -> None:
        self._text(f"{kind.__module__}.{kind.__qualname__}")
        for base in kind.__mro__:
            if not _is_of_library(base.__module__):
                for name in sorted(vars(base)):
                    member = vars(base)[name]
                    member = getattr(member, "__func__", getattr(member, "fget", member))
                    if isinstance(member, types.FunctionType):
                        self.add(member)
                    elif not name.startswith("__") and (_is_value(member) or _is_model(member)):
                        self._text(name)
                        self.add(member)

    def _function(self, function: types.FunctionType) -> None:
        self._text(function.__qualname__)
        if _is_of_library(function.__module__):
            return
        self.add(function.__code__)
        self.add((function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:  # not set yet
                self._text("empty")
        self._globals(function.__code__, function)

    def _globals(self, code: types.CodeType, function: types.FunctionType) -> None:
        for name in dict.fromkeys(_names(code)):
            value = function.__globals__.get(name)
            module = getattr(value, "__module__", None)
            is_own = (
                module == function.__module__
                or (module is None and not isinstance(value, types.ModuleType))
                or _is_value(value)
                or _is_model(value)
            )
            if name in function.__globals__ and is_own:
                self._text(name)
                self.add(value)

    def _code(self, code: types.CodeType) -> None:
        self.digest.update(code.co_code)
        self._text(" ".join(code.co_names))
        self.add(code.co_consts)


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names of a function's code, also of the functions and comprehensions in it."""
    yield from code.co_names
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield from _names(part)


def _slots(value: Any) -> dict[str, Any]:
    """Return the attributes that an object has in slots."""
    found: dict[str, Any] = {}
    for base in type(value).__mro__:
        names = () if _is_of_library(base.__module__) else vars(base).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if not name.startswith("__") and hasattr(value, name):
                found[name] = getattr(value, name)
    return found


def _is_value(value: Any, depth: int = 8) -> bool:
    """Whether it is a number, a text, an array, or a tuple or list of such, so deep at most."""
    if isinstance(value, (tuple, list)):
        return depth > 0 and all(_is_value(part, depth - 1) for part in value)
    plain = (bool, int, float, complex, str, bytes, np.ndarray, np.generic)
    return value is None or isinstance(value, plain) or is_tensor(value)


def _is_model(value: Any) -> bool:
    """Whether it is a model, such as a torch module: an object whose class has a forward."""
    return not isinstance(value, type) and hasattr(type(value), "forward")


def _is_of_library(module: str | None) -> bool:
    return (module or "").partition(".")[0] in LIBRARIES
