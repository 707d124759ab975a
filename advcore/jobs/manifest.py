"""The manifest of a job: what its results depend on, so that a job goes on only with the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from .._files import write_text
from ..fingerprint import code_version, device_of, hash_of, text_of
from ..network import Network
from ..options import Options
from .inputs import Source
from .locks import lock
from .store import BLOCKS, TABLE, TABLE_LOCK

NAME = "manifest.json"
LOCK = ".lock-manifest"
"""File of the lock with which a manifest is written."""
FORMAT = "advcore job 1"
WITHOUT_EFFECT = ("progress", "callback", "time_limit", "record")
"""Options that do not change a result of a whole block."""
MOST_DIFFERENCES = 8
"""Number of differences that an error names."""
FILES = (".onnx", ".pt2", ".safetensors")
"""Endings of models that are files."""


class OtherJob(ValueError):
    """The folder holds another job. The message names the differences."""


def describe(
    model: Any, name: str | None, source: Source, options: Options, settings: dict[str, Any]
) -> dict[str, dict[str, str]]:
    """Return the manifest of a job, all of it as texts.

    Parameters
    ----------
    name : str or None
        What the user calls the model, as `advcore.load_model` takes it. The bytes of a file that it
        names are hashed with the model.
    settings : dict
        What else the results depend on, such as the size of a block.
    """
    if name is not None and Path(name).suffix in FILES:
        # Of a file the bytes count, as classes of its readers are not those of the model.
        digest = _hash_of_files(Path(name))
    else:
        digest = hash_of(model)
    uses_torch = not isinstance(model, Network) and "torch" in sys.modules
    return {
        "job": {"format": FORMAT, "images": str(source.count)}
        | {key: text_of(value) for key, value in settings.items()},
        "code": code_version(uses_torch),
        "model": {"hash": digest, "device": device_of(model, options.device)},
        "options": {
            field.name: text_of(getattr(options, field.name))
            for field in fields(Options)
            if field.name not in WITHOUT_EFFECT
        },
        "input": source.fingerprint(),
    }


def _hash_of_files(path: Path) -> str:
    """Return a hash of a model's file, and of the files beside it that hold its weights."""
    files = [path]
    if path.suffix == ".onnx":
        from ..models.onnx_graph import weight_files  # imports torch

        files += weight_files(path)
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def check(folder: Path, manifest: dict[str, dict[str, str]]) -> None:
    """Write the manifest of a new job, or raise where the folder has that of another one.

    A job that was refused or ended before its first block has no results. Its manifest is replaced,
    unless a process is at work on it.

    Raises
    ------
    OtherJob
        Something differs.
    ValueError
        The folder has other files, but no manifest.
    """
    path = folder / NAME
    # Hidden files are those of a job that was killed while it wrote its manifest.
    others = [] if not folder.exists() else [f for f in folder.iterdir() if f.name[0] != "."]
    if others and not path.exists():
        raise ValueError(f"{folder} is not empty and holds no job; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock(folder / LOCK))  # Another process may begin a job there as well.
        differences = compare(read(folder), manifest) if path.exists() else []
        if path.exists() and not differences:
            return
        if not differences or _is_unused(folder, stack):
            write_text(path, json.dumps(manifest, indent=1) + "\n")
            return
    more = len(differences) - MOST_DIFFERENCES
    shown = differences[:MOST_DIFFERENCES] + ([f"{more} more"] if more > 0 else [])
    raise OtherJob(
        f"{folder} holds another job: {'; '.join(shown)}. Give another folder, or the same model, "
        "options, inputs, versions and threads"
    )


def _is_unused(folder: Path, stack: contextlib.ExitStack) -> bool:
    """Whether a job has no block, and no process at work: the stack holds its locks then."""
    if (folder / TABLE).exists() or any((folder / BLOCKS).glob("block-*.parquet")):
        return False
    try:
        for path in folder.glob(".lock*"):
            if path.name not in (LOCK, TABLE_LOCK):
                stack.enter_context(lock(path, wait=False))
    except BlockingIOError:
        return False
    return True


def read(folder: Path) -> dict[str, dict[str, str]]:
    """Read the manifest of a folder.

    Raises
    ------
    FileNotFoundError
        The folder holds no job.
    ValueError
        The manifest is damaged.
    """
    path = folder / NAME
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{folder} holds no job ({path} does not exist)") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from None
    if not isinstance(content, dict) or not all(isinstance(x, dict) for x in content.values()):
        raise ValueError(f"{path} is damaged (no manifest of a job)")
    return content


def compare(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Return a text for each difference of two manifests."""
    out = []
    for part in dict.fromkeys([*stored, *wanted]):
        before, now = stored.get(part, {}), wanted.get(part, {})
        for name in dict.fromkeys([*before, *now]):
            if before.get(name) != now.get(name):
                there, here = before.get(name, "nothing"), now.get(name, "nothing")
                out.append(f"{part} {name}: {there} there, {here} now")
    return out
