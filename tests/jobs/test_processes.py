"""Jobs: processes that share a folder, and the files in it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq

from advcore import _files, jobs
from advcore.jobs import manifest
from advcore.jobs import store as store_module
from advcore.jobs.locks import lock
from advcore.jobs.plan import Plan
from advcore.jobs.store import Store

Make = Callable[..., Any]


def contents(folder: Path) -> dict[str, bytes]:
    """Blocks, table and manifest of a job."""
    return {path.name: path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}


def test_a_block_that_is_written_again_is_in_the_table_of_another_process(
    tmp_path: Path, random_network: Make, random_images: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one process writes a block again, another one, whose shard has ended, asks for the
    whole table. It must not make it of the former block.
    """
    network, x = random_network(), random_images(8)
    jobs.run(network, x, tmp_path / "o", block=4, images="float32")
    plan = Plan(8, None, 4)
    first, other = Store(tmp_path / "o", plan), Store(tmp_path / "o", plan)
    other.scan()
    rows = pq.read_table(first.path(plan[1]))
    rows = rows.set_column(2, "target", pa.array([7] * 4, pa.int64()))
    threads: list[threading.Thread] = []

    @contextlib.contextmanager
    def slow(path: Path) -> Iterator[Any]:
        if not threads:
            threads.append(threading.Thread(target=other.finish))
            threads[0].start()
            threads[0].join(0.5)
        with _files.replacing(path) as file:
            yield file

    monkeypatch.setattr(store_module, "replacing", slow)
    first.write(plan[1], rows)
    threads[0].join()
    assert (
        pq.read_table(tmp_path / "o" / "table.parquet")["target"].to_pylist()
        == [None] * 4 + [7] * 4
    )


def test_two_other_jobs_do_not_begin_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one waits for the manifest of the first, and finds it at work or gone."""
    folder, threads = tmp_path / "o", []
    found: list[str] = []

    def begin(effort: str) -> None:
        wanted = {"options": {"effort": effort}}
        try:
            manifest.check(folder, wanted)
            with lock(folder / f".lock-{effort}", wait=False):
                manifest.check(folder, wanted)
                found.append(effort)
                if effort == "fast":
                    threads[0].join()
        except (jobs.OtherJob, BlockingIOError):
            found.append("refused")

    def slow(path: Path, text: str) -> None:
        if not threads:
            threads.append(threading.Thread(target=begin, args=("best",)))
            threads[0].start()
            threads[0].join(0.5)
        _files.write_text(path, text)

    monkeypatch.setattr(manifest, "write_text", slow)
    begin("fast")
    threads[0].join()
    (winner,) = (name for name in found if name != "refused")
    assert len(found) == 2
    assert manifest.read(folder) == {"options": {"effort": winner}}


def test_a_job_without_a_block_makes_way_for_another(tmp_path: Path) -> None:
    folder = tmp_path / "o"
    for effort in ("fast", "best"):
        manifest.check(folder, {"options": {"effort": effort}})
        assert manifest.read(folder) == {"options": {"effort": effort}}
    (folder / "blocks").mkdir()
    with lock(folder / ".lock"), pytest.raises(jobs.OtherJob, match="best there, fast now"):
        manifest.check(folder, {"options": {"effort": "fast"}})
    (folder / "blocks" / "block-000000.parquet").touch()
    with pytest.raises(jobs.OtherJob, match="best there, fast now"):
        manifest.check(folder, {"options": {"effort": "fast"}})


def test_a_block_that_is_damaged_later_is_named(
    tmp_path: Path, random_network: Make, random_images: Make
) -> None:
    network, x = random_network(), random_images(8)
    jobs.run(network, x, tmp_path / "o", block=4)
    whole = contents(tmp_path / "o")
    (tmp_path / "o" / "table.parquet").unlink()
    (tmp_path / "o" / ".1.ab.part").write_bytes(b"left by a kill")
    path = tmp_path / "o" / "blocks" / "block-000001.parquet"
    content = bytearray(path.read_bytes())
    content[40] ^= 0xFF  # in the first page
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"block-000001\.parquet is damaged .*delete it") as error:
        jobs.run(network, x, tmp_path / "o", block=4)
    assert "room" not in str(error.value)
    path.unlink()
    jobs.run(network, x, tmp_path / "o", block=4)
    assert contents(tmp_path / "o") == whole
    assert not list((tmp_path / "o").glob("*.part")) + list((tmp_path / "o").glob(".*.part"))


def test_images_of_more_values_than_arrow_counts_in_a_chunk(
    tmp_path: Path, random_network: Make, random_images: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x = random_network(), random_images(7)
    for name in ("whole", "cut"):
        jobs.run(network, x, tmp_path / name, images="float32")
        monkeypatch.setattr("advcore.jobs.table.MOST_VALUES", 3 * x.shape[1] - 1)
    found = [pq.read_table(tmp_path / name / "blocks") for name in ("whole", "cut")]
    assert found[0].equals(found[1])
