"""The digits and the network of the package, and the full MNIST from disk or a mirror."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._extras import require

if TYPE_CHECKING:
    from .network import Network

_DATA = Path(__file__).parent / "_data"
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
# Each file stem has the SHA-256 of the canonical .gz and of the IDX file inside it. The first is
# checked on download. The second is checked on every load, which takes 0.04 s for the largest and
# also accepts a file that was compressed anew.
_FILES = {
    "train-images-idx3-ubyte": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte": (
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "t10k-images-idx3-ubyte": (
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "t10k-labels-idx1-ubyte": (
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}
_SPLITS = {"train": "train", "test": "t10k"}
_IDX_UINT8 = 0x08


def mnist(split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Load MNIST (LeCun, Cortes, Burges).

    `split` is "train" (60,000) or "test" (10,000). The files are read from
    ``$ADVCORE_DATA/mnist`` if that variable is set. Otherwise they are downloaded once into the
    user's cache. Both are checked by SHA-256.

    Returns
    -------
    The images (N, 784), float32 in [0, 1], and the labels (N,) int64.

    Raises
    ------
    FileNotFoundError : ADVCORE_DATA is set and the file does not exist.
    ImportError : a download is needed and pooch is missing (extra "data").
    OSError : no mirror can be reached.
    ValueError : the split is unknown, or a file is not the canonical one.
    """
    if split not in _SPLITS:
        raise ValueError(f'split must be "train" or "test", got {split!r}')
    images = _read(f"{_SPLITS[split]}-images-idx3-ubyte")
    labels = _read(f"{_SPLITS[split]}-labels-idx1-ubyte")
    return _unit_interval(images), labels.astype(np.int64)


def embedded_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Load the first 1,000 MNIST test digits.

    Returns
    -------
    The images (1000, 784), float32 in [0, 1], and the labels (1000,) int64.
    """
    with np.load(_DATA / "mnist_test_1000.npz") as data:
        return _unit_interval(data["images"]), data["labels"].astype(np.int64)


def embedded_network() -> Network:
    """Load FC100-100-10 with sigmoids, trained on MNIST by tools/train_embedded.py."""
    from .network import Network

    return Network.load(_DATA / "fc100_100_10.safetensors")


def random_targets(
    labels: NDArray[np.integer[Any]], *, classes: int, seed: int
) -> NDArray[np.int64]:
    """Draw targets (N,) int64, each uniform over the classes other than the label.

    The same seed gives the same targets.
    """
    shift = np.random.default_rng(seed).integers(1, classes, len(labels))
    return (labels.astype(np.int64) + shift) % classes


def _unit_interval(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)


def _read(stem: str) -> NDArray[np.uint8]:
    path = _locate(stem)
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    if digest != _FILES[stem][1]:
        raise ValueError(f"{path} is not MNIST's {stem}: SHA-256 {digest}, not {_FILES[stem][1]}")
    zeros, kind, dims = int.from_bytes(raw[:2], "big"), raw[2], raw[3]
    if zeros != 0 or kind != _IDX_UINT8:
        raise ValueError(f"{path} is not an IDX file of bytes")
    shape = np.frombuffer(raw, ">u4", dims, offset=4).astype(int)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)


def _locate(stem: str) -> Path:
    root = os.environ.get("ADVCORE_DATA")
    if not root:
        return _download(stem)
    folder = Path(root) / "mnist"
    for name in (f"{stem}.gz", stem):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"ADVCORE_DATA={root}, but {folder / stem}[.gz] does not exist")


def _download(stem: str) -> Path:
    pooch = require("pooch", "data", "downloading MNIST (or set ADVCORE_DATA)")
    failures = []
    for mirror in MIRRORS:
        try:
            return Path(
                pooch.retrieve(
                    f"{mirror}{stem}.gz",
                    known_hash=f"sha256:{_FILES[stem][0]}",
                    fname=f"{stem}.gz",
                    path=pooch.os_cache("advcore") / "mnist",
                )
            )
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            failures.append(f"{mirror}: {' '.join(str(error).split()):.120}")
    raise OSError(
        f"{stem}.gz could not be downloaded; set ADVCORE_DATA to a folder with mnist/{stem}.gz, or "
        f"take advcore.data.embedded_digits(), 1,000 test digits. ({'; '.join(failures)})"
    )
