"""Machine code of a kernel for a GPU that need not be here.

A program in another language loads it and launches it with the arguments of `Launch`; nothing of
Triton's launcher takes part. Triton keeps what it has compiled in its cache on disk.
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
"""Of scalar parameters; every other one is an address, <Q."""


@dataclass(frozen=True)
class Compiled:
    """Machine code and how it is launched."""

    name: str  # entry of the code
    cubin: bytes
    ptx: str
    threads: int
    shared: int  # bytes of dynamic shared memory
    formats: tuple[str, ...]  # struct formats of all its parameters, Triton's own at the end


@dataclass(frozen=True)
class Launch:
    """A kernel with its arguments packed in the order of its parameters, ready to be launched."""

    name: str
    cubin: bytes
    grid: tuple[int, int, int]
    threads: int
    shared: int
    arguments: tuple[bytes, ...]


_compiled: dict[tuple[Any, ...], Compiled] = {}


def compile_ahead(
    kernel: Any,
    parameters: Mapping[str, str],
    aligned: Collection[str],
    constants: Mapping[str, Any],
    options: Mapping[str, Any],
    arch: int,
) -> Compiled:
    """`kernel` for an architecture (90: sm_90).

    parameters: Triton's type of each one that is passed, in order ("*fp32", "i32"); aligned: those
    that are multiples of 16; constants: values of the others. Kept in this process, where even
    Triton's cache on disk takes half a second.
    """
    given = (parameters, constants, options)
    key = (kernel, arch, tuple(sorted(aligned)), *(tuple(values.items()) for values in given))
    if key in _compiled:
        return _compiled[key]
    place = {name: i for i, name in enumerate(kernel.arg_names)}
    unknown = place.keys() ^ (parameters.keys() | constants.keys())
    if unknown:
        raise TypeError(f"{kernel.__name__}: missing or unknown arguments {sorted(unknown)}")
    source = ASTSource(
        fn=kernel,
        signature={**parameters, **dict.fromkeys(constants, "constexpr")},
        constexprs={(place[name],): value for name, value in constants.items()},
        attrs={  # in one order: it is part of the key of Triton's cache
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
    _compiled[key] = Compiled(
        name=data.name,
        cubin=compiled.asm["cubin"],
        ptx=ptx,
        threads=int(threads[1]) if threads else 32 * data.num_warps,
        shared=data.shared,
        formats=formats + ("<Q",) * extra,
    )
    return _compiled[key]


def launch(code: Compiled, grid: int, values: tuple[int | float, ...]) -> Launch:
    """`code` on a grid of so many programs; Triton's own parameters, not used, are 0."""
    values += (0,) * (len(code.formats) - len(values))
    arguments = tuple(
        struct.pack(kind, value) for kind, value in zip(code.formats, values, strict=True)
    )
    return Launch(code.name, code.cubin, (grid, 1, 1), code.threads, code.shared, arguments)
