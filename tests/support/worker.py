"""Attacks in another process, for an instruction set that this process has not chosen.

The engine chooses its instruction set once a process, so that a test of another one needs another
process. A `Worker` starts it once and hands it one call after the other.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

PROGRAM = "from support.worker import serve; serve()"
LABELS_AT_RANDOM = "ignore:the model gives"
"""The warning of labels that are mostly wrong, which pyproject.toml ignores as well."""


class Worker:
    """A process in which ``minimize_distortion`` runs on one instruction set."""

    def __init__(self, isa: str) -> None:
        folders = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-W", "error", "-W", LABELS_AT_RANDOM, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "ADVCORE_ISA": isa, "PYTHONPATH": folders},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self.isa: str = self._receive()

    def attack(self, *arguments: Any, **options: Any) -> Any:
        """``minimize_distortion`` with these arguments; a callback is called in this process."""
        callback: Callable[[Any], Any] | None = options.pop("callback", None)
        self._send((arguments, options, callback is not None))
        while True:
            kind, value = self._receive()
            if kind == "result":
                return value
            if kind == "error":
                raise value
            assert callback is not None
            try:
                self._send((True, callback(value)))
            except BaseException as error:
                self._send((False, error))

    def close(self) -> None:
        self._requests.close()
        self._process.wait(timeout=30)
        self._answers.close()

    def _send(self, value: Any) -> None:
        pickle.dump(value, self._requests)
        self._requests.flush()

    def _receive(self) -> Any:
        return pickle.load(self._answers)


def serve() -> None:
    """Answer the calls of a `Worker` on the standard streams until they are closed."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anything prints must not get between the answers
    import advcore
    from advcore import _core

    def send(value: Any) -> None:
        pickle.dump(value, answers)
        answers.flush()

    def callback(state: Any) -> Any:
        send(("progress", state))
        returned, value = pickle.load(requests)
        if not returned:
            raise value
        return value

    send(_core.isa())
    while True:
        try:
            arguments, options, watched = pickle.load(requests)
        except EOFError:
            return
        if watched:
            options["callback"] = callback
        try:
            send(("result", advcore.minimize_distortion(*arguments, **options)))
        except BaseException as error:
            send(("error", error))
