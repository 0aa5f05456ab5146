"""Runs of another schedule beside the study, and branches that keep their rate for a while."""

import json
from pathlib import Path
from typing import Any

import pytest

from autoexp.backends.command.backend import CommandBackend
from autoexp.backends.protocol import Branch
from autoexp.config.compose import compose
from autoexp.config.experiment import Experiment
from autoexp.dotted import setting
from autoexp.errors import BadInput
from autoexp.jobs.spec import JobSpec
from autoexp.model import COMPOSING
from autoexp.monitor.replay import Rehearsal
from autoexp.planning.plan import Plan, make_plan
from autoexp.planning.study import plan_study
from autoexp.rules.events import MetricAlarm
from autoexp.states import Kind
from tests.core.backends.conformance.megatron import ARGS, STAND_IN

OUT = Path("/out")
COSINE = {"decay": {"shape": "cosine"}}
DESCRIBED = {
    "kind": "command",
    "command": ["train", "--steps", "{train_iters}"],
    "cooldown": {"--decay": "{decay_iterations}"},
    "saves": {"name": "{iteration}", "must_exist": ["x"]},
    "log_line": r"(?P<iteration>\d+) (?P<loss>\S+)",
    "args": {"train_iters": 1000, "save_interval": 100, "lr": 0.1, "lr_warmup_iters": 50},
}


def study(backend: dict[str, Any], **content: Any) -> Plan:
    whole = {"project": {"name": "p"}, "slurm": {"kind": "local"}, "backend": backend, **content}
    return make_plan(Experiment.model_validate(whole), OUT)


def of_demo(*baselines: dict[str, Any], **content: Any) -> Plan:
    """A trunk of the demo of 1000 iterations, 50 of them of warm-up."""
    backend = {"kind": "demo", "args": {"train_iters": 1000, "save_interval": 100}}
    return study(backend, baselines=list(baselines), **content)


def of_megatron(*baselines: dict[str, Any], **args: Any) -> Plan:
    own = {**ARGS, "train_iters": 1000, "save_interval": 100, "lr_warmup_iters": 50, **args}
    return study({"kind": "megatron", "source": str(STAND_IN), "args": own}, baselines=baselines)


def described(*baselines: dict[str, Any], **changes: Any) -> Plan:
    cooldowns = changes.pop("cooldowns", [])
    return study({**DESCRIBED, **changes}, baselines=baselines, cooldowns=cooldowns)


def demo(*cooldowns: dict[str, Any]) -> Plan:
    return of_demo(cooldowns=list(cooldowns))


def megatron(*cooldowns: dict[str, Any]) -> Plan:
    backend = {"kind": "megatron", "source": str(STAND_IN), "args": {**ARGS, "train_iters": 1000}}
    return study(backend, cooldowns=cooldowns)


def option(job: JobSpec, name: str) -> str:
    return job.command[job.command.index(name) + 1]


def decay_of(job: JobSpec) -> Branch:
    assert job.decay is not None
    return job.decay


def refusal(*baselines: dict[str, Any], make: Any = of_demo, **more: Any) -> str:
    with pytest.raises((BadInput, ValueError)) as refused:
        make(*baselines, **more)
    return str(refused.value)


# What they are


def test_a_cosine_runs_from_scratch_and_falls_from_the_warm_up_to_the_end() -> None:
    trunk, job = of_demo(COSINE).jobs
    assert (job.name, job.kind, job.parent) == ("p-base1000-cosine", Kind.BASELINE, "p")
    assert (job.target_iteration, job.starts_at, job.waits) == (1000, None, False)
    assert decay_of(job) == Branch(
        iteration=0, stable_iterations=50, decay_iterations=950, shape="cosine", min_lr=0.0
    )
    assert "--exit-on-missing-checkpoint" not in job.command
    assert job.save_dir != trunk.save_dir
    rates = [job.trainer.planned_rate(decay_of(job), at) for at in (0, 25, 50, 525, 1000)]
    assert rates == pytest.approx([0.0, 5e-3, 1e-2, 5e-3, 0.0])


def test_a_one_run_wsd_of_each_length_decays_at_its_end() -> None:
    plan = of_demo({"name": "wsd", "totals": [500, "102400"], "decay": {"fraction": 0.2}})
    assert [job.name for job in plan.jobs[1:]] == ["p-base500-wsd", "p-base102400-wsd"]
    first = decay_of(plan.jobs[1])
    assert (first.falls_from, first.target) == (400, 500)
    tokens = of_demo({"totals": ["128K tokens"], "decay": {"tokens": "25.6K"}}).jobs[1]
    assert (decay_of(tokens).falls_from, tokens.target_iteration) == (400, 500)


def test_a_baseline_has_settings_of_its_own_and_may_be_swept() -> None:
    entry = {"decay": {"shape": "cosine"}, "sweep": {"backend.args.lr": [0.01, 0.02]}}
    plan = of_demo({**entry, "backend": {"args": {"global_batch_size": 64}}})
    one, two = plan.jobs[1:]
    assert [job.name for job in (one, two)] == ["p-base1000-lr0.01", "p-base1000-lr0.02"]
    assert one.changes == {"backend.args.global_batch_size": 64}
    assert two.trainer.planned_rate(decay_of(two), 50) == 0.02
    # From scratch nothing has to be as a checkpoint has it.
    other = of_demo({**COSINE, "backend": {"args": {"hidden_size": 16}}}).jobs[1]
    assert option(other, "--hidden-size") == "16"


def test_each_point_of_a_sweep_has_its_baselines() -> None:
    composed = compose("demo", ["backend.args.lr=0.01,0.02"], setting({"baselines": [COSINE]}))
    names = [job.name for job in plan_study(composed, OUT).jobs if job.kind is Kind.BASELINE]
    assert len(names) == len(set(names)) == 2


def test_its_cost_is_counted_apart() -> None:
    cost = of_demo(COSINE, cooldowns=[{"at": [500], "decay": {"iterations": 50}}]).cost
    assert cost is not None
    assert (cost.iterations, cost.separate_iterations) == (1050, 550)
    assert cost.baseline_iterations == 1000


def test_stages_for_each_cooldown_are_of_baselines_too() -> None:
    look = {"each": "cooldown", "command": ["look", "{sibling.cooldown.checkpoint_path}"]}
    names = [job.name for job in of_demo(COSINE, stages={"look": look}).jobs]
    assert names == ["p", "p-base1000-cosine", "p-base1000-cosine-look"]
    after = {"command": ["look", "{sibling.base1000-cosine.checkpoint_path}"]}
    waiting = of_demo(COSINE, stages={"look": after}).jobs[-1]
    assert [each.job for each in waiting.awaits] == ["p-base1000-cosine"]


def test_the_training_alone_is_told_to_save_at_branch_points() -> None:
    plan = of_demo(COSINE, cooldowns=[{"at": [450], "decay": {"iterations": 50}}])
    assert ["--save-at" in job.command for job in plan.jobs] == [True, False, False]
    assert plan.jobs[-1].changes == {}


def test_megatron_decays_behind_its_warm_up_and_may_end_at_a_rate_of_its_own() -> None:
    job = of_megatron({"decay": {"shape": "cosine", "min_lr": 1e-5}}).jobs[1]
    names = ("train-iters", "lr-decay-iters", "lr-wsd-decay-iters", "lr-warmup-iters")
    assert [option(job, f"--{name}") for name in names] == ["1000", "1000", "950", "50"]
    assert option(job, "--lr-wsd-decay-style") == "cosine"
    assert job.command.count("--min-lr") == 1
    assert float(option(job, "--min-lr")) == 1e-5
    assert "--exit-on-missing-checkpoint" not in job.command


def test_megatrons_growing_batch_is_counted_in_samples() -> None:
    job = of_megatron({"decay": {"fraction": 0.2}}, rampup_batch_size=[4, 2, 400]).jobs[1]
    batches = job.trainer.batches(1)
    assert batches is not None
    end, start = batches.samples(1000), batches.samples(800)
    assert option(job, "--lr-decay-samples") == str(end)
    assert option(job, "--lr-wsd-decay-samples") == str(end - start)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"decay": {"iterations": 990}}, "50 are the warm-up: no room for a decay over 990"),
        ({"totals": [40], "decay": {}}, "of its 40 iterations 50 are the warm-up"),
        ({**COSINE, "backend": {"args": {"train_iters": 9000}}}, "its length is `totals`"),
        ({**COSINE, "backend": {"args": {"lr": -1}}}, "Input should be greater than 0"),
        ({"decay": {"min_lr": 0.5}}, "min_lr 0.5 is not below lr 0.01"),
        ({"decay": {"iterations": 9, "fraction": 0.1}}, "give one of `decay.iterations`"),
        ({"decay": {}, "then": []}, "then"),
        ({"decay": {}, "at": [5]}, "at"),
    ],
)
def test_a_baseline_that_cannot_be_is_refused_with_the_reason(entry: Any, why: str) -> None:
    assert why in refusal(entry)


def test_two_of_one_name_and_one_beside_no_training_are_refused() -> None:
    assert "a second job named p-base1000-cosine; give this baseline a `name`" in refusal(
        COSINE, COSINE
    )
    start = {"iteration": 500, "path": "/nowhere"}
    cooldowns = [{"at": [500], "decay": {"iterations": 50}}]
    found = refusal(COSINE, start=start, cooldowns=cooldowns)
    assert "baselines.0: there is a checkpoint to start from, and no training beside" in found


# The guard of its rate


@pytest.mark.parametrize(("keeps_its_rate", "fires"), [(True, ["cooldown_rate"]), (False, [])])
def test_production_watches_the_rate_of_a_baseline_from_its_warm_up_on(
    tmp_path: Path, keeps_its_rate: bool, fires: list[str]
) -> None:
    words = ["monitoring=production", "backend.args.train_iters=600", "cooldowns=[]"]
    experiment = compose("demo", [*words, "baselines=[{decay: {shape: cosine}}]"]).experiment
    job = make_plan(experiment, OUT).jobs[1]
    lines = []
    for at in range(10, 601, 10):
        planned = job.trainer.planned_rate(decay_of(job), at)
        rate = 1e-2 if keeps_its_rate and at > 50 else planned
        lines.append(
            f" [2026-08-22 10:00:00] iteration {at}/ 600 | consumed samples: 1 | elapsed time per "
            f"iteration (ms): 800.0 | learning rate: {rate:E} | lm loss: 2.4E+00 |\n"
        )
    log = tmp_path / "job.log"
    log.write_text("".join(lines))
    events = [found.event for found in Rehearsal(experiment, log, Kind.BASELINE).run()]
    assert [event.rule for event in events if isinstance(event, MetricAlarm)] == fires


# Trainers that are described in YAML


def test_a_described_trainer_says_how_its_rate_decays_in_a_run_from_scratch() -> None:
    found = refusal({"decay": {}}, make=described)
    assert "baselines.0: minus_sqrt, 1000: the description has no `backend.baseline`" in found
    options = {"--decay-from": "{decay_start}", "--shape": "{shape}"}
    job = described({"decay": {"fraction": 0.1}}, baseline=options).jobs[1]
    wanted = "train --steps 1000 --decay-from 900 --shape minus_sqrt"
    assert list(job.command) == wanted.split()
    # Its warm-up is not described.
    rates = [job.trainer.planned_rate(decay_of(job), at) for at in (20, 50, 1000)]
    assert rates == [None, 0.1, 0.0]


def test_one_that_says_no_place_decays_over_its_whole_length_alone() -> None:
    options = {"--schedule": "cosine"}
    found = refusal({"decay": {"fraction": 0.1}}, make=described, baseline=options)
    assert "so leave the decay's length out" in found
    job = described(COSINE, baseline=options).jobs[1]
    assert job.command[-2:] == ("--schedule", "cosine")


def test_a_settings_file_of_a_baseline_has_the_keys_of_baselines(tmp_path: Path) -> None:
    template = tmp_path / "run.json"
    template.write_text(json.dumps({"steps": 1, "decay": 0, "saves": ""}))
    backend = {
        **{key: value for key, value in DESCRIBED.items() if key != "cooldown"},
        "command": ["train", "{settings}"],
        "settings": {
            "template": str(template),
            "set": {"steps": "{train_iters}"},
            "cooldown": {"decay": "{decay_iterations}"},
            "baseline": {"decay": "{decay_start}"},
            "save_at": {"saves": "{save_at}"},
        },
    }
    read = CommandBackend.model_validate(backend, context=COMPOSING)
    told = read.saving_at([640, 450])
    decay = Branch(
        iteration=0, stable_iterations=900, decay_iterations=100, shape="linear", min_lr=0.0
    )
    made = [next(iter(told.files(each, OUT).values())) for each in (None, decay)]
    assert [json.loads(text) for text in made] == [
        {"steps": 1000, "decay": 0, "saves": "450,640"},
        {"steps": 1000, "decay": 900, "saves": ""},
    ]
    assert told.refusals(decay) == []


# Branches that keep their rate for a while


def test_a_branch_keeps_its_rate_before_it_decays() -> None:
    job = demo({"at": [500], "stable": 100, "decay": {"iterations": 50}}).cooldowns[0]
    branch = decay_of(job)
    assert (branch.iteration, branch.falls_from, branch.target) == (500, 600, 650)
    names = ("train-iters", "lr-decay-iters", "lr-wsd-decay-iters")
    assert [option(job, f"--{name}") for name in names] == ["650", "650", "50"]
    rates = [job.trainer.planned_rate(branch, at) for at in (500, 600, 650)]
    assert rates == [1e-2, 1e-2, 0.0]


def test_a_chain_of_such_branches_is_wsd_s() -> None:
    """The training goes on from each cooled model, at its peak rate."""
    chain = {"at": [400], "decay": {"iterations": 100}}
    chain["then"] = [{"stable": 300, "decay": {"iterations": 200}}]  # type: ignore[list-item]
    first, second = demo(chain).cooldowns
    assert (second.parent, second.starts_at) == (first.name, 500)
    assert (decay_of(second).falls_from, second.target_iteration) == (800, 1000)
    assert second.trainer.planned_rate(decay_of(second), 501) == 1e-2


@pytest.mark.parametrize(
    ("stable", "decay", "length"),
    [
        ("25.6K tokens", {"iterations": 50}, (100, 50)),
        (100, {"tokens": "12.8K"}, (100, 50)),
        (100, {"fraction": 0.25}, (100, 200)),  # C = f (N0 + S + C)
    ],
)
def test_its_lengths_are_counted_behind_the_branch_point(
    stable: Any, decay: Any, length: tuple[int, int]
) -> None:
    branch = decay_of(demo({"at": [500], "stable": stable, "decay": decay}).cooldowns[0])
    assert (branch.stable_iterations, branch.decay_iterations) == length


def test_megatrons_decay_begins_behind_the_stable_part() -> None:
    job = megatron({"at": [500], "stable": 100, "decay": {"iterations": 50}}).cooldowns[0]
    names = ("train-iters", "lr-decay-iters", "lr-wsd-decay-iters")
    assert [option(job, f"--{name}") for name in names] == ["650", "650", "50"]


def test_a_budget_has_no_stable_part() -> None:
    entry = {"budgets": {"totals": [800]}, "stable": 100}
    assert "leave `stable` out" in refusal(make=lambda: demo(entry))


def test_a_described_trainer_needs_the_place_where_the_decay_begins() -> None:
    entry = {"at": [500], "stable": 100, "decay": {"iterations": 50}}
    old = {"--warmup": "{branch_iteration}"}
    assert "no `stable`" in refusal(make=described, cooldown=old, cooldowns=[entry])
    new = {"--decay-from": "{decay_start}"}
    job = described(cooldown=new, cooldowns=[entry]).cooldowns[0]
    assert job.command[-2:] == ("--decay-from", "600")
    # One that says the length alone decays at its end, wherever it begins.
    job = described(cooldowns=[entry]).cooldowns[0]
    assert job.command == ("train", "--steps", "650", "--decay", "50")


# Saves off the grid, of a trainer that says how it is told


def test_a_described_trainer_is_told_to_save_at_branch_points_off_its_interval() -> None:
    entry = {"at": [300, 450, 620], "decay": {"iterations": 50}}
    plan = described(save_at={"--save-at": "{save_at}"}, cooldowns=[entry])
    assert plan.trunk.command == ("train", "--steps", "1000", "--save-at", "450,620")
    assert [decay_of(job).iteration for job in plan.cooldowns] == [300, 450, 620]
    assert all("--save-at" not in job.command for job in plan.cooldowns)
    assert "told to save at 450, 620" in plan.notes[0]
    on_grid = described(save_at={"--save-at": "{save_at}"}, cooldowns=[{**entry, "at": [300]}])
    assert on_grid.trunk.command == ("train", "--steps", "1000")


def test_one_that_does_not_say_it_branches_at_the_checkpoint_before() -> None:
    plan = described(cooldowns=[{"at": [450], "decay": {"iterations": 50}}])
    assert [decay_of(job).iteration for job in plan.cooldowns] == [400]
    args = {**DESCRIBED["args"], "save_at": [450]}
    assert "say in `save_at` how the trainer is told" in refusal(make=described, args=args)
    assert "nothing is called {saves}" in refusal(make=described, save_at={"--at": "{saves}"})
