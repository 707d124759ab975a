"""Figures, pages and comparisons of the benchmarks, on arrays small enough to check by hand."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.native_build import Build

import advcore
from advcore import data

torch = pytest.importorskip("torch")
bench = importlib.import_module("bench_optimality")
envelope = importlib.import_module("harness.envelope")
bench_host = importlib.import_module("bench_host")
bench_limits = importlib.import_module("bench_limits")
bench_speed = importlib.import_module("bench_speed")
compare_builds = importlib.import_module("compare_builds")
machine = importlib.import_module("harness.machine")
networks = importlib.import_module("harness.networks")
make_pages = importlib.import_module("make_pages")
profiles = importlib.import_module("pages.profiles")
rivals = importlib.import_module("harness.rivals")
speed_engine = importlib.import_module("harness.speed_engine")
speed_page = importlib.import_module("pages.speed")
gpu_page = importlib.import_module("pages.gpu")
sweep_rivals = importlib.import_module("sweep_rivals")

RESULTS = Path(bench_speed.__file__).parent / "results"


@pytest.fixture(scope="module")
def digits() -> Any:
    """Six digits on the network of the package; the wanted classes are random."""
    model = data.embedded_network().to_torch().eval().requires_grad_(False)
    images, labels = data.embedded_digits()
    targets = data.random_targets(labels[:6], classes=10, seed=0)
    return networks.Case("embedded", model, images[:6], targets, targeted=True)


def test_help_of_the_limits_needs_no_data(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(data, "mnist", None)
    monkeypatch.setattr(sys, "argv", ["bench_limits.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        bench_limits.main()
    assert stop.value.code == 0
    assert "unreachable" in capsys.readouterr().out


def test_both_forms_of_the_passes_over_images_agree(capsys: Any, monkeypatch: Any) -> None:
    size = ["--images", "2050", "--values", "37"]
    bench_host.main(size)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        "images", "results", "which", "distances", "rows", "all"
    ]  # fmt: skip
    assert float(lines[-1].split()[1]) > 0
    monkeypatch.setattr(bench_host, "distances", lambda x, clean, threads=1: np.ones(len(x)))
    with pytest.raises(SystemExit, match="distances: the two forms disagree"):
        bench_host.main(size)


def test_figures_against_the_envelope():
    best = np.array([1.0, 2.0, 4.0, np.inf])
    row = bench.Row(np.array([1.0, 2.002, np.inf, 3.0]), 7.0, 2.0, {"p99_evaluations": 9.0})
    f = bench.figures(row, best)
    assert f["success"] == 0.75
    assert f["mean"] == pytest.approx(6.002 / 3)
    assert f["median"] == 2.002
    assert f["mean_over_envelope"] == pytest.approx(3.002 / 3)
    assert f["mean_ratio"] == pytest.approx(1.0005)
    assert f["largest_ratio"] == pytest.approx(1.001)
    assert f["within_0.1%"] == pytest.approx(2 / 3)
    assert f["more_than_1%_above"] == pytest.approx(1 / 3)  # the one that it missed
    assert f["found_by_no_rival"] == 0.25
    assert (f["evaluations"], f["forwards"], f["p99_evaluations"]) == (7.0, 2.0, 9.0)
    assert "1.0005" in bench.table({"x": f})


def test_ours_alone_against_the_stored_envelope(digits, monkeypatch):
    two = dataclasses.replace(digits, images=digits.images[:2])
    monkeypatch.setattr(networks, "case", lambda name, *, targeted, images: two)
    own = {"advcore fast": bench.Row(np.array([2.0, 4.0]), 7.0, 2.0, {})}
    monkeypatch.setattr(bench, "our_rows", lambda case: own)
    rivals_stored = {"FMN-1000": {"mean": 2.5}, "envelope": {"mean": 2.4, "success": 1.0}}
    stored = {
        "images": 2,
        "attacks": rivals_stored | {"advcore fast": {"mean": 9.0, "mean_ratio": 4.0}},
        "profiles": {"advcore fast": [0.5]},
    }
    out = bench.measure_ours("embedded", True, stored)
    fast = out["attacks"].pop("advcore fast")
    assert out["attacks"] == rivals_stored
    assert fast["mean_over_envelope"] == pytest.approx(3.0 / 2.4)
    assert "mean_ratio" not in fast  # of images whose envelope is not stored
    assert "profiles" not in out


def test_figures_of_an_attack_that_found_nothing():
    f = bench.figures(bench.Row(np.full(2, np.inf), 1.0, 0.0, {}), np.array([1.0, np.inf]))
    assert f["success"] == 0
    assert f["more_than_1%_above"] == 1
    assert "mean" not in f
    assert "-" in bench.table({"x": f})


def test_sweep_prefers_success_then_the_mean_with_misses_at_the_worst_distance():
    d = [np.array([1.0, np.inf, 1.0]), np.array([2.0, 9.0, 2.0]), np.array([2.0, 3.0, 2.0])]
    rows = sweep_rivals.rank_settings([{"a": 0}, {"a": 1}, {"a": 2}], d)
    assert [row["settings"]["a"] for row in rows] == [2, 1, 0]
    assert rows[2]["mean"] == pytest.approx(11 / 3)


def test_profile_is_the_share_within_a_factor():
    best = np.array([1.0, 1.0, 1.0, np.inf])
    share = profiles.profile(np.array([1.0, 1.05, np.inf, np.inf]), best, np.array([0.01, 0.1]))
    assert share == pytest.approx([1 / 3, 2 / 3])


def test_distances_are_infinite_where_the_forward_does_not_confirm():
    model = torch.nn.Linear(2, 2, bias=False).requires_grad_(False)
    model.weight.copy_(torch.eye(2))
    clean = np.array([[0.5, 0.25], [0.5, 0.25]], np.float32)
    found = np.array([[0.5, 0.75], [0.5, 0.25]], np.float32)
    wanted = networks.Case("x", model, clean, np.array([1, 1]), targeted=True)
    assert envelope.distances(wanted, found).tolist() == [0.5, np.inf]
    labels = networks.Case("x", model, clean, np.array([0, 0]), targeted=False)
    assert envelope.distances(labels, found).tolist() == [0.5, np.inf]


def test_verified_refuses_what_is_not_as_claimed():
    model = torch.nn.Linear(2, 2, bias=False).requires_grad_(False)
    model.weight.copy_(torch.eye(2))
    clean = np.array([[0.5, 0.25], [0.5, 0.25]], np.float32)
    case = networks.Case("x", model, clean, np.array([1, 1]), targeted=True)
    found = np.array([[0.5, 0.75], [0.5, 0.25]], np.float32)
    assert speed_engine.check_distances(case, found).tolist() == [0.5, np.inf]
    assert speed_engine.check_distances(case, found, np.array([0.5, np.inf])).tolist() == [
        0.5,
        np.inf,
    ]
    with pytest.raises(ValueError, match=r"image 0: 0\.4 claimed"):
        speed_engine.check_distances(case, found, np.array([0.4, np.inf]))
    with pytest.raises(ValueError, match=r"image 1: 0\.1 claimed, inf found"):
        speed_engine.check_distances(case, found, np.array([0.5, 0.1]))
    rounded = found + np.float32(2**-21) * (found == 0.75)
    assert np.isfinite(speed_engine.check_distances(case, rounded)[0])
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        speed_engine.check_distances(case, found + np.float32(0.3))


def test_row_compares_the_images_that_both_found():
    model = torch.nn.Linear(2, 2, bias=False).requires_grad_(False)
    model.weight.copy_(torch.eye(2))
    clean = np.tile(np.array([0.5, 0.25], np.float32), (3, 1))
    case = networks.Case("x", model, clean, np.ones(3, np.int64), targeted=True)
    found = np.array([[0.5, 0.75], [0.5, 0.25], [0.5, 0.75]], np.float32)
    run = bench_speed.Run(found, None, [8.0, 6.0, 10.0], 5.0, 1.0, {"batch": 3})
    row = bench_speed.row(case, run, [2.0, 1.0, 4.0], np.array([0.25, 0.25, 0.25]))
    assert row["ratio"] == {"median": 4.0, "min": 1.5, "max": 10.0}
    assert (row["success"], row["mean_over_ours"]) == (pytest.approx(2 / 3), 2.0)
    assert (row["images"], row["batch"], row["as_good"]) == (3, 3, False)
    few = dataclasses.replace(run, adversarial=found[:1])
    assert bench_speed.row(case, few, [2.0], np.array([0.5, 0.1, 0.1]))["as_good"]
    assert not bench_speed.row(case, few, [2.0], np.array([0.49, 0.1, 0.1]))["as_good"]


def test_engine_parts_of_the_speed_benchmark(digits):
    many = speed_engine.repeat_digits(digits, 15)
    assert [len(np.unique(many.images[k : k + 6], axis=0)) for k in (0, 6)] == [6, 6]
    labels = digits.model(torch.from_numpy(many.images)).argmax(dim=1).numpy()
    assert (many.classes != labels).all()
    assert len(many.classes) == 15
    latency = speed_engine.latency(digits, threads=1, calls=2)
    assert len(latency) == 3
    assert "speedup" not in speed_engine.scaling(digits, threads=1, repeats=1)
    both = speed_engine.scaling(digits, threads=2, repeats=1)
    assert both["speedup"]["median"] == both["one"]["median"] / both["all"]["median"]
    network = advcore.Network.from_torch(digits.model, (784,))
    *rates, flops = speed_engine.solve_rates(digits, network, repeats=2)
    assert [len(each) for each in rates] == [2, 2]
    result = speed_engine.attack(digits, threads=1)
    weights = 784 * 100 + 100 * 100 + 100 * 10
    rows = 2 * result.evaluations.sum() + result.forwards.sum()
    assert flops == pytest.approx(2 * weights * rows / 6)


@pytest.mark.slow
def test_throughput_is_that_of_checked_results_in_fresh_processes(digits):
    small, large = speed_engine.throughput(digits, [4, 8], threads=1, seconds=0)
    assert (small["images"], large["images"]) == (4, 8)
    assert (small["success"], large["success"]) == (1, 1)
    wanted = speed_engine.repeat_digits(digits, 8)
    expected = speed_engine.attack(wanted, threads=1).distortion.mean()
    assert large["mean_distortion"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_loops_of_the_speed_benchmark_return_what_the_reference_returns(digits):
    pytest.importorskip("scipy")
    loops = importlib.import_module("harness.speed_loops")
    few = bench_speed.take_first(digits, 3)
    for oracle in ("numpy", "torch"):
        solved = loops.run(loops.Loop(oracle, {"steps": 3, "ftol": 1e-4}), few, processes=2)
        model = data.embedded_network() if oracle == "numpy" else few.model
        expected = advcore.reference.minimize_distortion(
            model, few.images, few.classes, steps=3, ftol=1e-4
        )
        assert solved.distortion == pytest.approx(expected.minimum_distortion(), rel=1e-3)
        assert solved.adversarial == pytest.approx(expected.adversarial, abs=1e-2)
        assert (solved.seconds > 0).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:adv_lib", "ignore:distutils")
def test_rivals_of_the_speed_benchmark(digits):
    if not rivals.is_installed():
        pytest.skip("adv-lib is not installed")
    brief = {name: {**rivals.RIVALS[name].default, "steps": 40} for name in ("DDN-100", "PDGD-500")}
    runs = {
        name: lambda name=name, s=s: bench_speed.rival_run(digits, name, s, batch=4)
        for name, s in brief.items()
    }
    rows = bench_speed.compare(digits, runs, threads=1)
    assert list(rows) == ["advcore", "DDN-100", "PDGD-500"]
    assert rows["advcore"]["mean_over_ours"] == 1
    for name in brief:
        assert (rows[name]["evaluations"], rows[name]["forwards"]) == (40, 0)
        assert rows[name]["success"] == 1
        assert 0.9 < rows[name]["mean_over_ours"] < 5  # PDGD is far away after 40 steps
    assert list(bench_speed.batch_times(digits, "DDN-100", brief["DDN-100"])) == [6]
    assert "DDN-100" not in rivals.names(targeted=True, convolutional=False)


@pytest.mark.slow
def test_propagation_beside_the_peak(digits, release: Build):
    program = release.folder / "propagation"
    figures = speed_engine.propagation(program, digits, repeats=1, seconds=0.05)
    assert figures["widths"] == [784, 100, 100, 10]
    for share in (figures["both"], figures["call"]["median"], figures["engine"]["median"]):
        assert share > 0


@pytest.mark.parametrize("name", make_pages.PAGES)
def test_pages_are_what_the_stored_figures_say(name):
    if missing := make_pages.missing_figures(name):
        pytest.skip(f"not stored: {', '.join(missing)}")
    for path, text in make_pages.PAGES[name].files().items():
        assert path.read_text() == text, path.name


def test_a_page_without_figures_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    with pytest.raises(SystemExit):
        make_pages.main(["optimality"])
    assert "bench_optimality_targeted, bench_optimality_untargeted" in capsys.readouterr().err
    make_pages.main([])  # nothing is stored, so nothing is written
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit):
        make_pages.main(["kernels"])
    assert "unknown page 'kernels'" in capsys.readouterr().err


def test_page_names_targets_met_missed_and_not_measured():
    stored = json.loads((RESULTS / "bench_speed.json").read_text())
    stored |= {"rates": [], "rivals": None, "threads": 1}
    rows = stored["competitors"] = {
        name: row
        for name, row in stored["competitors"].items()
        if name == "advcore" or name.startswith("SciPy")
    }
    stored["scaling_more"] = stored["scaling"] = {
        "images": 9,
        "threads": 1,
        "one": {"median": 0.2, "min": 0.1, "max": 0.5},
    }
    rows["SciPy loop, NumPy"]["ratio"] = {"median": 499.0, "min": 1.0, "max": 999.0}
    targets = {wanted: (shown, met) for wanted, shown, met in speed_page.targets(stored)}
    loop = "at least 500 times as fast as the SciPy loop through NumPy"
    assert targets[loop] == ("499 (1.00 to 999)", False)
    assert targets["at most 0.3 ms an image on one thread"] == ("0.200 ms (0.100 to 0.500)", True)
    assert targets["at least 10 times as fast as DDN-100"] == ("-", None)
    text = speed_page.page(stored)
    assert f"| {loop} | 499 (1.00 to 999) | **missed** |" in text
    assert "| not measured |" in text
    assert "adv-lib was not installed" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.26932, "0.269"), (99.96, "100"), (1.1027, "1.10"), (31.97, "32.0"), (6411.2, "6,411")],
)
def test_numbers_of_the_page_have_three_digits(value, text):
    assert speed_page.number(value) == text
    assert math.isclose(float(text.replace(",", "")), value, rel_tol=5e-3)


def gpu_figures() -> dict[str, Any]:
    run = {"images": 90000, "success": 1.0, "mean_distortion": 1.2, "evaluations": 20.5}
    whole = {**run, "seconds": 0.25, "round_seconds": 0.1, "share_of_bound": 0.4}
    return {
        "device": "GPU", "torch": "2.11", "network": "fc100_100_10", "images": "MNIST test images",
        "copy_TB_s": 4.3, "every_target": whole,
        "one_target": {**run, "images": 10000, "seconds": 0.06},
        "agreement": {
            "images": 10000, "threads": 16, "cpu_seconds": 0.6, "same_success": 1.0,
            "same_status": 0.99, "within_1e-3": 0.97, "mean_ratio": 1.0001,
        },
        "torch_path": {**run, "seconds": 0.6},
        "slots": {"1024": whole, "4096": whole},
        "precision": {"ieee": whole, "tf32x3": run | {"seconds": 0.2}},
        "PDGD-500": {**run, "seconds": 20.0, "mean_distortion": 1.25},
        "DDN-1000": {**run, "seconds": 40.0, "mean_distortion": 1.19},
        "ALMA-1000": {"failed": "no memory"},
    }  # fmt: skip


def test_the_page_of_the_gpu_says_what_was_measured() -> None:
    text = gpu_page.section(gpu_figures())
    for line in (
        "| advcore | 0.250 | 1.0 | 100.00% | 1.2000 |",
        "| PDGD-500 | 20.000 | 80.0 | 100.00% | 1.2500 |",
        "| ALMA-1000 | failed |  |  |  |",
        "| 90,000 problems in 0.3 s | 0.250 s | yes |",
        "| 50% of the bound of memory | 40%, 0.100 s of rounds | no |",
        "| 100 times the fastest attack | 80 times | no |",
        "| a lower mean distortion than any | 1.0084 of the best | no |",
        "| 10,000 problems in 50 ms once warm | 60 ms | no |",
    ):
        assert line in text.splitlines(), text
    assert "10.0 times as fast" in text
    assert "10.0 times the time" in text


def test_the_page_of_the_gpu_has_the_pictures_alone_too() -> None:
    measured = {
        "images": 64, "side": 224, "seconds": 3.25, "evaluations": 60.5, "success": 1.0,
    }  # fmt: skip
    line = (
        "ResNet-50, 64 random pictures of side 224, untargeted, with the effort fast: 3.25 s, "
        "60.5 evaluations an image, success for 100.0%."
    )
    stored = gpu_figures()
    assert line in gpu_page.section({**stored, "resnet50": measured}).splitlines()
    for name in ("every_target", "one_target", "agreement"):
        del stored[name]
    assert line in gpu_page.section({**stored, "resnet50": measured}).splitlines()


def test_the_page_without_a_gpu_claims_nothing() -> None:
    text = gpu_page.section(None)
    assert "Not measured" in text
    assert not any(character.isdigit() for character in text)


def test_the_section_on_gpus_is_made_without_the_rest_of_the_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = gpu_page.PAGE.read_text()
    figures = {"bench_gpu": gpu_figures()}
    monkeypatch.setattr(gpu_page, "load", lambda name="bench_gpu": figures.get(name))
    (text,) = gpu_page.files().values()
    before = page.partition("## On a GPU")[0]
    assert text == f"{before}{gpu_page.section(gpu_figures())}\n"


def test_a_part_that_failed_leaves_the_others() -> None:
    stored = gpu_figures()
    for name in ("every_target", "one_target", "agreement", "precision"):
        text = gpu_page.section({**stored, name: {"failed": "x"}})
        assert "| PDGD-500 | 20.000 |" in text


def test_differences_between_two_results_are_counted_bit_by_bit() -> None:
    first = {
        "engine path": np.array("native"),
        "adversarial": np.zeros((3, 2), np.float32),
        "success": np.array([True, True, False]),
        "c": np.array([1.0, np.nan, 2.0]),
    }
    assert compare_builds.differences(first, {name: a.copy() for name, a in first.items()}) == []
    second = {
        "engine path": np.array("torch"),
        "adversarial": np.array([[0, 0], [0, -0.0], [0.5, 0]], np.float32),
        "success": np.array([True, True, False]),
        "c": first["c"].astype(np.float32),
        "rescues": np.zeros(3, np.int32),
    }
    assert compare_builds.differences(first, second) == [
        "rescues in one only",
        "engine path: native and torch",
        "adversarial: 2 of 3 images, by up to 0.5",
        "c: float64 (3,) and float32 (3,)",
    ]


@pytest.mark.slow
def test_a_build_gives_the_same_as_itself(capfd: pytest.CaptureFixture[str]) -> None:
    cases = "dense fast,torch one linear"
    status = compare_builds.main([sys.executable, sys.executable, "--runs", "1", "--cases", cases])
    out = capfd.readouterr().out
    assert status == 0, out
    assert "2 of 2 cases identical" in out
