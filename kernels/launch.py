"""Launches of machine code through the CUDA driver, on torch's streams.

Triton's own launcher would need a C compiler on the machine with the GPU. In the tests of
`Plan.run` there, these launches also test the packed arguments that the engine's queue gets.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from typing import Any

import torch

from .machine_code import Launch, MachineCode

MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
"""Value of CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES in cuda.h."""
DEFAULT_SHARED = 48 * 1024
"""Bytes of shared memory that a kernel may have without asking for more."""


@functools.cache
def _cuda() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _check(error: int, action: str) -> None:
    """Raise if a call of the driver failed."""
    if error:
        name = ctypes.c_char_p()
        _cuda().cuGetErrorName(error, ctypes.byref(name))
        raise RuntimeError(f"CUDA: {action}: {(name.value or b'unknown').decode()} ({error})")


class LoadedKernel:
    """A kernel that is loaded on the current device."""

    def __init__(self, code: MachineCode) -> None:
        self._code = code
        self._context = ctypes.c_void_p()
        _check(_cuda().cuCtxGetCurrent(ctypes.byref(self._context)), "cuCtxGetCurrent")
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        _check(_cuda().cuModuleLoadData(ctypes.byref(module), code.cubin), "cuModuleLoadData")
        weakref.finalize(self, _cuda().cuModuleUnload, module).atexit = False
        name = code.name.encode()
        error = _cuda().cuModuleGetFunction(ctypes.byref(self._function), module, name)
        _check(error, f"cuModuleGetFunction {code.name}")
        if code.shared > DEFAULT_SHARED:
            _check(
                _cuda().cuFuncSetAttribute(
                    self._function, MAX_DYNAMIC_SHARED_SIZE_BYTES, code.shared
                ),
                f"cuFuncSetAttribute {code.name} {code.shared} bytes",
            )

    def launch(self, launch: Launch) -> None:
        """Queue a launch on torch's current stream."""
        # A thread of autograd may have made no call yet that makes a context current there.
        _cuda().cuCtxSetCurrent(self._context)
        values = [
            (ctypes.c_uint64 if len(packed) == 8 else ctypes.c_uint32).from_buffer_copy(packed)
            for packed in launch.arguments
        ]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        sizes = (*launch.grid, launch.threads, 1, 1, launch.shared)
        error = _cuda().cuLaunchKernel(self._function, *sizes, stream, pointers, None)
        _check(error, f"cuLaunchKernel {launch.name}")
