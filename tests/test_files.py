"""Files are written as a whole: what a kill, a full disk or an error leaves is the former file."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from advcore import Layer, Network, Result, minimize_distortion
from advcore._files import replacing, write_text

SAVERS = {
    "result": """
import numpy as np, sys
from advcore import Result
results = [Result.load(f"{name}.npz") for name in "ab"]
save = lambda place: results[place].save("target.npz")
""",
    "network": """
import sys
from advcore import Network
networks = [Network.load(f"{name}.safetensors") for name in "ab"]
save = lambda place: networks[place].save("target.safetensors")
""",
}
LOOP = """
save(0)
print("ready", flush=True)
while True:
    save(1)
    save(0)
"""


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_place_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("former")
    path.chmod(0o640)
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "former"
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert names_in(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_former_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "x.txt"
    path.write_text("former")

    def break_off() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        break_off()
    assert path.read_text() == "former"
    assert names_in(tmp_path) == ["x.txt"]


def test_new_files_have_the_usual_permissions(tmp_path: Path) -> None:
    write_text(tmp_path / "ours", "x")
    (tmp_path / "theirs").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


def test_links_are_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("untouched")
    (tmp_path / "link").symlink_to("elsewhere")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("link", "dangling"):
        write_text(tmp_path / name, "new")
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_text() == "new"
    assert (tmp_path / "elsewhere").read_text() == "untouched"
    assert not (tmp_path / "nowhere").exists()


def test_devices_stay_and_folders_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    with pytest.raises(IsADirectoryError, match="is a folder, expected the name of a file"):
        write_text(tmp_path, "text")


def test_names_may_be_long_and_of_any_bytes(tmp_path: Path) -> None:
    name = b"\xff\n" + b"x" * 253
    path = tmp_path / os.fsdecode(name)
    write_text(path, "caf\u00e9 " + os.fsdecode(b"\xfe"))
    assert path.read_bytes() == "café ".encode() + b"\xfe"
    assert names_in(tmp_path) == [os.fsdecode(name)]


@pytest.mark.parametrize("kind", SAVERS)
def test_a_kill_while_saving_leaves_a_whole_file(
    tmp_path: Path, kind: str, two_results: tuple[Result, Result]
) -> None:
    rng = np.random.default_rng(0)
    if kind == "result":
        for name, result in zip("ab", two_results, strict=True):
            result.save(tmp_path / f"{name}.npz")
    else:
        for name in "ab":
            weight = rng.standard_normal((300, 300)).astype(np.float32)
            network = Network([Layer(weight, np.zeros(300, np.float32))])
            network.save(tmp_path / f"{name}.safetensors")
    ending = ".npz" if kind == "result" else ".safetensors"
    wholes = [(tmp_path / f"{name}{ending}").read_bytes() for name in "ab"]
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", SAVERS[kind] + LOOP], cwd=tmp_path, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(float(rng.uniform(0, 0.05)))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        target = tmp_path / f"target{ending}"
        if kind == "network":
            assert target.read_bytes() in wholes
            continue
        loaded = Result.load(target)
        assert any(np.array_equal(loaded.adversarial, r.adversarial) for r in two_results)


@pytest.fixture
def two_results() -> tuple[Result, Result]:
    """Results of 200 images whose files take a moment to write."""
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((3, 256)).astype(np.float32)
    network = Network([Layer(weight, np.zeros(3, np.float32))])
    images = rng.random((2, 200, 256), dtype=np.float32)
    first, second = (minimize_distortion(network, x, effort="fast") for x in images)
    return first, second


def test_a_full_disk_leaves_the_former_result(
    tmp_path: Path, two_results: tuple[Result, Result]
) -> None:
    two_results[0].save(tmp_path / "target.npz")
    two_results[1].save(tmp_path / "a.npz")
    two_results[1].save(tmp_path / "b.npz")
    limited = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try:\n    save(0)\nexcept OSError as error:\n    sys.exit(error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", SAVERS["result"] + limited], cwd=tmp_path)
    assert done.returncode == 27  # EFBIG
    loaded = Result.load(tmp_path / "target.npz")
    np.testing.assert_array_equal(loaded.adversarial, two_results[0].adversarial)
    assert names_in(tmp_path) == ["a.npz", "b.npz", "target.npz"]
