"""Merges of safetensors files, read and written by their documented header alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoexp.backends import merge as merger
from autoexp.backends.merge import main, merge
from autoexp.config.experiment import Experiment
from autoexp.planning.plan import make_plan

Arrays = dict[str, tuple[str, Any]]
"""Tensors by name, each with its type in the format's words."""


def bfloat(values: Any) -> Any:
    """The bits of numbers that a bfloat16 holds exactly."""
    return (np.asarray(values, "<f4").view("<u4") >> 16).astype("<u2")


def written(file: Path, arrays: Arrays, **metadata: str) -> Path:
    """A safetensors file."""
    header: dict[str, Any] = {"__metadata__": metadata}
    body = b""
    for name, (kind, array) in arrays.items():
        raw = np.ascontiguousarray(array).tobytes()
        offsets = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        body += raw
    text = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return file


def read(file: Path) -> dict[str, Any]:
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8"}
    found = {}
    for name, entry in json.loads(raw[8 : 8 + length]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            part = raw[8 + length + begin : 8 + length + end]
            found[name] = np.frombuffer(part, kinds[entry["dtype"]]).reshape(entry["shape"])
    return found


def checkpoint(folder: Path, scale: float, *, step: int = 0) -> Path:
    """A checkpoint of the Trainer with tensors of several types."""
    base = np.arange(6, dtype=np.float64).reshape(2, 3)
    arrays: Arrays = {
        "double": ("F64", base * scale),
        "single": ("F32", (base * scale).astype("<f4")),
        "half": ("F16", (base * scale).astype("<f2")),
        "brain": ("BF16", bfloat(base * scale)),
        "steps": ("I64", np.array([step])),
    }
    written(folder / "model.safetensors", arrays, format="pt")
    (folder / "config.json").write_text(json.dumps({"scale": scale}))
    (folder / "optimizer.pt").write_text("not for others")
    (folder / "trainer_state.json").write_text("{}")
    return folder


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return [
        checkpoint(tmp_path / f"checkpoint-{n}", float(2**n), step=n)
        for n in range(3)
    ]  # fmt: skip


def test_the_sum_has_the_weights_types_and_configuration_of_the_last_checkpoint(
    three: list[Path], tmp_path: Path
) -> None:
    assert merge(three, [0.5, 0.25, 0.25], tmp_path / "merged") == 1
    found = read(tmp_path / "merged" / "model.safetensors")
    wanted = np.arange(6).reshape(2, 3) * (0.5 + 0.5 + 1.0)
    for name in ("double", "single", "half"):
        np.testing.assert_array_equal(found[name], wanted)
    np.testing.assert_array_equal(found["brain"], bfloat(wanted))
    assert found["steps"].tolist() == [2]
    raw = [(each / "model.safetensors").read_bytes() for each in (three[-1], tmp_path / "merged")]
    length = 8 + int.from_bytes(raw[0][:8], "little")
    assert raw[0][:length] == raw[1][:length] and len(raw[0]) == len(raw[1])
    assert json.loads((tmp_path / "merged" / "config.json").read_text()) == {"scale": 4.0}
    record = json.loads((tmp_path / "merged" / "merged.json").read_text())
    assert [weight for _, weight in record["merged"]] == [0.5, 0.25, 0.25]
    assert sorted(file.name for file in (tmp_path / "merged").iterdir()) == [
        "config.json",
        "merged.json",
        "model.safetensors",
    ]


def test_a_large_tensor_is_summed_in_parts(
    three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(three, [0.5, 0.25, 0.25], tmp_path / "whole")
    monkeypatch.setattr(merger, "_CHUNK", 4)
    merge(three, [0.5, 0.25, 0.25], tmp_path / "parts")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


def test_a_sum_is_rounded_to_the_nearest_bfloat_and_to_even_between_two(tmp_path: Path) -> None:
    # 1 + 2**-7 is the next one behind 1; their middle goes down to even, a bit more goes up.
    for name, values in {
        "a": [1.0, 1.0, np.nan, np.inf],
        "b": [1 + 2**-7] * 2 + [1.0, 1.0],
    }.items():
        written(tmp_path / name / "model.safetensors", {"x": ("BF16", bfloat(values))})
    merge([tmp_path / "a", tmp_path / "b"], [0.5, 0.5], tmp_path / "even")
    merge([tmp_path / "a", tmp_path / "b"], [0.25, 0.75], tmp_path / "up")
    even, up = (read(tmp_path / name / "model.safetensors")["x"] for name in ("even", "up"))
    values = [(each.astype("<u4") << 16).view("<f4").tolist() for each in (even, up)]
    assert values[0][0] == 1.0 and values[1][0] == 1 + 2**-7
    assert np.isnan(values[0][2]) and values[0][3] == np.inf


def test_shards_may_be_cut_otherwise_in_each_checkpoint(tmp_path: Path) -> None:
    one, two = ("F32", np.ones((2, 2), "<f4")), ("F32", np.full(3, 5.0, "<f4"))
    written(tmp_path / "a" / "model.safetensors", {"one": one, "two": two})
    written(tmp_path / "b" / "model-00001-of-00002.safetensors", {"two": two})
    written(tmp_path / "b" / "model-00002-of-00002.safetensors", {"one": one})
    (tmp_path / "b" / "model.safetensors.index.json").write_text("{}")
    assert merge([tmp_path / "a", tmp_path / "b"], [0.5, 0.5], tmp_path / "merged") == 2
    assert list(read(tmp_path / "merged" / "model-00001-of-00002.safetensors")) == ["two"]
    assert (tmp_path / "merged" / "model.safetensors.index.json").exists()


def test_a_merge_that_was_killed_is_made_anew_and_one_that_is_there_stays(
    three: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "merged.partial").mkdir()
    (tmp_path / "merged.partial" / "torn.safetensors").write_text("half")
    merge(three, [0.5, 0.25, 0.25], tmp_path / "merged")
    assert not (tmp_path / "merged" / "torn.safetensors").exists()
    (tmp_path / "merged" / "config.json").write_text("mine")
    merge(three, [0.5, 0.25, 0.25], tmp_path / "merged")
    assert (tmp_path / "merged" / "config.json").read_text() == "mine"


ONE: Arrays = {"x": ("F32", np.ones(4, "<f4"))}


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"y": ("F32", np.ones(4, "<f4"))}, "x is not in all checkpoints"),
        ({"x": ("F32", np.ones(2, "<f4"))}, "x has another shape"),
        ({"x": ("I64", np.ones(4, "<i8"))}, "x is I64, not as in the last checkpoint"),
    ],
)
def test_checkpoints_that_do_not_match_are_refused_with_the_tensor(
    tmp_path: Path, other: Arrays, why: str
) -> None:
    written(tmp_path / "a" / "model.safetensors", other)
    written(tmp_path / "b" / "model.safetensors", ONE)
    with pytest.raises(SystemExit, match=why):
        merge([tmp_path / "a", tmp_path / "b"], [0.5, 0.5], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_eight_bits_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "a" / "m.safetensors", {"x": ("F8_E4M3", np.ones(4, "<u1"))})
    with pytest.raises(SystemExit, match="x is F8_E4M3, of which no sum can be made"):
        merge([tmp_path / "a"] * 2, [0.5, 0.5], tmp_path / "merged")


def test_adapters_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "a" / "adapter_model.safetensors", ONE)
    with pytest.raises(SystemExit, match="the sum of adapters is no adapter"):
        merge([tmp_path / "a"] * 2, [0.5, 0.5], tmp_path / "merged")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x10",
        (1 << 60).to_bytes(8, "little"),
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{{",
        (9).to_bytes(8, "little") + b'{"a": {}}',
    ],
)
def test_a_torn_file_is_refused_by_its_name(tmp_path: Path, raw: bytes) -> None:
    file = written(tmp_path / "a" / "model.safetensors", ONE)
    file.write_bytes(raw)
    with pytest.raises(SystemExit, match=r"model\.safetensors: not a safetensors file"):
        merge([tmp_path / "a"] * 2, [0.5, 0.5], tmp_path / "merged")


@pytest.mark.parametrize("cut", [1, 16])
def test_a_file_that_ends_too_early_is_refused(tmp_path: Path, cut: int) -> None:
    file = written(tmp_path / "a" / "model.safetensors", ONE)
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(SystemExit, match="x is not whole"):
        merge([tmp_path / "a"] * 2, [0.5, 0.5], tmp_path / "merged")


def test_a_shape_of_other_bytes_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "a" / "model.safetensors", ONE)
    file.write_bytes(file.read_bytes().replace(b'"shape": [4]', b'"shape": [3]'))
    with pytest.raises(SystemExit, match="x has other bytes than its shape"):
        merge([tmp_path / "a"] * 2, [0.5, 0.5], tmp_path / "merged")


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(SystemExit, match="has neither safetensors files nor files of torch"):
        merge([tmp_path / "a"] * 2, [0.5, 0.5], tmp_path / "merged")
    with pytest.raises(SystemExit, match="nothing: No such file"):
        merge([tmp_path / "nothing"] * 2, [0.5, 0.5], tmp_path / "merged")


@pytest.mark.parametrize(
    ("weights", "why"),
    [(["1"], "1 weights for 2 checkpoints"), (["0.5", "0.4"], "the weights add up to 0.9")],
)
def test_weights_that_do_not_fit_are_refused(
    weights: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["a", "b", "--weights", *weights, "--output", str(tmp_path / "merged")])
    assert why in capsys.readouterr().err


def planned(script: Path, **backend: Any) -> tuple[str, ...]:
    args = {"max_steps": 300, "save_steps": 100, "learning_rate": 1e-3}
    content = {
        "project": {"name": "p"},
        "backend": {"kind": "huggingface", "script": str(script), "args": args, **backend},
        "slurm": {"kind": "local"},
        "merges": [{"at": [300], "last": 200, "shape": "equal"}],
    }
    return make_plan(Experiment.model_validate(content), Path("/out")).jobs[-1].command


def test_the_trainers_merges_run_in_its_python_by_the_mergers_path(
    three: list[Path], tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.touch()
    command = planned(script, python=sys.executable)
    assert command[:2] == (sys.executable, merger.__file__)
    paths = [f"/out/p-merge300/inputs/{at}" for at in (100, 200, 300)]
    assert list(command[2:5]) == paths
    real = dict(zip(paths, map(str, three), strict=True))
    words = [real.get(word, word) for word in command[:-1]]
    answer = subprocess.run([*words, str(tmp_path / "m")], capture_output=True, cwd="/")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.decode() == f"merged 3 checkpoints of 1 files: {tmp_path}/m\n"
    assert planned(script, python="/opt/torchrun")[0] == sys.executable
    own = ["{python}", "m.py", "{checkpoints}", "{weights}", "{output}"]
    assert planned(script, merger=own)[1] == "m.py"
