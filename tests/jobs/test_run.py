"""Jobs: the same rows as a call, kept block by block; what is bad becomes a row."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
import pyarrow.parquet as pq

import advcore
from advcore import Status, data, jobs
from advcore.jobs import store as store_module
from advcore.jobs.inputs import Rows
from advcore.solve import finish

Make = Callable[..., Any]


def table(folder: Path) -> dict[str, list[Any]]:
    return dict(pq.read_table(folder / "table.parquet").to_pydict())


def files(folder: Path) -> dict[str, bytes]:
    """All visible files of a job."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


class Bad:
    """A source with images that cannot be read."""

    borders: Sequence[int] | None = None

    def __init__(self, images: Any, bad: Sequence[int]) -> None:
        self.images, self.bad, self.count = images, set(bad), len(images)
        self.reads: list[tuple[int, int]] = []

    def read(self, start: int, stop: int) -> Rows:
        self.reads.append((start, stop))
        good = [i for i in range(start, stop) if i not in self.bad]
        broken = {f"i{i}": "it is broken" for i in range(start, stop) if i in self.bad}
        return Rows([f"i{i}" for i in good], self.images[good], None, None, broken)

    def fingerprint(self) -> dict[str, str]:
        return {"images": "1"}


@pytest.mark.parametrize("targeted", [False, True])
def test_rows_are_those_of_a_call(
    tmp_path: Path, random_network: Make, random_images: Make, targeted: bool
) -> None:
    network, x = random_network(), random_images(50)
    label = network.forward(x).argmax(1)
    target = (label + 1) % 5 if targeted else None
    result = advcore.minimize_distortion(network, x, target, labels=label, confidence=0.01)
    keys = [f"k{i}" for i in range(50)]
    source = jobs.MemorySource(x, label, target, keys)
    state = jobs.run(network, source, tmp_path / "o", block=16, images="float32", confidence=0.01)
    assert state.is_complete
    assert (state.blocks, state.blocks_done, state.images) == (4, 4, 50)
    assert state.done.images == 50
    assert state.done.succeeded == result.success.sum()
    rows = table(tmp_path / "o")
    assert rows["key"] == keys
    assert rows["label"] == label.tolist()
    assert rows["target"] == (target.tolist() if target is not None else [None] * 50)
    assert rows["status"] == [Status(code).name for code in result.status]
    for name in ("distortion", "margin", "c", "evaluations", "prediction", "success"):
        values = [np.nan if value is None else value for value in rows[name]]
        expected = getattr(result, name)
        expected = np.where(np.isinf(expected), np.nan, expected)
        np.testing.assert_array_equal(np.array(values, expected.dtype), expected)
    parts = pq.read_table(tmp_path / "o" / "blocks")["adversarial"].to_pylist()
    np.testing.assert_array_equal(np.array(parts, np.float32), result.adversarial)


def test_a_job_that_is_cut_goes_on_with_the_unfinished_blocks(
    tmp_path: Path, random_network: Make, random_images: Make
) -> None:
    network, source = random_network(), Bad(random_images(40), [3, 21])
    jobs.run(network, source, tmp_path / "whole", block=7)
    source.reads.clear()
    state = jobs.run(
        network,
        source,
        tmp_path / "cut",
        block=7,
        callback=lambda state: state.finished >= np.int64(14),
    )
    assert not state.is_complete
    done = len(source.reads)
    assert 2 <= done < 6
    (tmp_path / "cut" / "blocks" / "block-000001.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "cut" / "blocks" / ".1.ab.part").write_bytes(b"left by a kill")
    source.reads.clear()
    seen: list[jobs.JobProgress] = []
    state = jobs.run(network, source, tmp_path / "cut", block=7, callback=seen.append)
    assert source.reads[0] == (7, 14)
    assert (0, 7) not in source.reads
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert not list((tmp_path / "cut" / "blocks").glob(".*"))
    assert seen[-1].finished == seen[-1].total == 40
    assert seen[0].finished >= 7
    assert seen[-1].unreadable == 2
    source.reads.clear()
    again = jobs.run(network, source, tmp_path / "cut", block=7)
    assert again.is_complete
    assert source.reads == []


def test_images_that_cannot_be_read_or_attacked_are_rows(
    tmp_path: Path, random_network: Make, random_images: Make
) -> None:
    x = random_images(12)
    x[5, 2] = np.nan
    x[7, 3] = 1.5
    state = jobs.run(random_network(), Bad(x, [1, 8, 9, 10, 11]), tmp_path / "o", block=4)
    assert state.is_complete
    assert (state.done.images, state.done.unreadable, state.done.failed) == (12, 7, 0)
    rows = table(tmp_path / "o")
    by_key = dict(zip(rows["key"], zip(rows["status"], rows["error"], strict=True), strict=True))
    assert by_key["i8"] == ("unreadable", "it is broken")
    assert by_key["i5"] == ("unreadable", "must be finite, got NaN or infinity")
    assert by_key["i7"][1].startswith("must lie inside bounds [0, 1] (values from ")
    assert by_key["i6"][1] is None
    alone = advcore.minimize_distortion(random_network(), x[[4, 6]])
    assert rows["distortion"][rows["key"].index("i6")] == alone.distortion[1]


@pytest.mark.parametrize("name", ["labels", "targets"])
def test_a_class_that_the_model_does_not_have_is_a_row(
    tmp_path: Path, random_network: Make, random_images: Make, name: str
) -> None:
    network, x = random_network(), random_images(8)
    classes = (network.forward(x).argmax(1) + (name == "targets")) % 5
    classes[3] = 5
    state = jobs.run(network, jobs.MemorySource(x, **{name: classes}), tmp_path / "o", block=4)
    assert (state.done.unreadable, state.done.failed, state.done.images) == (1, 0, 8)
    rows = table(tmp_path / "o")
    assert rows["key"] == ["0", "1", "2", "3", "4", "5", "6", "7"]
    assert rows["error"][3] == f"{name[:-1]} 5 is none of the model's 5 classes"
    everything = jobs.MemorySource(x, **{name: classes + 5})
    with pytest.raises(ValueError, match=f"{name} must be in"):
        jobs.run(network, everything, tmp_path / "p", block=4)


class Fails:
    """A NumPy model that raises on images whose first value is 1."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def forward(self, x: Any) -> Any:
        if (x[:, 0] == 1).any() and len(x) < 64:
            raise RuntimeError("no such\nimage")
        return self.network.forward(x)

    def backward(self, dlogits: Any) -> Any:
        return self.network.backward(dlogits)


@pytest.mark.parametrize("block", [0, 2])
def test_a_block_on_which_the_model_raises_is_recorded(
    tmp_path: Path, random_network: Make, random_images: Make, block: int
) -> None:
    x = random_images(20) * 0.9
    x[5 * block + 1, 0] = 1
    labels = np.arange(20) % 2
    model, source = Fails(random_network()), jobs.MemorySource(x, labels)
    state = jobs.run(model, source, tmp_path / "o", block=5)
    assert state.is_complete
    assert (state.done.failed, state.done.images) == (5, 20)
    assert "failed: 5 images" in state.text()
    rows = table(tmp_path / "o")
    failed = [i for i, status in enumerate(rows["status"]) if status == "failed"]
    assert failed == list(range(5 * block, 5 * block + 5))
    assert rows["label"] == labels.tolist()
    assert "RuntimeError: no such image" in rows["error"][failed[0]]
    before = files(tmp_path / "o")
    jobs.run(model, source, tmp_path / "o", block=5)
    assert files(tmp_path / "o") == before
    calls: list[jobs.JobProgress] = []
    jobs.run(model, source, tmp_path / "o", block=5, retry=True, callback=calls.append)
    assert files(tmp_path / "o") == before
    assert calls[0].finished == 20


def test_a_model_that_always_raises_stops_the_job(
    tmp_path: Path, random_network: Make, random_images: Make
) -> None:
    x = random_images(40)
    x[:, 0] = 1
    source = Bad(x, [])
    with pytest.raises((ValueError, advcore.ModelError), match="no such"):
        jobs.run(Fails(random_network()), source, tmp_path / "o", block=5)
    assert len(source.reads) == 3
    assert jobs.status(tmp_path / "o").blocks_done == 0
    with pytest.raises(ValueError, match="must lie inside bounds"):
        jobs.run(random_network(), 255 * x, tmp_path / "p", block=5)


def test_a_block_without_readable_images_says_nothing_about_the_model(
    tmp_path: Path, random_network: Make, random_images: Make
) -> None:
    x = random_images(20)
    x[:, 0] = 1
    with pytest.raises((ValueError, advcore.ModelError), match="no such"):
        jobs.run(Fails(random_network()), Bad(x, [0, 1, 2, 3]), tmp_path / "o", block=4)
    assert jobs.status(tmp_path / "o").done.failed == 0


def test_a_gpu_that_is_lost_is_no_failure_of_the_other_blocks(
    tmp_path: Path, random_network: Make, random_images: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where torch runs the model there, each further call of the model raises."""
    torch = pytest.importorskip("torch")
    x = random_images(20) * 0.9
    x[11:, 0] = 1
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    answers: list[bool] = []
    monkeypatch.setattr("advcore.jobs.attack.answers", lambda device: bool(answers))
    model = Fails(random_network())
    with pytest.raises(advcore.DeviceError, match=r"the GPU does not answer any more .*no such"):
        jobs.run(model, x, tmp_path / "o", block=5)
    assert jobs.status(tmp_path / "o").done.images == 10
    answers.append(True)
    assert jobs.run(model, x, tmp_path / "o", block=5).done.failed == 10


def test_an_error_of_the_callback_is_no_failure_of_the_model(
    tmp_path: Path, random_network: Make, random_images: Make
) -> None:
    def stop(state: jobs.JobProgress) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        jobs.run(random_network(), random_images(9), tmp_path / "o", callback=stop)
    assert jobs.status(tmp_path / "o").blocks_done == 0


def test_other_models_options_inputs_and_versions_are_refused(
    tmp_path: Path, random_network: Make, random_images: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x = random_network(), random_images(6)
    jobs.run(network, x, tmp_path / "o", block=3)
    before = files(tmp_path / "o")
    for text, model, images, options in (
        ("model hash: .* there, .* now", random_network(seed=9), x, {}),
        ("options effort: default there, fast now", network, x, {"effort": "fast"}),
        ("input images: .* there", network, random_images(6, seed=2), {}),
        ("job block: 3 there, 4 now", network, x, {"block": 4}),
        ("job targets: those of the input there, random now", network, x, {"targets": "random"}),
    ):
        with pytest.raises(jobs.OtherJob, match=text):
            jobs.run(model, images, tmp_path / "o", **{"block": 3} | options)
    monkeypatch.setattr("advcore.fingerprint.__version__", "9.9")
    with pytest.raises(jobs.OtherJob, match=r"code advcore: .* there, 9\.9 now"):
        jobs.run(network, x, tmp_path / "o", block=3)
    assert files(tmp_path / "o") == before


def test_a_folder_with_other_files_is_refused(
    tmp_path: Path, random_network: Make, random_images: Make
) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not empty and holds no job"):
        jobs.run(random_network(), random_images(3), tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no job"):
        jobs.status(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no job"):
        jobs.status(tmp_path / "thesis.tex")
    (tmp_path / "manifest.json").write_text("[1]")
    with pytest.raises(ValueError, match="is damaged"):
        jobs.status(tmp_path)


def test_a_full_disk_stops_clearly_and_loses_nothing(
    tmp_path: Path, random_network: Make, random_images: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x = random_network(), random_images(12)
    real, written = store_module.replacing, []

    def full(path: Path) -> Any:
        written.append(path)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path)

    monkeypatch.setattr(store_module, "replacing", full)
    with pytest.raises(jobs.NotWritten, match="No space left on device; the finished blocks are"):
        jobs.run(network, x, tmp_path / "o", block=3)
    assert jobs.status(tmp_path / "o").blocks_done == 2
    jobs.run(network, x, tmp_path / "o", block=3)
    jobs.run(network, x, tmp_path / "whole", block=3)
    assert files(tmp_path / "o") == files(tmp_path / "whole")


def test_shards_share_a_folder(tmp_path: Path, random_network: Make, random_images: Make) -> None:
    network, x = random_network(), random_images(30)
    for part in (2, 3, 1):
        state = jobs.run(network, x, tmp_path / "o", block=4, shard=f"{part}/3")
        assert state.is_complete == (part == 1)
    jobs.run(network, x, tmp_path / "whole", block=4)
    assert files(tmp_path / "o") == files(tmp_path / "whole")


def test_two_processes_do_not_work_on_the_same(
    tmp_path: Path, random_network: Make, random_images: Make
) -> None:
    network, x = random_network(), random_images(6)
    inner: list[str] = []

    def second(state: jobs.JobProgress) -> None:
        if not inner:
            with pytest.raises(jobs.InUse, match="another process is at work on"):
                jobs.run(network, x, tmp_path / "o")
            inner.append("refused")

    assert jobs.run(network, x, tmp_path / "o", callback=second).is_complete
    assert inner


def test_the_time_limit_is_for_the_whole_job(
    tmp_path: Path, random_network: Make, random_images: Make
) -> None:
    network, x = random_network(sizes=(20, 64, 5), activation="relu"), random_images(4000)
    x = np.tile(x, (50, 1))
    state = jobs.run(network, x, tmp_path / "o", block=2000, time_limit=0.5, threads=1)
    assert not state.is_complete
    tables = [pq.read_table(p) for p in (tmp_path / "o" / "blocks").glob("*.parquet")]
    assert all("interrupted" not in t["status"].to_pylist() for t in tables)


def test_a_block_whose_grid_was_cut_short_is_not_kept(
    tmp_path: Path, random_network: Make, random_images: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x = random_network(), np.rint(random_images(6) * 255).astype(np.float32) / 255
    real = finish.move_to_grid

    def late(*arguments: Any, **settings: Any) -> Any:
        time.sleep(1.0)
        return real(*arguments, **settings)

    monkeypatch.setattr(finish, "move_to_grid", late)
    state = jobs.run(network, x, tmp_path / "o", levels=256, time_limit=0.9)
    assert (state.blocks_done, state.blocks_left) == (0, 1)
    assert jobs.run(network, x, tmp_path / "o", levels=256).is_complete


MEMORY_PROGRAM = """
import re
from pathlib import Path
from advcore import data, jobs
from advcore._arrays import map_array
network, images = data.embedded_network(), map_array("x.npy")
peaks = []
for name, count in (("small", 1000), ("large", 20_000)):
    source = jobs.MemorySource(images[:count], [0] * count)
    assert jobs.run(network, source, name, block=500, threads=1).done.images == count
    status = Path("/proc/self/status").read_text()  # getrusage has the peak of the parent in it
    peaks.append(int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1]) / 1024)
print(peaks[1] - peaks[0])
"""


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """The file has 63 MB. All images have another class than the label, which takes no search."""
    digits, labels = data.embedded_digits()
    ones = digits[labels == 1][:100]
    np.save(tmp_path / "x.npy", np.tile(ones, (200, 1)))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEMORY_PROGRAM],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 20


def test_random_targets_depend_on_the_key_alone(
    tmp_path: Path, random_network: Make, random_images: Make
) -> None:
    network, x = random_network(), random_images(30)
    keys = np.array([f"image {i}" for i in range(30)])
    order = np.random.default_rng(0).permutation(30)
    found = []
    for name, rows in (("a", np.arange(30)), ("b", order)):
        source = jobs.MemorySource(x[rows], keys=keys[rows].tolist())
        jobs.run(network, source, tmp_path / name, block=8, targets="random", seed=3)
        read = table(tmp_path / name)
        values = zip(read["target"], read["distortion"], strict=True)
        found.append(dict(zip(read["key"], values, strict=True)))
    assert found[0] == found[1]
    label = network.forward(x).argmax(1)
    targets = np.array([found[0][key][0] for key in keys])
    assert (targets != label).all()
    assert len(set((targets - label) % 5)) == 4


@pytest.mark.parametrize("spec", ["next-likeliest", "2"])
def test_targets_by_likelihood_and_number(
    tmp_path: Path, random_network: Make, random_images: Make, spec: str
) -> None:
    network, x = random_network(), random_images(10)
    jobs.run(network, x, tmp_path / "o", block=4, targets=spec)
    expected = np.argsort(network.forward(x), axis=1)[:, -2]
    expected = expected if spec != "2" else np.full(10, 2)
    assert table(tmp_path / "o")["target"] == expected.tolist()


def test_warnings_are_those_of_the_first_block(
    tmp_path: Path, random_network: Make, random_images: Make
) -> None:
    network, x = random_network(), random_images(60)
    wrong = (network.forward(x).argmax(1) + 1) % 5
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jobs.run(network, jobs.MemorySource(x, wrong), tmp_path / "o", block=20)
    assert [str(w.message).partition(" images")[0] for w in caught] == ["the model gives 20 of 20"]


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"images": "jpeg"}, ValueError, "images must be one of none, float32, png, got 'jpeg'"),
        ({"images": "png"}, ValueError, 'images="png" needs levels=256, got None'),
        ({"block": 0}, ValueError, "block must be in"),
        ({"shard": "4/3"}, ValueError, "shard must be K/N"),
        ({"effort": "most"}, ValueError, "effort must be one of"),
        ({"efort": "fast"}, TypeError, "efort"),
        ({"callback": 3}, TypeError, "callback must be"),
        ({"targets": "2", "untargeted": True}, ValueError, "targets and untargeted exclude"),
        ({"names": "no.json"}, FileNotFoundError, r"names: no\.json does not exist"),
        ({"targets": "nearest"}, ValueError, "next-likeliest, random, a class's number or name"),
    ],
)
def test_bad_arguments_are_named(
    tmp_path: Path, random_network: Make, random_images: Make, settings: Any, error: Any, text: str
) -> None:
    with pytest.raises(error, match=text):
        jobs.run(random_network(), random_images(3), tmp_path / "o", **settings)


def test_bad_sources_are_named(random_images: Make) -> None:
    x = random_images(3)
    for arguments, text in (
        ((x[0],), "images must have shape"),
        ((x, [1, 2]), r"labels must have shape \(3,\)"),
        ((x, None, None, ["a", "b", "a"]), "keys must be 3 different texts, got 3, 2 of them"),
    ):
        with pytest.raises(ValueError, match=text):
            jobs.MemorySource(*arguments)


def test_a_job_file_runs_in_python(
    tmp_path: Path, random_network: Make, random_images: Make
) -> None:
    random_network().save(tmp_path / "m.safetensors")
    np.save(tmp_path / "x.npy", random_images(9))
    (tmp_path / "j.toml").write_text(
        "model = 'm.safetensors'\noutput = 'o'\nblock = 4\n[input]\nkind = 'arrays'\npath = 'x.npy'"
    )
    assert jobs.run_job(tmp_path / "j.toml", shard="2/2").blocks_left == 0
    state = jobs.run_job(jobs.read_job(tmp_path / "j.toml"))
    assert (state.is_complete, state.blocks) == (True, 3)
    assert table(tmp_path / "o")["key"] == [f"x.npy:{row}" for row in range(9)]
    (tmp_path / "j.toml").write_text("blok = 3")
    with pytest.raises(jobs.JobFileError, match="line 1: blok is unknown"):
        jobs.run_job(tmp_path / "j.toml")


def test_the_status_is_read_from_disk(
    tmp_path: Path, random_network: Make, random_images: Make
) -> None:
    network, x = random_network(), random_images(40)
    jobs.run(network, x, tmp_path / "o", block=10, shard="1/2")
    state = jobs.status(tmp_path / "o")
    assert (state.images, state.blocks, state.blocks_done) == (40, 4, 2)
    assert state.done.images == 20
    assert state.rate is not None
    text = state.text()
    assert text.startswith("20 of 40 images in 2 of 4 blocks\nsuccess: 20 of 20 (100.0%)\n")
    assert "left" in text
    mean = np.mean(pq.read_table(tmp_path / "o" / "blocks")["distortion"])
    assert state.done.distortion / 20 == pytest.approx(mean, rel=1e-6)
    manifest = json.loads((tmp_path / "o" / "manifest.json").read_text())
    assert manifest["job"]["images"] == "40"
