"""Launches machine code through the CUDA driver, on torch's streams: `Plan.run` in tests on a GPU.

Triton's own launcher would want a C compiler on that machine; and here the packed arguments that
the engine's queue gets are the ones that are tried.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from typing import Any

import torch

from .ahead import Compiled, Launch

MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # CU_FUNC_ATTRIBUTE_...
DEFAULT_SHARED = 48 * 1024  # more has to be asked for


@functools.cache
def _cuda() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _expect(error: int, what: str) -> None:
    if error:
        name = ctypes.c_char_p()
        _cuda().cuGetErrorName(error, ctypes.byref(name))
        raise RuntimeError(f"CUDA: {what}: {(name.value or b'unknown').decode()} ({error})")


class Loaded:
    """A kernel on the current device."""

    def __init__(self, code: Compiled) -> None:
        self._code = code
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        _expect(_cuda().cuModuleLoadData(ctypes.byref(module), code.cubin), "cuModuleLoadData")
        weakref.finalize(self, _cuda().cuModuleUnload, module).atexit = False
        name = code.name.encode()
        found = _cuda().cuModuleGetFunction(ctypes.byref(self._function), module, name)
        _expect(found, f"cuModuleGetFunction {code.name}")
        if code.shared > DEFAULT_SHARED:
            _expect(
                _cuda().cuFuncSetAttribute(
                    self._function, MAX_DYNAMIC_SHARED_SIZE_BYTES, code.shared
                ),
                f"cuFuncSetAttribute {code.name} {code.shared} bytes",
            )

    def launch(self, launch: Launch) -> None:
        """Queue a launch on torch's current stream."""
        values = [
            (ctypes.c_uint64 if len(packed) == 8 else ctypes.c_uint32).from_buffer_copy(packed)
            for packed in launch.arguments
        ]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        _expect(
            _cuda().cuLaunchKernel(
                *(self._function, *launch.grid, launch.threads, 1, 1, launch.shared),
                *(stream, pointers, None),
            ),
            f"cuLaunchKernel {launch.name}",
        )
