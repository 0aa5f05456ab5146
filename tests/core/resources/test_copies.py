"""Copies of a checkpoint file that each save overwrites, as nanoGPT's `ckpt.pt`."""

import inspect
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from autoexp.config.compose import compose
from autoexp.errors import BadInput
from autoexp.jobs.spec import JobSpec
from autoexp.planning.plan import make_plan
from autoexp.resources.copies import Copies, iteration_in
from autoexp.schedulers.base import AttemptRef, prepare
from autoexp.schedulers.launch import payload_spec
from tests.builders import attempt_of, spec_of
from tests.processes import Job


def save(path: Path, iteration: int, **others: object) -> None:
    """Write a checkpoint as torch.save does: an archive with a pickle of protocol 2, in place."""
    with zipfile.ZipFile(path, "w") as archive:
        value = {"model": {"w": [1.0] * 9}, **others, "iter_num": iteration, "best_val_loss": 3.0}
        archive.writestr("archive/data.pkl", pickle.dumps(value, protocol=2))
        archive.writestr("archive/data/0", b"w" * 4000)


TRAINER = (
    f"""
import os, pickle, sys, time, zipfile
from pathlib import Path

{inspect.getsource(save)}
"""
    + """
words = dict(word[2:].split("=") for word in sys.argv[1:] if "=" in word)
start, file = 0, os.path.join(words["out_dir"], "ckpt.pt")
os.makedirs(words["out_dir"], exist_ok=True)
if words.get("init_from") == "resume":
    with zipfile.ZipFile(file) as archive:
        start = pickle.loads(archive.read("archive/data.pkl"))["iter_num"]
for iteration in range(start, int(words["max_iters"]) + 1):
    print(f"iter {iteration}: loss 3.0, time 1.00ms, mfu 1.00%", flush=True)
    if iteration and iteration % int(words["eval_interval"]) == 0:
        save(file, iteration)
        copy = os.path.join(words["out_dir"], f"ckpt-{iteration}.pt")
        waits = iteration < int(words["max_iters"]) or "tear" in words
        while waits and not os.path.exists(copy):
            time.sleep(0.01)
open(file, "w").write("torn") if "tear" in words else None
"""
)


def copies(folder: Path) -> Copies:
    file = str(folder / "ckpt.pt")
    return Copies({"file": file, "name": "ckpt-{iteration}.pt", "key": "iter_num"})


@pytest.mark.parametrize("iteration", [1, 255, 70_000, 2**31 + 1])
def test_the_iteration_is_read_from_the_pickle_without_loading_it(
    tmp_path: Path, iteration: int
) -> None:
    save(tmp_path / "ckpt.pt", iteration, config={"max_iters": 5})
    assert iteration_in(tmp_path / "ckpt.pt", "iter_num") == iteration


def test_a_key_that_is_said_twice_is_found_both_times_and_must_say_the_same(tmp_path: Path) -> None:
    save(tmp_path / "same.pt", 10, config={"iter_num": 10})
    save(tmp_path / "other.pt", 10, config={"iter_num": 11})
    assert iteration_in(tmp_path / "same.pt", "iter_num") == 10
    assert iteration_in(tmp_path / "other.pt", "iter_num") is None


def test_nothing_of_a_pickle_is_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "run"),)

    with zipfile.ZipFile(tmp_path / "ckpt.pt", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps([Evil(), {"iter_num": 7}], protocol=2))
    assert iteration_in(tmp_path / "ckpt.pt", "iter_num") == 7
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", [0, 1, 100, 0.5, 0.99])
def test_a_file_that_is_being_written_has_no_iteration(tmp_path: Path, part: float) -> None:
    file = tmp_path / "ckpt.pt"
    save(file, 10)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(part if part >= 1 else part * len(whole))])
    assert iteration_in(file, "iter_num") is None


@pytest.mark.parametrize(
    ("text", "found"),
    [('{"step": 12}', 12), ('{"step": true}', None), ("[1]", None), ('{"step": -1}', None)],
)
def test_a_json_file_says_it_too(tmp_path: Path, text: str, found: int | None) -> None:
    (tmp_path / "state.json").write_text(text)
    assert iteration_in(tmp_path / "state.json", "step") == found


def test_a_save_during_the_copy_leaves_no_copy_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "ckpt.pt", 10)
    kept = copies(tmp_path)
    copyfile = shutil.copyfile

    def slow(source: Path, target: Path) -> None:
        copyfile(source, target)
        save(source, 20)

    monkeypatch.setattr("autoexp.resources.copies.shutil.copyfile", slow)
    kept.keep()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt.pt"]
    monkeypatch.undo()
    kept.keep()
    assert iteration_in(tmp_path / "ckpt-20.pt", "iter_num") == 20


def test_the_newest_copy_takes_the_place_of_a_torn_save(tmp_path: Path) -> None:
    for iteration in (90, 100):
        save(tmp_path / "ckpt.pt", iteration)
        copies(tmp_path).keep()
    (tmp_path / "ckpt.pt").write_bytes(b"torn")
    with copies(tmp_path):
        assert iteration_in(tmp_path / "ckpt.pt", "iter_num") == 100


def test_a_full_disk_is_said_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    save(tmp_path / "ckpt.pt", 10)
    kept = copies(tmp_path)
    monkeypatch.setattr("autoexp.resources.copies.shutil.copyfile", full)
    kept.keep()
    kept.keep()
    assert capsys.readouterr().err.count("No space left on device") == 1


def nanogpt(source: Path, *more: str) -> list[str]:
    lengths = ["backend.args.train_iters=30", "backend.args.save_interval=10"]
    own = [f"backend.source={source}", "backend.args.lr_warmup_iters=2", "project.name=p"]
    return ["backend=nanogpt", *own, *lengths, *more]


def run(job: Job) -> int:
    prepare(job.ref, job.spec, job.attempt, payload_spec(job.spec.machine, job.spec, job.ref.key))
    payload = [sys.executable, str(job.directory / "payload.py")]
    environment = {**os.environ, "SUBMITIT_LOCAL_JOB_ID": job.ref.key}
    return subprocess.run(payload, env=environment).returncode


def job_of(spec: JobSpec, directory: Path, number: int) -> Job:
    key = f"s1-p-a{number}"
    attempt = attempt_of(key, str(directory / f"{key}.log"))
    return Job(AttemptRef(key, directory / key, key, "batch.sh"), spec, attempt)


def test_each_save_is_a_checkpoint_and_a_cooldown_begins_at_its_own(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAINER)
    cooldown = "cooldowns=[{at: [20], decay: {iterations: 10, shape: cosine}}]"
    plan = make_plan(compose(None, nanogpt(tmp_path, cooldown)).experiment, tmp_path / "output")
    trunk, branch = plan.jobs
    saves, branch_saves = Path(trunk.save_dir), Path(branch.save_dir)

    assert run(job_of(trunk, tmp_path, 1)) == 0
    found = trunk.trainer.checkpoints(saves).complete
    assert [(each.iteration, each.path.name) for each in found] == [
        (iteration, f"ckpt-{iteration}.pt") for iteration in (10, 20, 30)
    ]
    trunk.trainer.seed(found[1], branch_saves)
    job = job_of(branch, tmp_path, 2)
    assert run(job) == 0
    assert b"iter 20: loss" in job.log and b"iter 19: loss" not in job.log
    assert [each.iteration for each in trunk.trainer.checkpoints(branch_saves).complete] == [20, 30]
    # The trunk's own is as it was.
    assert iteration_in(saves / "ckpt-20.pt", "iter_num") == 20


def test_an_attempt_after_a_torn_save_goes_on_from_the_newest_copy(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAINER)
    trunk = make_plan(compose(None, nanogpt(tmp_path)).experiment, tmp_path / "output").trunk
    torn = trunk.model_copy(update={"command": (*trunk.command, "--tear=1", "--max_iters=10")})
    assert run(job_of(torn, tmp_path, 1)) == 0
    assert (Path(trunk.save_dir) / "ckpt.pt").read_text() == "torn"
    job = job_of(trunk, tmp_path, 2)
    assert run(job) == 0
    assert b"iter 10: loss" in job.log and b"iter 9: loss" not in job.log


def test_a_roll_back_takes_the_file_out_of_the_way_too(tmp_path: Path) -> None:
    trainer = compose(None, nanogpt(tmp_path)).experiment.trainer
    for iteration in (10, 20, 30):
        save(tmp_path / "ckpt.pt", iteration)
        copies(tmp_path).keep()
    assert sorted(trainer.set_aside(tmp_path, 20)) == ["ckpt-30.pt", "ckpt.pt"]
    with copies(tmp_path):
        assert iteration_in(tmp_path / "ckpt.pt", "iter_num") == 20
    assert [each.iteration for each in trainer.checkpoints(tmp_path).complete] == [10, 20]


@pytest.mark.parametrize(
    ("saves", "said"),
    [
        ("{one_file: ckpt.pt}", "belong together"),
        ("{one_file: ckpt.pt, iteration_name: n, name: 'x-{iteration}'}", "give `name`, or"),
        ("{one_file: a/ckpt.pt, iteration_name: n}", "one_file"),
        ("{one_file: ckpt.pt, iteration_name: n, renamed: true}", "`renamed` does not go"),
        ("{folder: x}", "give `name`, or"),
    ],
)
def test_what_does_not_fit_one_file_is_refused(tmp_path: Path, saves: str, said: str) -> None:
    text = f"""
defaults: [default, _self_]
backend:
  kind: command
  command: [train]
  log_line: (?P<iteration>[0-9]+)
  saves: {saves}
  args: {{train_iters: 10, save_interval: 5}}
"""
    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(BadInput, match=said):
        compose(str(tmp_path / "e.yaml"), [])


def test_a_job_that_is_no_training_keeps_no_copies(tmp_path: Path) -> None:
    spec = spec_of("true", directory=tmp_path)
    assert payload_spec(spec.machine, spec, "k").copies == {}
