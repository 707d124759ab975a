"""Network.load and the safetensors reader on files that are damaged or hostile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.damage import damaged, damaged_json, refusals

from advcore.network import Convolution, Layer, Network
from advcore.network.safetensors import read_tensors


def with_header(path: Any, text: bytes, body: bytes) -> None:
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (b"[" * 100_000, "header is not JSON"),
        (b'{"__metadata__": []}', "__metadata__ of a safetensors file must map names to texts"),
        (b'{"__metadata__": {"a": 1}}', "__metadata__ of a safetensors file must map names"),
        (b'{"t": {}, "t": {}}', "a name occurs twice"),
        (
            b'{"t": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 8]}}',
            "tensor 't' has a malformed entry",
        ),
        (
            b'{"t": {"dtype": "F32", "shape": [true, 2], "data_offsets": [0, 8]}}',
            "tensor 't' has a malformed entry",
        ),
        (
            b'{"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]}}',
            "tensor 't' has a malformed entry",
        ),
        (
            b'{"t": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
            "4 bytes follow the last tensor",
        ),
        (
            b'{"t": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
            r"tensor 't' of shape \(1,\) needs the 4 bytes from 0 on, its offsets are \[4, 8\]",
        ),
        (
            b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},'
            b' "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
            r"tensor 'b' of shape \(2,\) needs the 8 bytes from 8 on, its offsets are \[0, 8\]",
        ),
    ],
)
def test_tensors_must_fill_the_file(tmp_path: Any, header: bytes, text: str) -> None:
    path = tmp_path / "x.safetensors"
    with_header(path, header, bytes(8))
    for read in (read_tensors, Network.load):
        with pytest.raises(ValueError, match=rf"x\.safetensors: .*{text}"):
            read(path)


def test_tensors_may_stand_in_another_order_than_their_entries(tmp_path: Any) -> None:
    header = (
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},'
        b' "none": {"dtype": "F32", "shape": [0, 3], "data_offsets": [4, 4]},'
        b' "b": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}'
    )
    with_header(tmp_path / "x", header, np.array([1, 2], "<f4").tobytes())
    tensors = read_tensors(tmp_path / "x")[0]
    assert [(name, array.shape) for name, array in tensors.items()] == [
        ("a", (1,)), ("none", (0, 3)), ("b", ()),
    ]  # fmt: skip
    assert (tensors["a"].item(), tensors["b"].item()) == (2, 1)


def test_damaged_networks_end_in_one_line(tmp_path: Any) -> None:
    path = tmp_path / "n.safetensors"
    convolution = Convolution(
        np.ones((2, 1, 3, 3), np.float32), np.zeros(2, np.float32), (1, 6, 6), "relu",
        pooling="max", window=(2, 2),
    )  # fmt: skip
    Network([convolution, Layer(np.ones((3, 8), np.float32), np.zeros(3, np.float32))]).save(path)
    whole = path.read_bytes()
    size = 8 + int.from_bytes(whole[:8], "little")
    headers = damaged_json(whole[8:size], 200)
    changed = [len(text).to_bytes(8, "little") + text + whole[size:] for text in headers]

    def use(path: Path) -> None:
        network = Network.load(path)
        network.forward(np.zeros((1, network.inputs), np.float32))

    texts = refusals(use, path, [*damaged(whole, 200), *changed])
    assert len(texts) > 300
    for text in texts:
        assert text.startswith(f"{path}: ")
        assert "\n" not in text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"stride": (2**40, 1)}, "stride must be 2 integers >= 1 and <= 2147483647"),
        ({"padding": (2**31, 0)}, "padding must be 2 integers >= 0 and <= 2147483647"),
        (
            {"shape": (1, 2**16, 2**16), "pooling": "max", "window": (2**16, 2**16)},
            "a convolution must have at most 2147483647 values at its input and before",
        ),
    ],
)
def test_convolutions_have_sizes_that_the_engine_can_count(
    options: dict[str, Any], text: str
) -> None:
    weight = np.ones((2, 1, 1, 1), np.float32)
    with pytest.raises(ValueError, match=text):
        Convolution(weight, np.zeros(2, np.float32), **({"shape": (1, 1, 1)} | options))
