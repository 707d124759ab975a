"""Build a wheel for every Linux with glibc 2.28 or later, in dist/: tag manylinux_2_28.

The system's C++ compiler makes the objects. The module is linked with libstdc++ inside and with the
libraries of glibc 2.28, which the package ziglang makes for any version. auditwheel checks the
versions of symbols and names the wheel. It does not see symbols without a version, such as those
that a newer glibc has alone, so that these are checked here.

The program runs with the packages of tools/wheel/requirements.txt, as `make wheel` does. CUDA comes
from there as well, or from the compiler that CUDACXX names. ``--no-cuda`` leaves it out.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "wheel"
GLIBC = "2.28"
LIBRARIES = ("c", "m", "pthread", "dl", "rt")
OLD_GLIBC = Path(__file__).parent / "wheel" / "old_glibc.c"


def run(*command: str | Path, **variables: str) -> None:
    """Run a program in the top folder; `SystemExit` with its name if it fails."""
    process = subprocess.run([*map(str, command)], cwd=ROOT, env=os.environ | variables)
    if process.returncode:
        raise SystemExit(f"make_wheel: {' '.join(map(str, command[:4]))} ... failed")


def make_glibc(folder: Path) -> None:
    """Write the libraries of the old glibc into a folder, for the linker alone."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    source = folder / "empty.c"
    source.write_text("int empty;\n")
    with tempfile.TemporaryDirectory() as cache:
        run(
            *(sys.executable, "-m", "ziglang", "cc", "-shared", source, "-o", folder / "empty.so"),
            *("-target", f"{platform.machine()}-linux-gnu.{GLIBC}"),
            *(f"-l{name}" for name in LIBRARIES[1:]),
            ZIG_GLOBAL_CACHE_DIR=cache,
            ZIG_LOCAL_CACHE_DIR=cache,
        )
        (library,) = Path(cache).rglob("libc.so.6")
        for made in [*library.parent.glob("*.so.*"), *Path(cache).rglob("libc_nonshared.a")]:
            shutil.copy(made, folder)
    for name in LIBRARIES[1:]:
        (made,) = folder.glob(f"lib{name}.so.*")
        (folder / f"lib{name}.so").symlink_to(made.name)
    parts = [folder / name for name in ("libc.so.6", "libc_nonshared.a", "libld.so.2")]
    (folder / "libc.so").write_text(f"GROUP ( {' '.join(map(str, parts))} )\n")
    compiler = os.environ.get("CC", "cc").split()
    run(*compiler, "-O2", "-fPIC", "-Wall", "-c", OLD_GLIBC, "-o", folder / "old_glibc.o")


def packaged_nvcc() -> Path:
    """Return nvcc of the installed package, with its libraries where it looks for them."""
    (compiler,) = Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin/nvcc")
    toolkit = compiler.parents[1]
    if not (toolkit / "lib64").exists():
        (toolkit / "lib64").symlink_to("lib")
    return compiler


def module(wheel: Path, folder: Path) -> Path:
    """Unpack the compiled module of a wheel into a folder and return its path."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.startswith("advcore/_core.c"))
        return Path(archive.extract(name, folder))


def unversioned(library: Path) -> list[str]:
    """Return the symbols without a version that no Python and no old glibc has."""
    command = ["nm", "--dynamic", "--undefined-only", str(library)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    symbols = [line.split()[1] for line in lines if line.split()[0] == "U"]
    return [each for each in symbols if "@" not in each and not each.startswith(("Py", "_Py"))]


def build(cuda: bool) -> Path:
    """Return the wheel as the build makes it, before auditwheel names it."""
    glibc, raw = BUILD / "glibc", BUILD / "raw"
    make_glibc(glibc)
    shutil.rmtree(raw, ignore_errors=True)
    link = f"-L{glibc} {glibc}/old_glibc.o -static-libstdc++ -Wl,--gc-sections"
    compiler = {"CUDACXX": os.environ.get("CUDACXX") or str(packaged_nvcc())} if cuda else {}
    run(
        *(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", raw),
        *(
            ROOT,
            f"-Cbuild-dir={BUILD / 'cmake'}",
            f"-Ccmake.define.ADVCORE_CUDA={'ALL' if cuda else 'OFF'}",
        ),
        f"-Ccmake.define.CMAKE_MODULE_LINKER_FLAGS={link}",
        **compiler,
    )
    (wheel,) = raw.glob("*.whl")
    return wheel


def main() -> None:
    """Build, check and name a wheel, and print its sizes."""
    parser = argparse.ArgumentParser(description="Build a manylinux wheel in dist/.")
    parser.add_argument("--no-cuda", action="store_true", help="without the CUDA back end")
    cuda = not parser.parse_args().no_cuda
    wheel = build(cuda)
    with tempfile.TemporaryDirectory() as folder:
        library = module(wheel, Path(folder))
        if missing := unversioned(library):
            raise SystemExit(f"make_wheel: glibc {GLIBC} lacks {', '.join(missing)}")
        size = library.stat().st_size
    repaired = BUILD / "repaired"
    shutil.rmtree(repaired, ignore_errors=True)
    tag = f"manylinux_{GLIBC.replace('.', '_')}_{platform.machine()}"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    repair = ("repair", "--only-plat", "--plat", tag, "-w", repaired, wheel)
    run(sys.executable, "-m", "auditwheel", *repair, PATH=path)
    (made,) = repaired.glob("*.whl")
    target = ROOT / "dist" / made.name
    target.parent.mkdir(exist_ok=True)
    shutil.move(made, target)
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size:,} bytes, _core {size:,} bytes")


if __name__ == "__main__":
    main()
