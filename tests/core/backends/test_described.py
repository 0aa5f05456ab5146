"""Trainers described in YAML: where they run, what resumes them, settings files, arithmetic."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from autoexp.backends.command.backend import CommandBackend
from autoexp.backends.command.placeholders import change_options, substitute
from autoexp.backends.protocol import Branch
from autoexp.model import COMPOSING
from autoexp.resources.containers import Apptainer
from autoexp.resources.machines import LocalMachine
from autoexp.schedulers.base import prepare
from autoexp.schedulers.launch import payload_spec
from tests.builders import spec_of
from tests.processes import Job, JobOf

BRANCH = Branch(iteration=800, decay_iterations=200, shape="linear", min_lr=1e-5)
SAVE = Path("/out/checkpoints")


def described(**changes: Any) -> CommandBackend:
    values: dict[str, Any] = {
        "kind": "command",
        "command": ["python3", "train.py", "--steps", "{train_iters}"],
        "cooldown": {"--decay": "{decay_iterations}"},
        "saves": {"name": "step{iteration}", "renamed": True},
        "log_line": r"(?P<iteration>\d+) (?P<loss>\S+)",
        "args": {"train_iters": 1000, "save_interval": 100},
    }
    return CommandBackend.model_validate(values | changes, context=COMPOSING)


def refusal(**changes: Any) -> str:
    with pytest.raises(ValidationError) as refused:
        described(**changes)
    return str(refused.value)


# Arithmetic


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{steps}", "1000"),
        ("{steps * 2 + 1}", "2001"),
        ("{steps / 8}", "125.0"),
        ("{steps // 300}", "3"),
        ("{-(steps - 1) % 7}", "2"),
        ("{lr / 2}", "0.00015"),
        ("{other * 2}", "{other * 2}"),
        ('{"steps": 1}', '{"steps": 1}'),
        ("{steps ** 9}", "{steps ** 9}"),
        ("{steps.real}", "{steps.real}"),
        ("{steps()}", "{steps()}"),
        ("{1 2}", "{1 2}"),
    ],
)
def test_arithmetic_is_numbers_and_names_and_all_else_stays_as_it_is(
    text: str, filled: str
) -> None:
    assert substitute(text, {"steps": "1000", "lr": "3e-4"}) == filled


def test_arithmetic_with_no_number_is_refused_when_it_is_composed() -> None:
    command = ["train", "{train_iters * mode}"]
    args = {"train_iters": 1000, "save_interval": 100, "mode": "fast"}
    assert "{mode} is 'fast', and no number" in refusal(command=command, args=args)
    assert "has no result" in refusal(command=["train", "{train_iters // 0}"])
    wrong = refusal(command=["train", "{train_itres * 2}"])
    assert "did you mean `{train_iters}`" in wrong


def test_placeholders_know_fraction_final_rate_and_tokens() -> None:
    trainer = described(
        command=["train", "--tokens", "{tokens}"],
        cooldown={"--fraction": "{decay_fraction}", "--final": "{min_lr}"},
        args={
            "train_iters": 1000,
            "save_interval": 100,
            "samples_per_iteration": 32,
            "tokens_per_sample": 512,
        },
    )
    assert trainer.trunk_command(SAVE) == ("train", "--tokens", "16384000")
    assert trainer.cooldown_command(BRANCH, SAVE) == (
        *("train", "--tokens", "16384000", "--fraction", "0.2", "--final", "1e-05"),
    )
    assert "nothing is called {tokens}" in refusal(command=["train", "{tokens}"])


# Options


@pytest.mark.parametrize(
    ("command", "options", "changed"),
    [
        (["t", "--a=1"], {"--b": 2}, ["t", "--a=1", "--b=2"]),
        (["t", "--a", "1"], {"--b": 2}, ["t", "--a", "1", "--b", "2"]),
        (["t", "--a_b=1"], {"--a_b": 3}, ["t", "--a_b=3"]),
        (["t", "a=1"], {"b": 2}, ["t", "a=1", "b=2"]),
    ],
)
def test_a_new_option_is_spelled_as_the_others_are(
    command: list[str], options: dict[str, Any], changed: list[str]
) -> None:
    assert change_options(command, options) == changed


def laid_out(job_of: JobOf, trainer: CommandBackend, **changes: Any) -> Job:
    """An attempt at a trainer's trunk."""
    job = job_of("true")
    save_dir = Path(job.spec.output_dir) / "checkpoints"
    machine = LocalMachine(**changes)
    own = {"backend": trainer, "save_dir": str(save_dir), "machine": machine}
    spec = job.spec.model_copy(update={**own, "command": trainer.trunk_command(save_dir)})
    job = job._replace(spec=spec)
    prepare(job.ref, spec, job.attempt, payload_spec(machine, spec, job.ref.key))
    return job


def run(job: Job) -> str:
    command = [sys.executable, str(job.directory / "payload.py")]
    environment = {**os.environ, "SUBMITIT_LOCAL_JOB_ID": "41"}
    assert subprocess.run(command, env=environment, timeout=120).returncode == 0
    return job.log.decode()


SHOWS = [sys.executable, "-c", "import os, sys; print(os.getcwd(), *sys.argv[1:])", "--steps=3"]


def test_a_trainer_is_told_to_resume_once_there_is_a_checkpoint(job_of: JobOf) -> None:
    trainer = described(command=SHOWS, resume={"--from": "{checkpoint}"})
    job = laid_out(job_of, trainer)
    assert run(job) == f"{job.output} --steps=3\n"
    for name in ("step100", "step1000", "step200", "other"):
        (Path(job.spec.save_dir) / name).mkdir(parents=True)
    Path(job.attempt.log).unlink()
    assert run(job) == f"{job.output} --steps=3 --from={job.spec.save_dir}/step1000\n"


def test_a_trainer_runs_where_it_has_to(job_of: JobOf, tmp_path: Path) -> None:
    place = tmp_path / "its own"
    place.mkdir()
    job = laid_out(job_of, described(command=SHOWS, cwd=str(place)))
    assert run(job) == f"{place} --steps=3\n"
    boxed = spec_of("python3", backend=described(cwd="/its"), container=Apptainer(image="x"))
    command = payload_spec(LocalMachine(), boxed, "key").command
    assert command[command.index("--pwd") + 1] == "/its"


# Settings files

YAML = "model: {lr: 1.0, name: tiny}\nstages:\n- {steps: 5, decay: null}\nsave: /x\n"
TOML = '# kept\nsave = "/x"\n[model]\nlr = 1.0\nname = "tiny"\n[[stages]]\nsteps = 5\ndecay = 0\n'
KEYS = {
    "model.lr": "{lr}",
    "stages.0.steps": "{train_iters}",
    "save": "{save_dir}/in",
    "model.name": 'a: b\n"c" #',
}


@pytest.mark.parametrize("suffix", ["yaml", "toml", "json"])
def test_a_settings_file_is_made_from_a_template_its_keys_set_as_data(
    job_of: JobOf, tmp_path: Path, suffix: str
) -> None:
    template = tmp_path / f"mine.{suffix}"
    text = {"yaml": YAML, "toml": TOML, "json": json.dumps(yaml.safe_load(YAML))}[suffix]
    template.write_text(text)
    trainer = described(
        command=["cat", "{settings}"],
        cooldown={},
        settings={
            "template": str(template),
            "set": KEYS,
            "cooldown": {"stages.0.decay": "{decay_iterations}"},
        },
        args={"train_iters": 1000, "save_interval": 100, "lr": 3e-4},
    )
    template.unlink()  # a session keeps what was read
    job = laid_out(job_of, trainer)
    read = {"yaml": yaml.safe_load, "toml": tomllib.loads, "json": json.loads}[suffix]
    found = read(run(job))
    assert found["model"] == {"lr": 3e-4, "name": 'a: b\n"c" #'}
    assert found["stages"][0]["steps"] == 1000
    assert found["save"] == f"{job.spec.save_dir}/in"
    ((path, content),) = trainer.files(BRANCH, SAVE).items()
    assert path == f"/out/checkpoints/autoexp-settings.{suffix}"
    assert read(content)["stages"][0]["decay"] == 200
    assert read(content)["stages"][0]["steps"] == 1000
    assert trainer.refusals(BRANCH) == []


@pytest.mark.parametrize(
    ("text", "keys", "told"),
    [
        (YAML, {"model.lrr": 1}, "`model.lrr` is no key of"),
        (YAML, {"model.lrr": 1}, "did you mean `lr`?"),
        (YAML, {"stages.7.steps": 1}, "`stages.7.steps` is no key of"),
        (YAML, {"save.x": 1}, "`save.x` is no key of"),
        ("a: [", {"a": 1}, "cannot be read"),
        ("- 1", {"a": 1}, "has no keys at its top"),
        (YAML, {"save": "{nowhere}"}, "nothing is called {nowhere}"),
    ],
)
def test_what_a_template_does_not_have_is_refused(
    tmp_path: Path, text: str, keys: dict[str, Any], told: str
) -> None:
    template = tmp_path / "mine.yaml"
    template.write_text(text)
    settings = {"template": str(template), "set": keys}
    assert told in refusal(command=["train", "{settings}"], settings=settings)


def test_a_template_that_is_missing_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    gone = {"template": str(tmp_path / "gone.yaml"), "set": {}}
    assert "gone.yaml: No such file" in refusal(command=["t", "{settings}"], settings=gone)
    other = tmp_path / "mine.ini"
    other.write_text("x")
    ends = {"template": str(other), "set": {}}
    assert "ends with none of .yaml" in refusal(command=["t", "{settings}"], settings=ends)
