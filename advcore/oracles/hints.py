"""Hints at the likely mistake behind an error of a model, where its text tells."""

from __future__ import annotations

import re

SHAPE_WORDS = re.compile(r"shape|size|dimension|\bdims?\b|channels|\d-?D\b", re.IGNORECASE)
"""Words of torch's errors about the shape of an input."""
CONVOLUTION_WORDS = re.compile(
    r"conv2d|weight of size \[\d+, \d+, \d+, \d+\]|expected 4D input|3D or 4D", re.IGNORECASE
)
"""Words of torch's errors of a layer that takes (B, channels, height, width)."""
TYPE_WORDS = re.compile(r"dtype|scalar type|\((?:float|double|half|c10)", re.IGNORECASE)
"""Words of torch's errors about the type of an input's numbers."""
BROKEN_GPU = re.compile(
    r"CUDA error: .*(?:illegal|misaligned|launch failure|assert)", re.IGNORECASE
)
"""Torch's errors after which every call on the GPU fails, whatever has caused the first."""
ONE_IMAGE = "; images must have shape (N, ...): one image alone is images[None]"
CONVOLUTIONS = "; a model with convolutions takes (N, channels, height, width)"


def is_one_image(rows: int, shape: tuple[int, ...]) -> bool:
    """Whether ``rows`` images of ``shape`` may be one picture: (height, width) or channels."""
    return len(shape) == 2 or shape == (rows,)


def error_hint(error: Exception, images: tuple[int, ...], dtype: str | None) -> str:
    """Text of the remedy for an error of a torch model on ``images`` (B, ...); else empty.

    ``dtype`` is the type to which images are cast for a module. None: the model is another
    callable.
    """
    text = str(error)
    rows, shape = images[0], images[1:]
    if BROKEN_GPU.search(text):
        return "; the process can use this GPU no more: restart it"
    if "more than 1 value per channel" in text:
        return (
            "; statistics of the batch in use? Batch norm with track_running_stats=False gives an "
            "image other logits in another batch"
        )
    if "'indices'" in text or "index tensor" in text or "used as indices" in text:
        return (
            "; the images are floating point, and whole numbers as those of tokens have no "
            "gradient: attack what the embedding returns"
        )
    if "same device" in text or ".cuda." in text.lower():
        if dtype is None:
            return "; a function that is no module gets its images on the CPU: pass device="
        return "; pass device=, or move the whole model to one device"
    if TYPE_WORDS.search(text):
        if dtype is None:
            return (
                "; a function that is no module gets float32 on the CPU: cast inside it, or "
                "pass a torch.nn.Module"
            )
        return f"; the images are {dtype}, as the model's first parameter is: cast inside it"
    if not SHAPE_WORDS.search(text):
        return ""
    if len(shape) == 3 and shape[2] in (1, 3) and shape[0] not in (1, 3):
        return f"; channels last?{CONVOLUTIONS.removeprefix(';')}"
    if len(shape) < 3 and CONVOLUTION_WORDS.search(text):
        return _hint_at_channels(rows, shape)
    return ONE_IMAGE if is_one_image(rows, shape) else ""


def _hint_at_channels(rows: int, shape: tuple[int, ...]) -> str:
    """Text of the remedy for images without an axis of channels, where a convolution wants one."""
    if len(shape) < 2:
        return f"{CONVOLUTIONS}: reshape the flat images"
    if rows in (1, 3):
        return ONE_IMAGE + CONVOLUTIONS
    return f"{CONVOLUTIONS}: images[:, None] has one channel"
