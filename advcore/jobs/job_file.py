"""The description of a job, and its file."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .. import validate
from .._extras import require
from ..options import Check, Options, option_info
from .array_files import STEM
from .inputs import KINDS, InputSpec
from .key_lines import key_lines

IMAGES = ("none", "float32", "png")
"""Forms in which a job keeps the adversarial images."""
PICTURE_LEVELS = 256
"""Levels of 8-bit pictures."""
LONGEST_VALUE = 60
"""Characters of a wrong value that an error quotes."""


@dataclass(frozen=True)
class JobSpec:
    """Description of a job.

    Attributes
    ----------
    model : str
        The model, as `advcore.load_model` takes it.
    input : InputSpec
    output : Path
        Folder of the results.
    block : int or None
        Images that are attacked and written at once. None: `advcore.jobs.plan.block_size`.
    images : str
        One of `IMAGES`.
    options : Options
    targets : str or None
        next-likeliest, random, or a number or name of a class. None: those of the input, or if it
        has none, any wrong class.
    untargeted : bool
        Any wrong class will do, also where the input has targets.
    shard : (int, int) or None
        (3, 8): the third of eight parts.
    names : Path or None
        Names of the classes, .json or one a line.
    """

    model: str
    input: InputSpec
    output: Path
    block: int | None = None
    images: str = "none"
    options: Options = field(default_factory=Options)
    targets: str | None = None
    untargeted: bool = False
    shard: tuple[int, int] | None = None
    names: Path | None = None


class JobFileError(ValueError):
    """A job file has mistakes. ``errors`` has a line for each, in the order of the file."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.errors,)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError
    return value


def _choice(names: Collection[str]) -> Check:
    def run(value: Any, name: str) -> str:
        return validate.choice(value, name, tuple(names))

    return Check(run, " or ".join(f'"{name}"' for name in names))


def _integer(value: Any, name: str) -> int:
    return validate.integer(value, name, minimum=1)


def _truth(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _target(value: Any, name: str) -> str:
    is_class = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return str(value) if is_class else _text(value, name)


def _shard(value: Any, name: str) -> tuple[int, int]:
    if isinstance(value, str) and re.fullmatch("[0-9]{1,9}/[0-9]{1,9}", value):
        value = [int(part) for part in value.split("/")]
    part, parts = (_integer(number, name) for number in value)
    if part > parts:
        raise ValueError
    return part, parts


def _shape(value: Any, name: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError
    return tuple(_integer(extent, name) for extent in value)


def _bounds(value: Any, name: str) -> tuple[float, float]:
    low, high = (validate.number(bound, name) for bound in value)
    if low >= high:
        raise ValueError
    return low, high


def _table(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError
    return value


JOB_KEYS = {
    "model": Check(_text, "a text, as advcore attack --model takes it"),
    "output": Check(_text, "the path of a folder"),
    "input": Check(_table, "a table [input]"),
    "options": Check(_table, "a table [options]"),
    "block": Check(_integer, "an integer >= 1"),
    "images": _choice(IMAGES),
    "targets": Check(_target, '"next-likeliest", "random", or a number or name of a class'),
    "untargeted": Check(_truth, "true or false"),
    "shard": Check(_shard, '"K/N" with 1 <= K <= N, as in "3/8"'),
    "names": Check(_text, "the path of a file"),
}
"""Keys of a job file."""
INPUT_KEYS = {
    "kind": _choice(KINDS),
    "path": Check(_text, "the path of a file or folder, or a pattern"),
    "image": Check(_text, "the name of a column or array"),
    "label": Check(_text, 'the name of a column or array, a .npy file, or for pictures "folders"'),
    "target": Check(_text, "the name of a column or array, or a .npy file"),
    "key": Check(_text, "the name of a column or array, or a .npy file"),
    "shape": Check(_shape, "a list of integers >= 1, as in [3, 224, 224]"),
    "size": Check(_integer, "an integer >= 1"),
    "split": Check(_text, "the name of a split"),
    "config": Check(_text, "the name of a configuration"),
}
"""Keys of the table ``input``. `KINDS` says which of them a kind has."""
OPTION_KEYS = {
    entry.name: option_info(entry.name).check
    for entry in fields(Options)
    if option_info(entry.name).command_type
} | {"bounds": Check(_bounds, "two numbers lower < upper, as in [0, 255]")}
"""Keys of the table ``options``: the options that the command has too."""


@dataclass
class _Mistakes:
    """Mistakes of a job file, each with its line."""

    path: Path
    lines: Mapping[tuple[str, ...], int]
    found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, key: tuple[str, ...], text: str) -> None:
        """Note a mistake of a key. One that is missing has the line of its table."""
        line = self.lines.get(key) or self.lines.get(key[:-1]) or 1
        self.found.append((line, f"{self.path}, line {line}: {'.'.join(key)} {text}"))

    def check(
        self, table: tuple[str, ...], values: Mapping[str, Any], checks: Mapping[str, Check]
    ) -> dict[str, Any]:
        """Return the checked values of a table, without those that are wrong."""
        checked = {}
        for name, value in values.items():
            if name not in checks:
                self.add((*table, name), unknown(name, checks))
                continue
            try:
                checked[name] = checks[name].run(value, name)
            except (ValueError, TypeError, OverflowError):
                expected = checks[name].accepts.replace("`", "")
                self.add((*table, name), f"must be {expected}, got {_quoted(value)}")
        return checked

    def require(
        self, table: tuple[str, ...], values: Mapping[str, Any], checks: Mapping[str, Check]
    ) -> None:
        for name, check in checks.items():
            if name not in values:
                self.add((*table, name), f"is missing, expected {check.accepts}")


def unknown(name: str, known: Collection[str]) -> str:
    """Return that a key is unknown, with the nearest one if there is one, and all."""
    nearest = difflib.get_close_matches(name, known, 1, cutoff=0.5)
    hint = f", the nearest is {nearest[0]}" if nearest else ""
    return f"is unknown{hint}; there are {', '.join(known)}"


def _quoted(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def read_job(path: Path) -> JobSpec:
    """Read a job file. Its paths start from its folder.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    JobFileError
        It has mistakes, which are all named: file, line, key, what was expected and what came.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, or is not a file")
    values, lines = _parse(path)
    mistakes = _Mistakes(path, lines)
    job = mistakes.check((), values, JOB_KEYS)
    mistakes.require((), values, {name: JOB_KEYS[name] for name in ("model", "output", "input")})
    source = _read_input(mistakes, job.get("input"))
    options = mistakes.check(("options",), job.get("options", {}), OPTION_KEYS)
    _check_together(mistakes, job, source, options)
    if not mistakes.found and source.get("kind") == "pictures":
        options["levels"] = PICTURE_LEVELS
    try:
        checked = Options(**options)
    except (ValueError, TypeError) as error:
        mistakes.add(("options", "levels"), f"does not fit: {error}")
    if mistakes.found:
        raise JobFileError([text for _, text in sorted(mistakes.found, key=lambda each: each[0])])
    source["scale"] = checked.bounds == (0, 1)
    job |= {"input": _input_spec(source, path.parent, job["output"]), "options": checked}
    job |= {name: path.parent / job[name] for name in ("output", "names") if name in job}
    return JobSpec(**job | {"model": _model_path(job["model"], path.parent)})


def _parse(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """Return the content of a TOML file, and the line of each key."""
    toml = require("tomllib" if sys.version_info >= (3, 11) else "tomli", "jobs", "a job file")
    content = path.read_bytes()
    try:
        text = content.decode().replace("\r\n", "\n")
        return toml.loads(text), key_lines(text, toml.loads)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        reason = f"byte {content[error.start]:#04x} is not UTF-8"
    except ValueError as error:
        found = re.search(r" \(at line (\d+), column \d+\)$", str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        reason = f"expected TOML, got an error: {str(error).partition(' (at ')[0]}"
    except RecursionError:
        line, reason = 1, "expected TOML, got values too deep in each other"
    raise JobFileError([f"{path}, line {line}: {reason}"])


def _read_input(mistakes: _Mistakes, table: dict[str, Any] | None) -> dict[str, Any]:
    """Return the checked values of the table ``input``."""
    if table is None:
        return {}
    kind = table.get("kind")
    is_known = isinstance(kind, str) and kind in KINDS
    accepted = ("kind", "path", *KINDS[str(kind)]) if is_known else tuple(INPUT_KEYS)
    for name in table:
        if name in INPUT_KEYS and name not in accepted:
            mistakes.add(
                ("input", name), f'is not for kind "{kind}", which has {", ".join(accepted)}'
            )
    table = {
        name: value for name, value in table.items() if name not in INPUT_KEYS or name in accepted
    }
    checked = mistakes.check(("input",), table, {name: INPUT_KEYS[name] for name in accepted})
    mistakes.require(("input",), table, {name: INPUT_KEYS[name] for name in ("kind", "path")})
    return checked


def _check_together(
    mistakes: _Mistakes, job: dict[str, Any], source: dict[str, Any], options: dict[str, Any]
) -> None:
    """Note values that do not fit to each other."""
    if job.get("untargeted") and "targets" in job:
        mistakes.add(("untargeted",), "must be false where targets are given, got true")
    levels, bounds = options.get("levels"), options.get("bounds", (0, 1))
    if source.get("kind") == "pictures":
        if levels not in (None, PICTURE_LEVELS):
            mistakes.add(("options", "levels"), f"must be 256 for pictures, got {levels}")
        if bounds != (0, 1):
            mistakes.add(("options", "bounds"), f"must be [0, 1] for pictures, got {bounds}")
    elif job.get("images") == "png" and levels != PICTURE_LEVELS:
        came = "none" if levels is None else levels
        mistakes.add(("images",), f'= "png" needs options.levels = 256, got {came}')


def _input_spec(source: dict[str, Any], folder: Path, output: str) -> InputSpec:
    """Return the input with its paths, which start from a folder."""
    values = dict(source)
    path = folder / source["path"]
    if source["kind"] != "dataset" or path.exists():  # A data set may be a name.
        values["path"] = str(path)
    if source["kind"] == "arrays":
        for name in ("label", "target", "key"):
            place = source.get(name, "")
            if place.endswith(".npy") and STEM not in place:
                values[name] = str(folder / place)
    if source["kind"] == "pictures":
        values["leave_out"] = folder / output
    return InputSpec(**values)


def _model_path(model: str, folder: Path) -> str:
    """Return a model with the path of its file, if it is one."""
    file = model.partition(":")[0]
    return str(folder / model) if file.endswith((".onnx", ".pt2", ".safetensors", ".py")) else model
