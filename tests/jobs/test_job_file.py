"""Job files: what is read, and every mistake with its line and the accepted values."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from support.damage import damaged

from advcore.jobs.inputs import KINDS, InputSpec
from advcore.jobs.job_file import OPTION_KEYS, JobFileError, JobSpec, read_job
from advcore.jobs.key_lines import key_lines
from advcore.jobs.sources import open_source

TOML = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")

GOOD = """
model = "nets/net.onnx"
output = "results"
block = 100
images = "float32"
targets = "random"
shard = "3/8"
names = "names.txt"

[input]
kind = "arrays"
path = "shards/*.npz"
image = "x"
label = "y"
target = "t.npy"
key = "{stem}_keys.npy"

[options]
effort = "fast"
bounds = [
  0,
  255.5,
]
c_init = "auto"
time_limit = 10
"""
SHORT = 'model = "m"\noutput = "out"\n[input]\nkind = "arrays"\npath = "a.npy"\n'


def write(folder: Path, text: str) -> Path:
    (folder / "job.toml").write_text(text)
    return folder / "job.toml"


def errors(folder: Path, text: str) -> list[str]:
    """Return the errors of a job file, without its name."""
    path = write(folder, text)
    with pytest.raises(JobFileError) as caught:
        read_job(path)
    assert str(caught.value) == "\n".join(caught.value.errors)
    start = f"{path}, "
    assert all(error.startswith(start) and "\n" not in error for error in caught.value.errors)
    return [error.removeprefix(start) for error in caught.value.errors]


def test_every_key_is_read(tmp_path: Path) -> None:
    job = read_job(write(tmp_path, GOOD))
    options = job.options
    assert job == JobSpec(
        model=str(tmp_path / "nets/net.onnx"),
        input=InputSpec(
            "arrays", str(tmp_path / "shards/*.npz"), "x", "y", str(tmp_path / "t.npy"),
            "{stem}_keys.npy", scale=False,
        ),
        output=tmp_path / "results", block=100, images="float32", options=options,
        targets="random", shard=(3, 8), names=tmp_path / "names.txt",
    )  # fmt: skip
    assert (options.effort, options.bounds, options.time_limit) == ("fast", (0, 255.5), 10)


def test_defaults(tmp_path: Path) -> None:
    job = read_job(write(tmp_path, SHORT))
    spec = InputSpec("arrays", str(tmp_path / "a.npy"))
    assert job == JobSpec("m", spec, tmp_path / "out", options=job.options)
    assert (job.block, job.images, job.options.levels) == (None, "none", None)


@pytest.mark.parametrize(
    ("model", "read"),
    [
        ("squeezenet1_0", "squeezenet1_0"), ("package.module:build", "package.module:build"),
        ("a/net.safetensors", "FOLDER/a/net.safetensors"), ("m.py:build", "FOLDER/m.py:build"),
        ("/b/net.pt2", "/b/net.pt2"),
    ],
)  # fmt: skip
def test_models_that_are_files_are_beside_the_job(tmp_path: Path, model: str, read: str) -> None:
    job = read_job(write(tmp_path, SHORT.replace('"m"', f'"{model}"')))
    assert job.model == read.replace("FOLDER", str(tmp_path))


def test_pictures_have_256_levels(tmp_path: Path) -> None:
    text = SHORT.replace("arrays", "pictures").replace("a.npy", "pics")
    job = read_job(write(tmp_path, text + "size = 64\nlabel = 'folders'"))
    assert job.options.levels == 256
    assert job.input == InputSpec(
        "pictures", str(tmp_path / "pics"), label="folders", size=64, leave_out=tmp_path / "out"
    )
    assert errors(tmp_path, text + "[options]\nlevels = 8\nbounds = [0, 2]") == [
        "line 7: options.levels must be 256 for pictures, got 8",
        "line 8: options.bounds must be [0, 1] for pictures, got (0.0, 2.0)",
    ]


def test_a_data_set_is_a_folder_or_a_name(tmp_path: Path) -> None:
    text = SHORT.replace("arrays", "dataset").replace("a.npy", "mnist")
    path = write(tmp_path, text + 'split = "test"\nconfig = "c"\nshape = [1, 2]')
    expected = InputSpec("dataset", "mnist", split="test", config="c", shape=(1, 2))
    assert read_job(path).input == expected
    (tmp_path / "mnist").mkdir()
    assert read_job(path).input.path == str(tmp_path / "mnist")


def test_the_input_that_was_read_can_be_opened(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((4, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", images)
    np.save(tmp_path / "y.npy", np.arange(4))
    source = open_source(read_job(write(tmp_path, SHORT + 'label = "y.npy"')).input, None)
    got = source.read(1, 3)
    np.testing.assert_array_equal(got.images, images[1:3])
    np.testing.assert_array_equal(got.labels, [1, 2])


@pytest.mark.parametrize(
    ("bounds", "factor"), [("", 255), ("bounds = [0, 1]", 255), ("bounds = [0, 255]", 1)]
)
def test_bytes_are_scaled_to_the_bounds(tmp_path: Path, bounds: str, factor: int) -> None:
    images = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.save(tmp_path / "a.npy", images)
    job = read_job(write(tmp_path, f"{SHORT}[options]\n{bounds}"))
    got = open_source(job.input, None).read(0, 2)
    np.testing.assert_array_equal(got.images, images.astype(np.float32) / np.float32(factor))


@pytest.mark.parametrize("value", ['"2/5"', "[2, 5]"])
def test_forms_of_a_shard(tmp_path: Path, value: str) -> None:
    assert read_job(write(tmp_path, f"shard = {value}\n{SHORT}")).shard == (2, 5)


@pytest.mark.parametrize(
    ("value", "read"), [("7", "7"), ('"7"', "7"), ('"tiger cat"', "tiger cat")]
)
def test_forms_of_targets(tmp_path: Path, value: str, read: str) -> None:
    assert read_job(write(tmp_path, f"targets = {value}\n{SHORT}")).targets == read


TOP = "there are model, output, input, options, block, images, targets, untargeted, shard, names"
COLUMN = "the name of a column or array, or a .npy file"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("blok = 3", f"blok is unknown, the nearest is block; {TOP}"),
        ("block = 0", "block must be an integer >= 1, got 0"),
        ("block = true", "block must be an integer >= 1, got True"),
        ('images = "jpg"', 'images must be "none" or "float32" or "png", got \'jpg\''),
        ('images = "png"', 'images = "png" needs options.levels = 256, got none'),
        ("targets = -1",
         'targets must be "next-likeliest", "random", or a number or name of a class, got -1'),
        ("untargeted = 1", "untargeted must be true or false, got 1"),
        ("shard = '9/8'", 'shard must be "K/N" with 1 <= K <= N, as in "3/8", got \'9/8\''),
        ("shard = '0/8'", 'shard must be "K/N" with 1 <= K <= N, as in "3/8", got \'0/8\''),
        ("shard = [1, 2, 3]", 'shard must be "K/N" with 1 <= K <= N, as in "3/8", got [1, 2, 3]'),
        ("shard = 3", 'shard must be "K/N" with 1 <= K <= N, as in "3/8", got 3'),
        ("names = ''", "names must be the path of a file, got ''"),
        ("options = 3", "options must be a table [options], got 3"),
        (f"names = {list(range(30))}",
         "names must be the path of a file, got "
         "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 1..."),
    ],
)  # fmt: skip
def test_mistakes_of_the_job(tmp_path: Path, line: str, error: str) -> None:
    assert errors(tmp_path, f"\n# a comment\n{line}\n{SHORT}") == [f"line 3: {error}"]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("size = 3",
         'size is not for kind "arrays", which has kind, path, image, label, target, key'),
        ("lable = 'y'",
         "lable is unknown, the nearest is label; there are kind, path, image, label, target, key"),
        ("target = 3", f"target must be {COLUMN}, got 3"),
        ("key = ['a']", f"key must be {COLUMN}, got ['a']"),
    ],
)  # fmt: skip
def test_mistakes_of_the_input(tmp_path: Path, line: str, error: str) -> None:
    assert errors(tmp_path, f"{SHORT}\n{line}\n") == [f"line 7: input.{error}"]


def test_shapes_and_sizes(tmp_path: Path) -> None:
    text = SHORT.replace("arrays", "parquet")
    assert errors(tmp_path, text + "shape = [3, 0]\nsize = '3'") == [
        "line 6: input.shape must be a list of integers >= 1, as in [3, 224, 224], got [3, 0]",
        "line 7: input.size must be an integer >= 1, got '3'",
    ]


def test_an_unknown_kind(tmp_path: Path) -> None:
    assert errors(tmp_path, SHORT.replace("arrays", "array") + "size = 3") == [
        'line 4: input.kind must be "pictures" or "arrays" or "parquet" or "dataset", got \'array\''
    ]


@pytest.mark.parametrize(
    ("name", "value", "accepts"),
    [
        ("effort", "'quick'", '"fast", "default", "thorough", "exhaustive"'),
        ("loss", "3", '"margin", "cross_entropy"'),
        ("bounds", "[0]", "two numbers lower < upper, as in [0, 255]"),
        ("bounds", "[1, 0]", "two numbers lower < upper, as in [0, 255]"),
        ("bounds", "['a', 'b']", "two numbers lower < upper, as in [0, 255]"),
        ("history", "9", "integer, 3 to 8"),
        ("history", "3.5", "integer, 3 to 8"),
        ("tolerance", "0", "number > 0 and <= 0.5"),
        ("tolerance", "true", "number > 0 and <= 0.5"),
        ("time_limit", "nan", "number > 0"),
        ("c_init", "'none'", '"auto", or number >= 1e-30 and <= 1e+30'),
    ],
)
def test_mistakes_of_options(tmp_path: Path, name: str, value: str, accepts: str) -> None:
    found = errors(tmp_path, f"{SHORT}[options]\n{name} = {value}\n")
    quoted = {"true": "True"}.get(value, value)
    assert found == [f"line 7: options.{name} must be {accepts}, got {quoted}"]


def test_unknown_options(tmp_path: Path) -> None:
    known = ", ".join(OPTION_KEYS)
    assert "callback" not in known
    assert errors(tmp_path, f"{SHORT}[options]\nmax_evals = 3\noptions.callback = 1") == [
        f"line 7: options.max_evals is unknown, the nearest is max_evaluations; there are {known}",
        f"line 8: options.options is unknown; there are {known}",
    ]


def test_what_is_missing(tmp_path: Path) -> None:
    assert errors(tmp_path, "block = 3\n[input]\nimage = 'x'\n") == [
        "line 1: model is missing, expected a text, as advcore attack --model takes it",
        "line 1: output is missing, expected the path of a folder",
        'line 2: input.kind is missing, expected "pictures" or "arrays" or "parquet" or "dataset"',
        "line 2: input.path is missing, expected the path of a file or folder, or a pattern",
    ]
    assert errors(tmp_path, "")[-1] == "line 1: input is missing, expected a table [input]"


def test_all_mistakes_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = GOOD.replace("100", "0").replace("arrays", "array").replace("fast", "slow")
    text = text.replace("shard =", "untargeted = true\nshards =") + "levels = 1\n"
    lines = [int(error.split()[1].rstrip(":")) for error in errors(tmp_path, text)]
    assert lines == [4, 7, 8, 12, 20, 27]


def test_files_that_are_no_toml(tmp_path: Path) -> None:
    for text, error in (
        ("a = 1\nb = \n", "line 2: expected TOML, got an error: Invalid value"),
        ("a = 1\na = 2\n", "line 2: expected TOML, got an error: Cannot overwrite a value"),
        ('a = 1\nb = """\nx\n', "line 4: expected TOML, got an error: Unterminated string"),
    ):
        assert errors(tmp_path, text) == [error]
    (tmp_path / "job.toml").write_bytes(b"a = 1\nb = '\xff'")
    with pytest.raises(JobFileError, match=r"line 2: byte 0xff is not UTF-8"):
        read_job(tmp_path / "job.toml")
    with pytest.raises(FileNotFoundError, match=r"nowhere.toml does not exist"):
        read_job(tmp_path / "nowhere.toml")


def test_errors_can_be_pickled(tmp_path: Path) -> None:
    error = JobFileError(["a", "b"])
    assert pickle.loads(pickle.dumps(error)).errors == ["a", "b"]


def test_damaged_job_files_are_refused_or_read(tmp_path: Path) -> None:
    path, refused = tmp_path / "job.toml", 0
    for content in damaged(GOOD.encode(), 500):
        path.write_bytes(content)
        try:
            assert isinstance(read_job(path), JobSpec)
        except JobFileError:
            refused += 1
    assert refused > 300


def test_lines_of_keys() -> None:
    text = """# comment
a = 1
b.c = {d = 1, "e f" = 2}
s = '''
[not.a.table]
x = 1'''

[t]   # comment
l = [
  1, # [u]
  2,
]
[t.u]
a = 2
[[v]]
w = 1
[[v]]
w = 2"""
    lines = key_lines(text, TOML.loads)
    assert lines == {
        ("a",): 2, ("b",): 3, ("b", "c"): 3, ("b", "c", "d"): 3, ("b", "c", "e f"): 3, ("s",): 4,
        ("t",): 8, ("t", "l"): 9, ("t", "u"): 13, ("t", "u", "a"): 14, ("v",): 15, ("v", "w"): 16,
    }  # fmt: skip


def test_each_field_of_an_input_is_for_some_kind() -> None:
    named = {name for names in KINDS.values() for name in names}
    assert named | {"kind", "path", "scale", "leave_out"} == set(InputSpec.__dataclass_fields__)
