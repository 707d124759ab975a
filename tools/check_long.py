"""Run what is too long for the tests, part by part, and keep the outcome of each as it is finished.

    python tools/check_long.py [part ...] [--again]

A part that has passed at this commit is left out, unless it is named or ``--again`` is given, so an
interrupted run goes on where it stopped. Changes that are not committed count as another commit.
Outcomes are in benchmarks/results/check_long.json, or in the folder that ADVCORE_RESULTS names.

The program needs the packages of tools/wheel/requirements.txt, as `make check-long` has them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "check-long"
RESULTS = Path(os.environ.get("ADVCORE_RESULTS") or ROOT / "benchmarks" / "results")
OUTCOMES = RESULTS / "check_long.json"
TRY = ROOT / "tools" / "wheel" / "try_wheel.py"
CONSTRAINTS = ("-c", str(ROOT / "constraints-dev.txt"))
TAIL = 2000  # characters of the output of a failure that are kept

Facts = dict[str, Any]


class Failure(Exception):
    """A program of a part failed; the text is the end of its output."""


def run(
    *command: str | Path, folder: Path = ROOT, variables: Mapping[str, str] | None = None
) -> str:
    """Return the output of a program, standard error included; `Failure` if it fails."""
    process = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env={**os.environ, **(variables or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if process.returncode:
        name = " ".join(map(str, command))
        raise Failure(f"{name}: exit {process.returncode}\n{process.stdout[-TAIL:]}")
    return process.stdout


def environment(name: str) -> Path:
    """Return the interpreter of a new, empty environment."""
    folder = BUILD / name
    run(sys.executable, "-m", "venv", "--clear", folder)
    return folder / "bin" / "python"


def install(python: Path, *what: str | Path) -> None:
    """Install into an environment, with the versions of the tests."""
    run(python, "-m", "pip", "--disable-pip-version-check", "install", *CONSTRAINTS, *what)


def wheel() -> Path:
    """Return the wheel that the part wheel has made of this commit."""
    made = outcomes().get("wheel", {})
    if (made.get("verdict"), made.get("commit")) != ("passed", commit()):
        raise Failure("there is no wheel of this commit: run the part wheel first")
    return ROOT / "dist" / str(made["wheel"])


def unpacked(archive: Path, folder: str) -> Path:
    """Return the compiled module of a wheel, unpacked into a folder."""
    run(sys.executable, "-m", "zipfile", "-e", archive, folder)
    (module,) = Path(folder, "advcore").glob("_core*.so")
    return module


def build_wheel() -> Facts:
    """`make wheel`."""
    output = run(sys.executable, ROOT / "tools" / "make_wheel.py")
    made = ROOT / output.splitlines()[-1].partition(":")[0]
    with tempfile.TemporaryDirectory() as folder:
        module = unpacked(made, folder)
        code = re.search(r"^\.nv_fatbin\s+(\d+)", run("size", "-A", module), re.MULTILINE)
        return {
            "wheel": made.name,
            "wheel bytes": made.stat().st_size,
            "module bytes": module.stat().st_size,
            "device code bytes": int(code[1]) if code else 0,
        }


def audit() -> Facts:
    """What auditwheel says of the wheel, and the GPUs that the module has code for."""
    report = " ".join(run(sys.executable, "-m", "auditwheel", "show", wheel()).split())
    tag = re.search(r'following platform tag: "(\w+)"', report)
    if not tag or not re.search(r"manylinux_2_(1\d|2[0-8])_", tag[1]):
        raise Failure(report[-TAIL:])
    (tool,) = Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin/cuobjdump")
    with tempfile.TemporaryDirectory() as folder:
        listing = run(tool, "--list-elf", "--list-ptx", unpacked(wheel(), folder))
    code = {
        kind: sorted({int(each) for each in re.findall(rf"sm_(\d+)\.{kind}", listing)})
        for kind in ("cubin", "ptx")
    }
    if code != {"cubin": [80, 90, 100, 120], "ptx": [100]}:
        raise Failure(f"code for other GPUs than those of CMakeLists.txt: {code}")
    return {"platform": tag[1], "machine code": code["cubin"], "PTX": code["ptx"]}


def tried(name: str, *packages: str | Path) -> Facts:
    """Install into a new environment, and attack digits from another folder."""
    python = environment(name)
    install(python, *packages)
    with tempfile.TemporaryDirectory() as folder:
        facts: Facts = json.loads(run(python, TRY, folder=Path(folder)).splitlines()[-1])
        info = run(python, "-m", "pip", "list", "--format=json", folder=Path(folder))
    versions = {each["name"]: each["version"] for each in json.loads(info[: info.rindex("]") + 1])}
    return facts | {each: versions[each] for each in ("numpy", "torch") if each in versions}


def with_numpy() -> Facts:
    """The wheel, installed beside NumPy alone."""
    return tried("numpy", wheel())


def with_torch() -> Facts:
    """The wheel, installed with torch."""
    return tried("torch", f"advcore[torch] @ {wheel().as_uri()}")


def source() -> Facts:
    """The source archive, built as `pip install` builds it on the user's machine."""
    folder = BUILD / "sdist"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    code = "from scikit_build_core.build import build_sdist; build_sdist({!r})"
    run(sys.executable, "-c", code.format(str(folder)))
    (archive,) = folder.glob("*.tar.gz")
    return tried("source", archive) | {"archive bytes": archive.stat().st_size}


def programs(sanitizer: str) -> Facts:
    """The check programs of tests/native/cpp under a sanitizer."""
    build = BUILD / f"programs-{sanitizer.partition(',')[0]}"
    flags = f"-fsanitize={sanitizer} -fno-sanitize-recover=all -fno-omit-frame-pointer"
    options = ("-DADVCORE_MODULE=OFF", "-DADVCORE_CHECKS=ON", "-DADVCORE_CUDA=OFF")
    kind = "-DCMAKE_BUILD_TYPE=RelWithDebInfo"
    run("cmake", "-S", ROOT, "-B", build, *options, kind, f"-DCMAKE_CXX_FLAGS={flags}")
    run("cmake", "--build", build, "--parallel", "2")
    passed = run("ctest", "--test-dir", build, "--output-on-failure", "--no-tests=error")
    return {"tests": int(re.findall(r"out of (\d+)", passed)[-1])}


def suite(name: str, *options: str, **variables: str) -> Facts:
    """Every test, in an environment of its own."""
    python = environment(name)
    install(python, f"{ROOT}[dev]", *options)
    settings = {"OMP_WAIT_POLICY": "passive", **variables}
    output = run(python.with_name("pytest"), "-q", "-s", variables=settings)
    return {"tests": re.findall(r"\d+ passed.*", output)[-1]}


def adapters() -> Facts:
    """The tests of the adapters, with every library, in an environment of its own."""
    python = environment("adapters")
    install(python, f"{ROOT}[dev]", "wandb", "-Ccmake.define.ADVCORE_CUDA=OFF")
    install(python, "--no-deps", "-r", ROOT / "tools" / "adapters.txt")
    output = run(python.with_name("pytest"), "-q", "tests/adapters")
    counts = re.findall(r"\d+ passed.*", output)[-1]
    if "could not import" in output:  # a library was skipped
        raise Failure(output[-TAIL:])
    return {"tests": counts}


def suite_under_address_sanitizer() -> Facts:
    """Every test with the extension under AddressSanitizer and UBSan."""
    flags = "-fsanitize=address,undefined -fno-omit-frame-pointer"
    libraries = [run("gcc", f"-print-file-name={n}.so").strip() for n in ("libasan", "libstdc++")]
    return suite(
        "suite-address",
        f"-Cbuild-dir={BUILD / 'suite-address-build'}",
        "-Ccmake.build-type=RelWithDebInfo",
        "-Cinstall.strip=false",
        "-Ccmake.define.ADVCORE_CUDA=OFF",
        f"-Ccmake.define.CMAKE_CXX_FLAGS={flags}",
        ASAN_OPTIONS="detect_leaks=0",
        LD_PRELOAD=" ".join(libraries),
    )


PARTS: dict[str, Callable[[], Facts]] = {
    "wheel": build_wheel,
    "audit": audit,
    "numpy": with_numpy,
    "torch": with_torch,
    "source": source,
    "adapters": adapters,
    "programs-address": lambda: programs("address,undefined"),
    "programs-thread": lambda: programs("thread"),
    "suite-base": lambda: suite("suite-base", ADVCORE_ISA="base"),
    "suite-v3": lambda: suite("suite-v3", ADVCORE_ISA="v3"),
    "suite-address": suite_under_address_sanitizer,
}


def commit() -> str:
    """Return the commit of the tree; changes beside the outcomes add ``-dirty``."""
    changes = run("git", "status", "--porcelain", "--", ".", ":!benchmarks/results")
    return run("git", "rev-parse", "--short=12", "HEAD").strip() + "-dirty" * bool(changes)


def outcomes() -> dict[str, Facts]:
    """Return the stored outcomes by part."""
    stored: dict[str, Facts] = json.loads(OUTCOMES.read_text()) if OUTCOMES.is_file() else {}
    return stored


def store(name: str, outcome: Facts) -> None:
    """Put the outcome of a part into the file, which is replaced as a whole."""
    OUTCOMES.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(outcomes() | {name: outcome}, indent=2, sort_keys=True) + "\n"
    part = OUTCOMES.with_suffix(".part")
    part.write_text(text)
    part.replace(OUTCOMES)


def check(name: str, tree: str) -> bool:
    """Run a part, store its outcome and return whether it passed."""
    print(f"{name} ...", flush=True)
    date, begin = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.monotonic()
    try:
        facts, passed = PARTS[name](), True
    except Failure as error:
        facts, passed = {"output": str(error).replace(f"{ROOT}/", "")}, False
        print(error)
    verdict = "passed" if passed else "failed"
    seconds = round(time.monotonic() - begin)
    store(name, facts | {"verdict": verdict, "commit": tree, "date": date, "seconds": seconds})
    print(f"{name}: {verdict}, {seconds} s", flush=True)
    return passed


def main() -> None:
    """Run the parts that have not passed at this commit; exit status 1 if one fails."""
    parser = argparse.ArgumentParser(description="Run what is too long for the tests.")
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--again", action="store_true", help="also what has passed already")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}; parts: {', '.join(PARTS)}")
    tree, stored, failed = commit(), outcomes(), False
    for name in arguments.parts or PARTS:
        before = stored.get(name, {})
        done = (before.get("verdict"), before.get("commit")) == ("passed", tree)
        if done and not (arguments.parts or arguments.again or tree.endswith("-dirty")):
            print(f"{name}: passed already at {tree}")
            continue
        failed |= not check(name, tree)
    sys.exit(failed)


if __name__ == "__main__":
    main()
