"""Models of three classes on images of six values, and calls that must be refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import advcore
from advcore import Layer, Network, Status

N, K = 6, 3
INF, NAN = float("inf"), float("nan")


def affine(classes: int = K, n: int = N, seed: int = 0) -> Network:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((classes, n)).astype(np.float32)
    bias = -weight.sum(axis=1) / 2 + 0.3 * rng.standard_normal(classes).astype(np.float32)
    return Network([Layer(weight, bias)])


def images(rows: int = 4, n: int = N) -> Any:
    return np.random.default_rng(1).random((rows, n), dtype=np.float32)


def names(result: Any) -> list[str]:
    return [Status(int(code)).name for code in result.status]


class Model:
    """A NumPy model made of two functions; the default is affine."""

    def __init__(self, forward: Any = None, backward: Any = None, classes: int = K) -> None:
        self.a = np.random.default_rng(0).standard_normal((classes, N))
        self._forward, self._backward = forward, backward

    def forward(self, x: Any) -> Any:
        flat = x.reshape(len(x), -1).astype(np.float64)
        return self._forward(flat) if self._forward else (flat - 0.5) @ self.a.T

    def backward(self, dlogits: Any) -> Any:
        return self._backward(dlogits) if self._backward else dlogits @ self.a


def refuse(error: type[Exception], text: str, *args: Any, **options: Any) -> None:
    with pytest.raises(error, match=text):
        advcore.minimize_distortion(*args, **options)
