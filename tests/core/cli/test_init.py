"""A project of one's own, from a trainer's command and one line of its log."""

import io
import sys
from pathlib import Path

import pytest
import yaml

from autoexp.backends.progress_line import ProgressPattern
from autoexp.backends.protocol import Progress
from autoexp.cli.main import main
from autoexp.cli.project import sketch
from autoexp.config.compose import compose
from autoexp.errors import BadInput

LINES = {
    "step 10 loss 3.21": (10, 3.21, None),
    "[10/400] loss 1.23400 lr 0.50000": (10, 1.234, 0.5),
    "iter 10: train loss 2.9987, lr 3.0e-04, 120.5ms/step": (10, 2.9987, 3e-4),
    '{"step": 10, "loss": 3.5, "learning_rate": 0.001}': (10, 3.5, 0.001),
    "{'loss': 2.5, 'lr': 1e-05, 'step': 10}": (10, 2.5, 1e-5),
    "2026-11-29 09:12:33 INFO global_step=10 loss=nan": (10, None, None),
    " 50%|█████     | 10/20 [00:10<00:10, 1.0it/s, loss=2.3]": (10, 2.3, None),
    " iteration       10/   2000 | lm loss: 2.345678E+00 | learning rate: 1.000E-02 |": (
        10,
        2.345678,
        0.01,
    ),
    "Epoch 3 | Step 1,210 | Loss 2.50 (2.61)": (1210, 2.5, None),
    "step 10 of 100, took 0.2 seconds per iteration": (10, None, None),
}


@pytest.mark.parametrize("line", LINES)
def test_a_pattern_is_derived_from_one_line_and_reads_others_like_it(line: str) -> None:
    pattern = ProgressPattern(sketch.log_line(line))
    found = pattern.read(line.encode())
    assert isinstance(found, Progress)
    assert (found.iteration, found.loss, found.learning_rate) == LINES[line]


def test_a_pattern_reads_the_next_line_too() -> None:
    pattern = ProgressPattern(sketch.log_line("step    10 | loss  3.21 | lr 1.0e-03"))
    found = pattern.read(b"step 12000 | loss 12.5 | lr 9.9e-04")
    assert isinstance(found, Progress)
    assert (found.iteration, found.loss, found.learning_rate) == (12000, 12.5, 9.9e-4)
    assert pattern.read(b"loading step by step") is None


@pytest.mark.parametrize("line", ["", "loss 3.2", "hello", "step by step", "(((", "step \udcff"])
def test_a_line_without_an_iteration_is_refused_with_what_to_do(line: str) -> None:
    with pytest.raises(BadInput, match="iteration"):
        sketch.log_line(line)


def test_a_command_becomes_words_with_placeholders(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    command = (
        "python3 train.py --max_steps 1000 --save-every=50 --learning-rate 3e-4 --out runs/x "
        "--decay-steps 0 --decay-from=0 --tokenizer 'a b' --flag"
    )
    found = sketch.trainer(command, tmp_path)
    assert found.words == (
        *("{python}", "{source}/train.py", "--max_steps", "{train_iters}"),
        *("--save-every={save_interval}", "--learning-rate", "{lr}", "--out", "{save_dir}"),
        *("--decay-steps", "0", "--decay-from=0", "--tokenizer", "a b", "--flag"),
    )
    assert found.args == {"train_iters": 1000, "save_interval": 50, "lr": 3e-4} and found.saves
    assert found.cooldown == {
        "--decay-steps": "{decay_iterations}",
        "--decay-from": "{branch_iteration}",
    }


def test_checkpoints_are_described_by_the_path_of_one(tmp_path: Path) -> None:
    folder = tmp_path / "ckpt" / "0100"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    assert sketch.saves(str(folder)).values == {
        "folder": "ckpt",
        "name": "{iteration}",
        "must_parse": ["state.json"],
    }
    (tmp_path / "ckpt" / "latest").write_text("100")
    found = sketch.saves(str(folder))
    assert found.values["tracker"] == "latest" and not found.is_guess
    assert sketch.saves("step-100.pt").values["name"] == "step-{iteration}.pt"
    with pytest.raises(BadInput, match="no iteration in it"):
        sketch.saves("out/last.pt")


def init(*words: str) -> int:
    return main(["init", *words])


def test_what_cannot_be_known_is_a_marked_line_and_the_rest_composes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert init(str(tmp_path), "--name", "mine", "--command", "train --lr 1") == 0
    text = (tmp_path / "configs" / "mine.yaml").read_text()
    assert "6 lines are marked" in capsys.readouterr().err and text.count("<-- look") == 6
    assert compose(str(tmp_path / "configs" / "mine.yaml")).experiment.project.name == "mine"
    assert (
        compose(
            str(tmp_path / "configs" / "mine.yaml"), ["slurm=site", "slurm.account=a"]
        ).experiment.slurm.kind
        == "slurm"
    )
    deployments = yaml.safe_load((tmp_path / "prefect.yaml").read_text())["deployments"]
    assert deployments[0]["parameters"] == {"config": "mine"}
    names = [deployment["name"] for deployment in deployments]
    assert names == [
        *("mine-train", "mine-cooldown", "mine-evaluate", "mine-branch", "mine-resume")
    ]
    assert "sessions/" in (tmp_path / ".gitignore").read_text().splitlines()


def test_files_that_are_there_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prefect.yaml").write_text("mine")
    assert init(str(tmp_path), "--command", "train") == 2
    assert "prefect.yaml is there already" in capsys.readouterr().err
    assert not (tmp_path / "configs").exists() and not (tmp_path / ".gitignore").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--command: give the line"),
        (["--command", "a 'b"], "cannot be read as a shell would"),
        (["--command", "a", "--log-line", "x"], "no number behind"),
        (["--command", "a", "--checkpoint", "last"], "no iteration in it"),
        (["--command", "a", "--name", "-x/"], "--name"),
    ],
)
def test_a_mistake_is_one_message_and_makes_nothing(
    words: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert init(str(tmp_path), *words) == 2
    assert said in capsys.readouterr().err and list(tmp_path.iterdir()) == []
