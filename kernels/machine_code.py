"""Ahead-of-time compilation of kernels, for a GPU that need not be in this machine.

A program in another language loads the machine code and launches it with the arguments of `Launch`,
without Triton's launcher. Triton keeps compiled kernels in its cache on disk.
"""
# mypy: disable-error-code="import-untyped, import-not-found"

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .configs import shared_memory

FORMATS = {"i32": "<i", "fp32": "<f"}
"""Struct formats of the scalar parameters. Every other parameter is an address, "<Q"."""


@dataclass(frozen=True)
class MachineCode:
    """Machine code of a kernel, and what a launch of it needs."""

    name: str  # name of the entry
    cubin: bytes
    ptx: str
    threads: int
    shared: int  # bytes of dynamic shared memory
    formats: tuple[str, ...]  # formats of its parameters, those of Triton at the end


@dataclass(frozen=True)
class Launch:
    """A kernel with its arguments, packed in the order of its parameters."""

    name: str
    cubin: bytes
    grid: tuple[int, int, int]
    threads: int
    shared: int
    arguments: tuple[bytes, ...]


_KERNELS: dict[tuple[Any, ...], MachineCode] = {}


def compile_kernel(
    kernel: Any,
    parameters: Mapping[str, str],
    aligned: Collection[str],
    constants: Mapping[str, Any],
    options: Mapping[str, Any],
    arch: int,
) -> MachineCode:
    """Compile a kernel for an architecture (90: sm_90).

    The machine code is kept in this process, as Triton's cache on disk takes half a second.

    Parameters
    ----------
    parameters : Triton's types ("*fp32", "i32") of the parameters that a launch passes, in order.
    aligned : names of those that are multiples of 16.
    constants : values of the other parameters.
    options : Triton's options of a compilation.

    Raises
    ------
    TypeError : a parameter is missing or unknown.
    ValueError : the kernel needs more shared memory than there is, or what a `Launch` lacks.
    """
    mappings = (parameters, constants, options)
    key = (kernel, arch, tuple(sorted(aligned)), *(tuple(values.items()) for values in mappings))
    if key in _KERNELS:
        return _KERNELS[key]
    place = {name: i for i, name in enumerate(kernel.arg_names)}
    unknown = place.keys() ^ (parameters.keys() | constants.keys())
    if unknown:
        raise TypeError(f"{kernel.__name__}: missing or unknown arguments {sorted(unknown)}")
    source = ASTSource(
        fn=kernel,
        signature={**parameters, **dict.fromkeys(constants, "constexpr")},
        constexprs={(place[name],): value for name, value in constants.items()},
        attrs={  # The order is part of the key of Triton's cache.
            (place[name],): [["tt.divisibility", 16]] for name in parameters if name in aligned
        },
    )
    target = GPUTarget("cuda", arch, 32)
    compiled = triton.compile(source, target=target, options=dict(options))
    data, ptx = compiled.metadata, compiled.asm["ptx"]
    if data.shared > shared_memory(arch):
        raise ValueError(f"{kernel.__name__} needs {data.shared} bytes of shared memory")
    for scratch in ("global_scratch_size", "profile_scratch_size"):
        if getattr(data, scratch, 0):
            raise ValueError(f"{kernel.__name__} wants {scratch} {getattr(data, scratch)}")
    formats = tuple(FORMATS.get(kind, "<Q") for kind in parameters.values())
    entry = re.search(rf"\.entry {re.escape(data.name)}\((.*?)\)", ptx, re.DOTALL)
    assert entry is not None
    extra = entry[1].count(".param") - len(formats)
    if extra < 0 or tuple(getattr(data, "cluster_dims", (1, 1, 1))) != (1, 1, 1):
        raise ValueError(f"{kernel.__name__}: parameters or clusters that are not understood")
    threads = re.search(r"\.reqntid (\d+)", ptx)
    _KERNELS[key] = MachineCode(
        name=data.name,
        cubin=compiled.asm["cubin"],
        ptx=ptx,
        threads=int(threads[1]) if threads else 32 * data.num_warps,
        shared=data.shared,
        formats=formats + ("<Q",) * extra,
    )
    return _KERNELS[key]


def make_launch(code: MachineCode, grid: int, values: tuple[int | float, ...]) -> Launch:
    """Pack a launch of `grid` programs. Triton's own parameters are 0, as they are not used."""
    values += (0,) * (len(code.formats) - len(values))
    arguments = tuple(
        struct.pack(kind, value) for kind, value in zip(code.formats, values, strict=True)
    )
    return Launch(code.name, code.cubin, (grid, 1, 1), code.threads, code.shared, arguments)
