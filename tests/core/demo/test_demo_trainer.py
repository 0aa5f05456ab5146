"""The demo trainer is a trainer: it learns, resumes to the bit, and fails as real ones do."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from autoexp.demo import model as language
from autoexp.demo import trainer
from autoexp.demo.checkpoints import PARTIAL, TRACKER, sync

TINY = ("--hidden-size=8", "--embedding-size=4", "--seq-length=3", "--global-batch-size=8")
SCRIPT = Path(trainer.__file__)
LOSS = re.compile(r"iteration +(\d+)/.* lm loss: (\S+) \| grad norm: (\S+) \|")


@pytest.fixture(scope="module")
def spoken() -> language.Language:
    return language.draw_language(1)


@pytest.fixture(autouse=True)
def one_language(monkeypatch: pytest.MonkeyPatch, spoken: language.Language) -> None:
    """Drawing it takes 0.1 s, and many tests run the trainer several times."""
    monkeypatch.setattr(language, "draw_language", lambda _seed, _kind="web": spoken)


def run(save: Path, *options: str, stop: list[int] | None = None) -> int:
    return trainer.main([f"--save={save}", "--log-interval=1", *TINY, *options], stop)


def losses(output: str) -> dict[int, tuple[str, str]]:
    return {int(hit[1]): (hit[2], hit[3]) for hit in LOSS.finditer(output)}


def checkpoints(save: Path) -> list[str]:
    return sorted(folder.name for folder in save.glob("iter_*"))


def tracked(save: Path) -> str:
    return (save / TRACKER).read_text()


def start(save: Path, *options: str) -> subprocess.Popen[str]:
    """A trainer of its own, run by its path."""
    command = [sys.executable, str(SCRIPT), f"--save={save}", "--log-interval=1", *TINY, *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


def read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"the trainer ended without saying {text!r}")


# ------------------------------------------------------------------------------ learning rate


@pytest.mark.parametrize(
    ("shape", "quarter", "half"),
    [("linear", 0.75, 0.5), ("minus_sqrt", 0.5, 1 - math.sqrt(0.5)), ("cosine", 0.853553, 0.5)],
)
def test_a_decay_runs_from_the_peak_to_the_minimum_in_its_shape(
    shape: str, quarter: float, half: float
) -> None:
    schedule = language.Schedule(
        lr=1.1,
        min_lr=0.1,
        lr_decay_iters=100,
        lr_decay_style="WSD",
        lr_wsd_decay_iters=20,
        lr_wsd_decay_style=shape,
    )
    assert [schedule.rate(i) for i in (0, 50, 80)] == [1.1, 1.1, 1.1]
    assert schedule.rate(85) == pytest.approx(0.1 + quarter, abs=1e-6)
    assert schedule.rate(90) == pytest.approx(0.1 + half)
    assert schedule.rate(100) == schedule.rate(1000) == 0.1


def test_a_warmup_begins_at_zero_and_a_constant_rate_never_decays() -> None:
    schedule = language.Schedule(lr=0.5, lr_warmup_iters=10, lr_decay_iters=100)
    assert [schedule.rate(i) for i in (0, 5, 10, 11, 100, 200)] == [0, 0.25, 0.5, 0.5, 0.5, 0.5]


def test_a_branch_decays_over_its_last_iterations_and_logs_the_next_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "--train-iters=4", "--lr-decay-style=WSD", "--lr-wsd-decay-iters=2",
        "--lr-wsd-decay-style=linear")  # fmt: skip
    rates = re.findall(r"learning rate: (\S+)", capsys.readouterr().out)
    assert rates == ["1.000000E-02", "1.000000E-02", "5.000000E-03", "0.000000E+00"]


# ---------------------------------------------------------------------- language and learning


def test_the_text_is_as_surprising_as_the_floor_says(spoken: language.Language) -> None:
    triples = np.zeros((language.VOCABULARY,) * 3)
    text = spoken.text
    np.add.at(triples, (text[:, :-2].ravel(), text[:, 1:-1].ravel(), text[:, 2:].ravel()), 1)
    share = triples / triples.sum()
    following = triples / np.maximum(triples.sum(-1, keepdims=True), 1)
    measured = language.entropy_rate(following, share.sum(-1))
    assert measured == pytest.approx(spoken.entropy_floor, abs=0.01)


def test_the_stationary_pairs_stay_as_they_are(spoken: language.Language) -> None:
    following = language.probabilities(spoken.successors)
    pairs = language.stationary_pairs(following)
    assert pairs.sum() == pytest.approx(1)
    assert np.einsum("ab,abc->bc", pairs, following) == pytest.approx(pairs, abs=1e-12)


def test_the_gradient_agrees_with_finite_differences(spoken: language.Language) -> None:
    model = language.CharacterModel(language.Sizes(3, 4, 5), seed=1, dtype=np.float64)
    model.flat += 0.1 * np.random.default_rng(0).standard_normal(model.flat.size)
    windows = spoken.text[:7, :4]
    model.loss_and_gradient(windows)
    gradient = model.flat_gradient.copy()
    step = 1e-6
    for index in range(0, model.flat.size, 7):
        value = model.flat[index]
        model.flat[index] = value + step
        above = model.loss_and_gradient(windows)
        model.flat[index] = value - step
        below = model.loss_and_gradient(windows)
        model.flat[index] = value
        assert gradient[index] == pytest.approx((above - below) / (2 * step), abs=1e-8)


def test_training_nears_the_floor_and_never_passes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoken: language.Language
) -> None:
    trainer.main([f"--save={tmp_path}", "--train-iters=700", "--lr=4e-3", "--seq-length=2",
                  "--lr-decay-style=WSD", "--lr-wsd-decay-iters=300"])  # fmt: skip
    output = capsys.readouterr().out
    assert output.startswith(
        f" entropy floor of the synthetic language: {spoken.entropy_floor:.6E} nats per character\n"
    )
    curve = [float(loss) for loss, _ in losses(output).values()]
    assert 2.5 < curve[0] < 3.5
    last = sum(curve[-10:]) / 10
    assert spoken.entropy_floor < last < spoken.entropy_floor + 0.15


def test_a_cooldown_gains_over_the_constant_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trunk, branch = tmp_path / "trunk", tmp_path / "branch"
    trainer.main([f"--save={trunk}", "--train-iters=250", "--save-interval=50"])
    constant = losses(capsys.readouterr().out)
    shutil.copytree(trunk / "iter_0000200", branch / "iter_0000200")
    (branch / TRACKER).write_text("200")
    trainer.main([f"--save={branch}", f"--load={branch}", "--train-iters=250",
                  "--lr-decay-style=WSD", "--lr-wsd-decay-iters=50",
                  "--override-opt_param-scheduler", "--exit-on-missing-checkpoint"])  # fmt: skip
    decayed = losses(capsys.readouterr().out)
    assert min(decayed) == 210
    gain = [float(constant[i][0]) - float(decayed[i][0]) for i in (240, 250)]
    assert sum(gain) / 2 > 0.05


def test_a_training_begins_with_anothers_weights_and_goes_on_from_its_own_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run(first, "--train-iters=60", "--lr=1e-2")
    reached = float(losses(capsys.readouterr().out)[60][0])
    begin = ["--seed=7", f"--load={second}", "--save-interval=5"]
    for named in (first / "iter_0000060", first):  # a checkpoint, or where checkpoints are
        shutil.rmtree(second, ignore_errors=True)
        run(second, f"--pretrained-checkpoint={named}", "--train-iters=5", "--lr=1e-3", *begin)
        said = capsys.readouterr().out
        assert f"loaded pretrained weights from {first / 'iter_0000060'}, at iteration 0" in said
        assert float(losses(said)[1][0]) == pytest.approx(reached, abs=0.3)

    longer = ["--train-iters=10", "--lr=1e-3", "--override-opt_param-scheduler"]
    run(second, f"--pretrained-checkpoint={first}", *longer, *begin)
    said = capsys.readouterr().out
    assert "at iteration 5" in said
    assert "pretrained" not in said
    with pytest.raises(SystemExit, match="there is no checkpoint"):
        run(tmp_path / "third", f"--pretrained-checkpoint={tmp_path}")
    with pytest.raises(SystemExit, match="--hidden-size is 9, the checkpoint's"):
        run(tmp_path / "third", f"--pretrained-checkpoint={first}", "--hidden-size=9")


# ---------------------------------------------------------------------------------- log lines


def test_the_lines_are_megatrons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "--train-iters=20", "--log-interval=10", "--save-interval=20")
    lines = capsys.readouterr().out.splitlines()
    clock = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\]"
    number = r"\d\.\d{6}E[+-]\d\d"
    assert re.fullmatch(
        rf" {clock} iteration       20/      20 \| consumed samples:          160 \| "
        rf"elapsed time per iteration \(ms\): \d+\.\d \| learning rate: 1\.000000E-02 \| "
        rf"global batch size:     8 \| lm loss: {number} \| grad norm: \d+\.\d{{3}} \| "
        rf"number of skipped iterations:   0 \| number of nan iterations:   0 \|",
        lines[2],
    )
    assert re.fullmatch(
        rf"{clock} saving checkpoint at iteration      20 to {tmp_path} in npz format", lines[3]
    )
    done = f"  successfully saved checkpoint from iteration      20 to {tmp_path} [ t 1/1, p 1/1 ]"
    assert lines[4:] == [done]


def test_the_logged_loss_is_the_mean_of_the_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "each", "--train-iters=8")
    each = losses(capsys.readouterr().out)
    run(tmp_path / "four", "--train-iters=8", "--log-interval=4")
    four = losses(capsys.readouterr().out)
    mean = sum(float(each[i][0]) for i in (5, 6, 7, 8)) / 4
    assert float(four[8][0]) == pytest.approx(mean, abs=2e-6)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_nan_loss_vanishes_from_the_line_and_stays_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--train-iters=6", "--nan-at-iteration=4") == 0
    output = capsys.readouterr().out
    assert list(losses(output)) == [1, 2, 3]
    assert len(re.findall(r"\| global batch size:     8 \| grad norm: nan \|", output)) == 3


# -------------------------------------------------------------------------------- checkpoints


def test_a_resumed_run_repeats_the_uninterrupted_one_to_the_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ("--train-iters=40", "--save-interval=10", "--lr-warmup-iters=5",
               "--lr-decay-style=WSD", "--lr-wsd-decay-iters=25")  # fmt: skip
    run(whole, *options)
    expected = losses(capsys.readouterr().out)
    with pytest.raises(RuntimeError, match="fail-at-iteration 27"):
        run(parts, *options, f"--load={parts}", "--fail-at-iteration=27")
    before = losses(capsys.readouterr().out)
    run(parts, *options, f"--load={parts}")
    after = losses(capsys.readouterr().out)
    assert (max(before), min(after)) == (26, 21)
    assert before | after == expected

    for name in ("model.npz", "optimizer.npz"):
        one, other = (np.load(save / "iter_0000040" / name) for save in (whole, parts))
        assert all(one[key].tobytes() == other[key].tobytes() for key in one.files)


def test_checkpoints_come_at_every_interval_and_at_the_end(tmp_path: Path) -> None:
    run(tmp_path, "--train-iters=25", "--save-interval=10")
    assert checkpoints(tmp_path) == ["iter_0000010", "iter_0000020", "iter_0000025"]
    assert tracked(tmp_path) == "25"
    metadata = json.loads((tmp_path / "iter_0000010" / "metadata.json").read_text())
    assert (metadata["iteration"], metadata["consumed_samples"]) == (10, 80)
    assert metadata["args"]["train_iters"] == 25


def test_retention_deletes_older_checkpoints_but_never_a_symlink(tmp_path: Path) -> None:
    save, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    save.mkdir()
    (save / "iter_0000005").symlink_to(elsewhere)
    run(save, "--train-iters=50", "--save-interval=10", "--save-retain-interval=20")
    kept = ["iter_0000005", "iter_0000020", "iter_0000040", "iter_0000050"]
    assert checkpoints(save) == kept and elsewhere.is_dir()


def test_a_held_run_goes_on_once_its_file_is_gone_or_somebody_signals(tmp_path: Path) -> None:
    file, looks = tmp_path / "3", []

    def nobody() -> bool:
        looks.append(file.exists())
        if len(looks) == 3:
            file.unlink()
        return False

    file.touch()
    trainer.wait_while_held(file, nobody)
    assert looks == [True, True, True]
    file.touch()
    trainer.wait_while_held(file, lambda: True)
    assert file.exists()


def test_a_torn_folder_beyond_the_tracker_is_ignored_and_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "--train-iters=10", "--lr-decay-iters=20")
    (tmp_path / "iter_0000020").mkdir()
    (tmp_path / "iter_0000020" / "model.npz").write_bytes(b"torn")
    run(tmp_path, "--train-iters=20", "--lr-decay-iters=20", f"--load={tmp_path}")
    assert f"loaded checkpoint from {tmp_path} at iteration 10\n" in capsys.readouterr().out
    assert tracked(tmp_path) == "20"
    assert (tmp_path / "iter_0000020" / "metadata.json").exists()


def test_a_truncated_shard_ends_the_run(tmp_path: Path) -> None:
    run(tmp_path, "--train-iters=10")
    shard = tmp_path / "iter_0000010" / "optimizer.npz"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(SystemExit, match=r"could not load .*optimizer\.npz has \d+ bytes"):
        run(tmp_path, "--train-iters=10", f"--load={tmp_path}")


def test_without_a_tracker_training_starts_afresh_unless_told_to_exit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "a", "--train-iters=2", f"--load={tmp_path}") == 0
    assert list(losses(capsys.readouterr().out)) == [1, 2]
    with pytest.raises(SystemExit, match="no checkpoint to start from"):
        run(tmp_path / "b", f"--load={tmp_path}", "--exit-on-missing-checkpoint")


def test_a_finished_run_says_so_and_exits_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "--train-iters=3")
    assert run(tmp_path, "--train-iters=3", f"--load={tmp_path}") == 0
    assert " nothing to train: iteration 3 of 3 is reached\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--train-iters=20", "20 and checkpoint value 10 for total number of iterations"),
        ("--lr=0.02", "0.02 and checkpoint value 0.01 for learning rate"),
        ("--min-lr=0.001", "for minimum learning rate"),
    ],
)
def test_a_changed_schedule_is_refused_unless_overridden(
    tmp_path: Path, option: str, words: str
) -> None:
    run(tmp_path, "--train-iters=10")
    resumed = ("--train-iters=10", f"--load={tmp_path}", option)
    with pytest.raises(SystemExit, match=rf"OptimizerParamScheduler: .*{words}.* do not match"):
        run(tmp_path, *resumed)
    assert run(tmp_path, *resumed, "--override-opt_param-scheduler") == 0


def test_another_model_or_language_is_refused_even_with_an_override(tmp_path: Path) -> None:
    run(tmp_path, "--train-iters=2")
    for option in ("--seed=2", "--hidden-size=9"):
        with pytest.raises(SystemExit, match=f"{option.replace('=', ' is ')}, the checkpoint's"):
            run(tmp_path, f"--load={tmp_path}", "--override-opt_param-scheduler", option)


# ----------------------------------------------------------------------- refusals and signals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--save-interval=0",), "--save-interval: must be at least 1, got 0"),
        (("--lr=-1",), "--lr: must be a number of at least 0, got -1"),
        (("--min-lr=1",), "--min-lr 1.0 is above --lr 0.01"),
        (("--lr-decay-style=WSD",), "WSD needs --lr-wsd-decay-iters"),
        (("--lr-decay-style=WSD", "--lr-wsd-decay-iters=101"), "longer than the run's 100"),
        (("--lr-wsd-decay-style=sqrt",), "invalid choice: 'sqrt'"),
        (("--lr-warmup-iters=100",), "--lr-warmup-iters has to be below the run's 100"),
        (("--seq-length=1",), "--seq-length has to be 2 to 255"),
        (("--train-iter=5",), "unrecognized arguments"),
    ],
)
def test_bad_arguments_are_refused_in_words_with_exit_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as refused:
        run(tmp_path / "run", "--train-iters=100", *options)
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_saves_at_the_iterations_end_and_exits_0(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = start(tmp_path, "--train-iters=100000", "--sleep-per-iteration-ms=20")
    read_until(process, "iteration        3/")
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    saved, announced = output.splitlines()[-2:]
    assert "successfully saved checkpoint from iteration" in saved
    assert announced.startswith("[exiting program after receiving SIGTERM.] datetime: ")
    assert checkpoints(tmp_path) == [f"iter_{int(tracked(tmp_path)):07d}"]


def test_a_kill_during_a_save_leaves_no_checkpoint_and_the_next_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "--train-iters=10", "--lr-decay-iters=20")
    process = start(tmp_path, f"--load={tmp_path}", "--train-iters=20", "--slow-save-s=60")
    read_until(process, "saving checkpoint at iteration      20")
    until = time.monotonic() + 120
    while not (tmp_path / PARTIAL / "rng.json").exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert checkpoints(tmp_path) == ["iter_0000010"] and tracked(tmp_path) == "10"
    assert (tmp_path / PARTIAL / "model.npz").exists()

    run(tmp_path, "--train-iters=20", f"--load={tmp_path}")
    assert min(losses(capsys.readouterr().out.split("loaded checkpoint")[1])) == 11
    assert checkpoints(tmp_path) == ["iter_0000010", "iter_0000020"]
    assert not (tmp_path / PARTIAL).exists()


def test_it_runs_as_a_module_and_a_failure_is_exit_1(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "autoexp.demo.trainer", f"--save={tmp_path}", *TINY]
    ended = subprocess.run(
        [*command, "--fail-at-iteration=2"], capture_output=True, text=True, cwd=SCRIPT.parents[2]
    )
    assert ended.returncode == 1
    assert ended.stderr.endswith("RuntimeError: --fail-at-iteration 2: failing as asked\n")
    assert checkpoints(tmp_path) == []


def test_a_checkpoint_is_saved_where_folders_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def picky(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        raise OSError(errno.EIO, "the device is broken")

    monkeypatch.setattr(os, "fsync", picky)
    sync(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="the device is broken"):
        sync(tmp_path / "file")
