"""Transformers' own parser and schedules, against what plans give them."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from autoexp.backends.huggingface.backend import HuggingFaceBackend
from autoexp.config.compose import compose
from autoexp.jobs.spec import JobSpec
from autoexp.planning.plan import make_plan
from autoexp.schedulers.launch import payload_spec
from tests.sources import ROOT
from tests.trainers.real import read_by, torch_python

PARSE = """
import json, sys
from transformers import HfArgumentParser, TrainingArguments
for line in json.load(sys.stdin):
    parsed, rest = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(
        line, return_remaining_strings=True
    )
    names = ("output_dir", "max_steps", "lr_scheduler_type", "lr_scheduler_kwargs")
    print(json.dumps([*(getattr(parsed, name) for name in names), rest]))
"""
RATES = """
import json, sys, torch
from transformers import get_scheduler
for settings in json.load(sys.stdin):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=settings["learning_rate"])
    schedule = get_scheduler(
        settings["lr_scheduler"],
        optimizer,
        num_warmup_steps=settings["warmup_steps"],
        num_training_steps=settings["max_steps"],
        scheduler_specific_kwargs=settings["lr_scheduler_kwargs"],
    )
    rates = []
    for _ in range(settings["max_steps"]):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    print(json.dumps(rates))
"""

# As Trainer.create_scheduler and _load_optimizer_and_scheduler do it.
RESUMED_RATES = """
import json, sys, torch
from transformers import HfArgumentParser, TrainingArguments, get_scheduler

def schedule_of(line):
    parsed, _ = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(
        line, return_remaining_strings=True
    )
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=parsed.learning_rate)
    return optimizer, get_scheduler(
        parsed.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=parsed.get_warmup_steps(parsed.max_steps),
        num_training_steps=parsed.max_steps,
        scheduler_specific_kwargs=parsed.lr_scheduler_kwargs,
    )

def stepped(optimizer, schedule, steps):
    for _ in range(steps):
        optimizer.step()
        schedule.step()
    return schedule.get_last_lr()[0]

for trunk, branch, at, end in json.load(sys.stdin):
    optimizer, schedule = schedule_of(trunk)
    stepped(optimizer, schedule, at)
    states = optimizer.state_dict(), schedule.state_dict()
    optimizer, schedule = schedule_of(branch)
    for each, state in zip((optimizer, schedule), states if at else ()):
        each.load_state_dict(state)
    rates = [schedule.get_last_lr()[0]]
    print(json.dumps(rates + [stepped(optimizer, schedule, 1) for _ in range(at, end)]))
"""

EPOCHS = """
import json, sys, torch
from transformers import Trainer, TrainingArguments

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return {"loss": (x * self.weight).sum()}

for samples, epochs, settings in json.load(sys.stdin):
    options = TrainingArguments(
        "out", num_train_epochs=epochs, use_cpu=True, report_to="none", save_strategy="no",
        disable_tqdm=True, logging_strategy="no", **settings,
    )
    data = [{"x": torch.ones(1)} for _ in range(samples)]
    trainer = Trainer(Model(), options, train_dataset=data)
    trainer.train()
    print(json.dumps([trainer.state.global_step]))
"""


def asked(code: str, value: object) -> list[object]:
    python = torch_python("torch", "transformers", "accelerate")
    answer = subprocess.run(
        [python, "-c", code], input=json.dumps(value), capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    return [json.loads(line) for line in answer.stdout.splitlines()]


def planned(
    *overrides: str, at: int, length: int, shape: str, min_lr: float = 0
) -> tuple[JobSpec, ...]:
    decay = f"{{iterations: {length}, shape: {shape}, min_lr: {min_lr}}}"
    cooldown = f"cooldowns=[{{at: [{at}], decay: {decay}}}]"
    words = ["project.name=p", *overrides, cooldown]
    return make_plan(compose(None, words).experiment, Path("/out")).jobs


@pytest.mark.parametrize(("shape", "real"), [("minus_sqrt", "1-sqrt"), ("linear", "linear")])
def test_the_parser_takes_every_word_of_a_plan_but_those_of_the_script(
    shape: str, real: str
) -> None:
    jobs = planned("backend=huggingface", at=200, length=60, shape=shape)
    lines = [list(job.command[job.command.index("--output_dir") :]) for job in jobs]
    trunk, branch = asked(PARSE, lines)
    own = ["--hidden_size", "64", "--layers", "2", "--sequence_length", "32"]
    decay = {"num_decay_steps": 60, "decay_type": real, "min_lr_ratio": 0.0}
    assert isinstance(trunk, list)
    assert isinstance(branch, list)
    assert [trunk[0], trunk[1], trunk[-1]] == ["/out/p/checkpoints", 400, own]
    name = "/out/p-cd200/checkpoints"
    assert branch == [name, 260, "warmup_stable_decay", decay, own]


def test_lengths_in_epochs_are_as_many_steps_as_the_trainer_makes_of_them() -> None:
    cases = [
        (samples, 3, {"per_device_train_batch_size": 8, "gradient_accumulation_steps": each, **own})
        for samples in (5, 64, 100)
        for each in (1, 3)
        for own in ({}, {"dataloader_drop_last": True})
        if samples >= 8 or not own  # the Trainer makes nothing of no whole pass
    ]
    words = ["project.name=p", "backend=huggingface", "cooldowns=[]", "backend.args.warmup_steps=0"]
    planned = []
    for samples, epochs, settings in cases:
        args = [f"++backend.args.{key}={value}" for key, value in settings.items()]
        length = [f"backend.samples={samples}", f"backend.args.max_steps={epochs} epochs"]
        plan = make_plan(compose(None, [*words, *args, *length]).experiment, Path("/out"))
        planned.append([plan.trunk.target_iteration])
    assert planned == read_by([torch_python("torch", "transformers"), "-c", EPOCHS], cases)


def test_a_schedule_of_a_trainings_own_is_the_one_that_the_trainer_makes() -> None:
    schedule = "backend.args.lr_scheduler_type=cosine_with_min_lr"
    settings = "backend.args.lr_scheduler_kwargs={min_lr_rate: 0.1}"
    words = ["backend=huggingface", "project.name=p", schedule, settings, "cooldowns=[]"]
    (job,) = make_plan(compose(None, words).experiment, Path("/out")).jobs
    line = list(job.command[job.command.index("--output_dir") :])
    (rates,) = asked(RESUMED_RATES, [[line, line, 0, 400]])
    assert isinstance(rates, list)
    assert isinstance(job.trainer, HuggingFaceBackend)
    peak = job.trainer.args.learning_rate
    assert max(rates) == pytest.approx(peak, rel=0.01)
    assert rates[-1] == pytest.approx(0.1 * peak, rel=0.01)


@pytest.mark.parametrize("shape", ["minus_sqrt", "linear", "cosine"])
def test_the_schedules_that_axolotl_is_told_are_the_planned_ones(shape: str) -> None:
    template = ROOT / "tests" / "data" / "settings" / "axolotl.yaml"
    lengths = ["backend.args.train_iters=300", "backend.args.save_interval=100"]
    own = ["backend=axolotl", f"backend.settings.template={template}", *lengths]
    trunk, branch = planned(*own, at=200, length=80, shape=shape)
    files = [payload_spec(job.machine, job, "k").files for job in (trunk, branch)]
    first, cooled = asked(RATES, [yaml.safe_load(next(iter(each.values()))) for each in files])
    assert isinstance(first, list)
    assert isinstance(cooled, list)
    assert branch.branch is not None
    assert {round(rate, 12) for rate in first[50:]} == {2e-5}
    for at in range(200, 280):
        wanted = branch.trainer.planned_rate(branch.branch, at)
        assert cooled[at] == pytest.approx(wanted, abs=0.01 * 2e-5)


def test_the_trainers_own_schedule_behind_a_checkpoint_follows_the_planned_curve() -> None:
    """Of every shape that it has, with and without a floor, at every step."""
    plans = [
        planned("backend=huggingface", at=200, length=60, shape=shape, min_lr=min_lr)
        for shape in ("minus_sqrt", "linear", "cosine")
        for min_lr in (0, 1e-4)
    ]
    lines = [[list(job.command[job.command.index("--output_dir") :]) for job in p] for p in plans]
    found = asked(RESUMED_RATES, [[*line, 200, 260] for line in lines])
    for (_, job), rates in zip(plans, found, strict=True):
        follows_its_plan(job, rates, 200)


def follows_its_plan(job: JobSpec, rates: object, at: int) -> None:
    assert isinstance(rates, list)
    assert job.decay is not None
    for iteration, rate in enumerate(rates, start=at):
        wanted = job.trainer.planned_rate(job.decay, iteration)
        assert rate == pytest.approx(wanted, rel=0.01, abs=1e-12), (job.name, iteration)


def test_its_schedule_follows_the_plans_of_baselines_and_of_branches_that_keep_their_rate() -> None:
    shapes = ("minus_sqrt", "linear", "cosine")
    runs = ", ".join(
        f"{{name: b{place}-{shape}, totals: [300], decay: {{shape: {shape}{length}}}}}"
        for shape in shapes
        for place, length in enumerate(("", ", fraction: 0.2, min_lr: 1.0e-4"))
    )
    branches = ", ".join(
        f"{{at: [200], stable: 40, name: {shape}, decay: {{iterations: 20, shape: {shape}}}}}"
        for shape in shapes
    )
    words = ["project.name=p", "backend=huggingface", "backend.args.warmup_steps=20"]
    own = [f"cooldowns=[{branches}]", f"baselines=[{runs}]"]
    trunk, *jobs = make_plan(compose(None, [*words, *own]).experiment, Path("/out")).jobs
    lines = [list(job.command[job.command.index("--output_dir") :]) for job in (trunk, *jobs)]
    starts = [0 if job.baseline else 200 for job in jobs]
    ends = [job.target_iteration for job in jobs]
    cases = [[lines[0], *case] for case in zip(lines[1:], starts, ends, strict=True)]
    for job, rates, at in zip(jobs, asked(RESUMED_RATES, cases), starts, strict=True):
        follows_its_plan(job, rates, at)
