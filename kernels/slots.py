"""Where the kernels find the scalars of a slot, and the same as a NumPy record.

`PROBLEM` is struct Problem of csrc/problem.h with the fields that an evaluation reads or writes;
the engine itself says where they are. The constants are offsets in bytes for the one-byte fields,
in words of 4 bytes for the others, of 8 for the addresses of the trial point and its gradient: the
solver swaps its vectors, so a slot's rows are not always in the same place.
"""
# mypy: disable-error-code="import-untyped, import-not-found"

from __future__ import annotations

import numpy as np
import triton.language as tl

from advcore import _core

_LAYOUT = _core.problem_layout()
MAX_STAGES = _LAYOUT["max_stages"]
MAX_SCHEDULES = _LAYOUT["max_schedules"]

_BYTES = ("want_gradient", "measure", "targeted", "finite")
_INTS = (
    *("label", "exclusions", "against", "schedule", "stage", "prediction", "runner_up"),
)  # fmt: skip
_FLOATS = ("k", "T", "margin", "log_odds", "kappa", "rounding", "clean_margin")
_ADDRESSES = ("trial", "trial_gradient")
_NAMES = (*_BYTES, "temperature", *_INTS, *_FLOATS, *_ADDRESSES, "excluded")

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
MEASURE = tl.constexpr(_LAYOUT["measure"])
TARGETED = tl.constexpr(_LAYOUT["targeted"])
FINITE = tl.constexpr(_LAYOUT["finite"])
TEMPERATURE_RULE = tl.constexpr(_LAYOUT["temperature"])  # enum class Temperature
FROM_MARGIN = tl.constexpr(2)  # Temperature::from_margin

WORDS = tl.constexpr(_LAYOUT["size"] // 4)
LABEL = tl.constexpr(_LAYOUT["label"] // 4)
EXCLUDED = tl.constexpr(_LAYOUT["excluded"] // 4)
EXCLUSIONS = tl.constexpr(_LAYOUT["exclusions"] // 4)
AGAINST = tl.constexpr(_LAYOUT["against"] // 4)
SCHEDULE = tl.constexpr(_LAYOUT["schedule"] // 4)
STAGE = tl.constexpr(_LAYOUT["stage"] // 4)
PREDICTION = tl.constexpr(_LAYOUT["prediction"] // 4)
RUNNER_UP = tl.constexpr(_LAYOUT["runner_up"] // 4)
SMOOTHING = tl.constexpr(_LAYOUT["k"] // 4)
TEMPERATURE = tl.constexpr(_LAYOUT["T"] // 4)
MARGIN = tl.constexpr(_LAYOUT["margin"] // 4)
CLEAN_MARGIN = tl.constexpr(_LAYOUT["clean_margin"] // 4)
LOG_ODDS = tl.constexpr(_LAYOUT["log_odds"] // 4)
KAPPA = tl.constexpr(_LAYOUT["kappa"] // 4)
ROUNDING = tl.constexpr(_LAYOUT["rounding"] // 4)
STAGES = tl.constexpr(MAX_STAGES)
SCHEDULES = tl.constexpr(MAX_SCHEDULES)

LONGS = tl.constexpr(_LAYOUT["size"] // 8)
TRIAL = tl.constexpr(_LAYOUT["trial"] // 8)
TRIAL_GRADIENT = tl.constexpr(_LAYOUT["trial_gradient"] // 8)
