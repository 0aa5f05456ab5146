"""A plan counts the jobs that rules will launch, with what they ask for."""

from pathlib import Path
from typing import Any

import pytest

from autoexp.config.compose import Composed, compose
from autoexp.dotted import setting
from autoexp.planning.plan import Plan, above_budget, headline
from autoexp.planning.study import plan_study
from autoexp.reports.plan_tree import as_text

SIZE = (
    "backend.args.train_iters=450",
    "backend.args.save_interval=100",
    "cooldowns=[{at: [200], decay: {iterations: 150}}]",
)
GPUS = ("slurm=local_cluster", "slurm.time_limit_min=30")


NAME = "project.name=tiny"
COMMAND = {"name": "{job.name}-x", "command": ["true"]}


def composed_with(rules: dict[str, Any], *words: str) -> Composed:
    changes = {f"monitoring.{kind}": named for kind, named in rules.items()}
    return compose("demo", [*SIZE, *words], setting(changes))


def at_checkpoints(event: dict[str, Any], **launch: Any) -> dict[str, Any]:
    actions = [{"launch": {**COMMAND, **launch}}]
    return {"checkpoint_events": {"look": {**event, "actions": actions}}}


def planned(composed: Composed) -> Plan:
    return plan_study(composed, Path("/out"))


@pytest.mark.parametrize(
    ("event", "counts"),
    [
        ({"every": 100}, {"tiny": 4}),
        ({"jobs": ["train"]}, {"tiny": 5}),  # the last one is saved where the training ends
        ({"last": True}, {"tiny": 1}),
        ({"at": [100, 999]}, {"tiny": 1}),
        ({"jobs": ["cooldown"]}, {"tiny-cd200": 2}),
        ({"jobs": ["train", "tiny-cd200"], "range": [300, 400]}, {"tiny": 2, "tiny-cd200": 2}),
        ({"jobs": ["evaluate"]}, {}),
    ],
)
def test_each_checkpoint_that_a_rule_is_about_is_a_launch(
    event: dict[str, Any], counts: dict[str, int]
) -> None:
    plan = planned(composed_with(at_checkpoints(event), NAME))
    assert {launches.job: launches.count for launches in plan.launches} == counts


def test_what_launched_jobs_ask_for_is_in_the_tree_and_in_the_hours() -> None:
    rules = at_checkpoints({"last": True}, set={"slurm.nodes": 1})
    composed = composed_with(rules, NAME, *GPUS, "budget.confirm_above=7")
    plan = planned(composed)
    (launches,) = plan.launches
    assert (launches.gpus, launches.limit_min, launches.gpu_hours) == (4, 30.0, 2.0)
    assert plan.hours.gpu_hours == 6.0
    assert headline(plan).startswith("2 jobs: 1 train, 1 cooldown, and 1 launched by rules; ")
    assert "── 1 × evaluate  by rule look  4 GPUs  ≤ 30 min" in as_text(plan, composed)
    assert above_budget(composed.experiment.budget, plan) is None
    more = plan.model_copy(update={"launches": (launches,) * 2})
    assert "8.00 GPU hours" in str(above_budget(composed.experiment.budget, more))


def test_a_launch_of_unknown_size_is_a_job_of_unknown_length() -> None:
    rules = at_checkpoints({"last": True}, set={"slurm.nodes": "{job.iteration}"})
    plan = planned(composed_with(rules, NAME, *GPUS))
    assert plan.launches[0].gpus is None and plan.hours.unknown == 1


def test_what_follows_the_end_of_all_trainings_is_counted_once_in_a_sweep() -> None:
    actions = [{"launch": {**COMMAND, "name": "all", "as_kind": "command"}}]
    rules = {"session_events": {"done": {"trunks_finished": True, "actions": actions}}}
    composed = composed_with(rules, "backend.args.seed=1,2,3")
    plan = planned(composed)
    assert [(each.job, each.count) for each in plan.launches] == [("", 1)]
    assert as_text(plan, composed).count("1 × command  by rule done") == 1
