"""Places of a slot's scalars for the kernels, and the same as a NumPy record.

`PROBLEM` is struct Problem of csrc/problem.h with the fields that an evaluation reads or writes.
The engine itself says where they are. The constants are offsets, in bytes for fields of one byte,
else in words of 4 bytes. Those of the addresses of the trial point and of its gradient are in words
of 8 bytes. These addresses are read anew in each round, as the solver swaps its vectors.
"""
# mypy: disable-error-code="import-untyped, import-not-found"

from __future__ import annotations

import numpy as np
import triton.language as tl

from advcore import _core

_LAYOUT = _core.problem_layout()
MAX_STAGES = _LAYOUT["max_stages"]
MAX_SCHEDULES = _LAYOUT["max_schedules"]

_BYTES = ("want_gradient", "record_scales", "targeted", "finite")
_INTS = (
    "class_index", "exclusions", "rival_class", "schedule", "stage", "prediction", "runner_up",
)  # fmt: skip
_FLOATS = ("k", "T", "margin", "log_odds", "required_margin", "rounding", "clean_margin")
_ADDRESSES = ("trial", "trial_gradient")
_NAMES = (*_BYTES, "temperature", *_INTS, *_FLOATS, *_ADDRESSES, "excluded_classes")

PROBLEM = np.dtype(
    {
        "names": _NAMES,
        "formats": [np.bool_] * len(_BYTES)
        + [np.int8]
        + [np.int32] * len(_INTS)
        + [np.float32] * len(_FLOATS)
        + [np.int64] * len(_ADDRESSES)
        + [(np.int32, (MAX_SCHEDULES,))],
        "offsets": [_LAYOUT[name] for name in _NAMES],
        "itemsize": _LAYOUT["size"],
    }
)

SIZE = tl.constexpr(_LAYOUT["size"])  # bytes; a multiple of 16
WANT_GRADIENT = tl.constexpr(_LAYOUT["want_gradient"])
RECORD_SCALES = tl.constexpr(_LAYOUT["record_scales"])
TARGETED = tl.constexpr(_LAYOUT["targeted"])
FINITE = tl.constexpr(_LAYOUT["finite"])
TEMPERATURE_RULE = tl.constexpr(_LAYOUT["temperature"])  # enum class Temperature
FROM_MARGIN = tl.constexpr(2)  # Temperature::from_margin

WORDS = tl.constexpr(_LAYOUT["size"] // 4)
CLASS_INDEX = tl.constexpr(_LAYOUT["class_index"] // 4)
EXCLUDED_CLASSES = tl.constexpr(_LAYOUT["excluded_classes"] // 4)
EXCLUSIONS = tl.constexpr(_LAYOUT["exclusions"] // 4)
RIVAL_CLASS = tl.constexpr(_LAYOUT["rival_class"] // 4)
SCHEDULE = tl.constexpr(_LAYOUT["schedule"] // 4)
STAGE = tl.constexpr(_LAYOUT["stage"] // 4)
PREDICTION = tl.constexpr(_LAYOUT["prediction"] // 4)
RUNNER_UP = tl.constexpr(_LAYOUT["runner_up"] // 4)
SMOOTHING = tl.constexpr(_LAYOUT["k"] // 4)
TEMPERATURE = tl.constexpr(_LAYOUT["T"] // 4)
MARGIN = tl.constexpr(_LAYOUT["margin"] // 4)
CLEAN_MARGIN = tl.constexpr(_LAYOUT["clean_margin"] // 4)
LOG_ODDS = tl.constexpr(_LAYOUT["log_odds"] // 4)
REQUIRED_MARGIN = tl.constexpr(_LAYOUT["required_margin"] // 4)
ROUNDING = tl.constexpr(_LAYOUT["rounding"] // 4)
STAGES = tl.constexpr(MAX_STAGES)
SCHEDULES = tl.constexpr(MAX_SCHEDULES)

LONGS = tl.constexpr(_LAYOUT["size"] // 8)
TRIAL = tl.constexpr(_LAYOUT["trial"] // 8)
TRIAL_GRADIENT = tl.constexpr(_LAYOUT["trial_gradient"] // 8)
