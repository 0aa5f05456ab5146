"""Branch points where the trainer does not save by itself: it is told, or they are moved."""

import re
from pathlib import Path
from typing import Any

import pytest

from autoexp.backends.demo import DemoBackend
from autoexp.config.compose import compose
from autoexp.config.experiment import Experiment
from autoexp.demo import model as language
from autoexp.demo import trainer
from autoexp.dotted import setting
from autoexp.errors import BadInput
from autoexp.planning.plan import Plan, make_plan
from tests.builders import TINY
from tests.core.backends.conformance.megatron import ARGS, STAND_IN

FIFTY = {"iterations": 50}


def planned(*cooldowns: dict[str, Any], root: Path = Path("/out"), **args: Any) -> Plan:
    """A trunk of the demo, of 1000 iterations, which saves every 100."""
    settings = {
        "cooldowns": list(cooldowns),
        **{f"backend.args.{key}": value for key, value in args.items()},
    }
    words = [*TINY[:1], "backend.args.train_iters=1000", "backend.args.save_interval=100"]
    return make_plan(compose("demo", words, setting(settings)).experiment, root)


def megatron(*cooldowns: dict[str, Any]) -> Plan:
    """The same of Megatron, which saves at its interval alone."""
    args = {**ARGS, "train_iters": 1000, "save_interval": 100, "lr_warmup_iters": 10}
    content = {
        "project": {"name": "p"},
        "backend": {"kind": "megatron", "source": str(STAND_IN), "args": args},
        "slurm": {"kind": "local"},
        "cooldowns": cooldowns,
    }
    return make_plan(Experiment.model_validate(content), Path("/out"))


def points(plan: Plan) -> list[int]:
    return [job.branch.iteration for job in plan.cooldowns if job.branch is not None]


def told(command: tuple[str, ...]) -> str | None:
    return command[command.index("--save-at") + 1] if "--save-at" in command else None


def test_a_trainer_that_can_be_told_saves_at_each_branch_point_off_the_grid() -> None:
    plan = planned(
        {"at": [300, 450], "decay": FIFTY},
        {"budgets": {"totals": [800], "fraction": 0.2}, "name": "b"},
    )
    assert points(plan) == [300, 450, 640]
    assert told(plan.trunk.command) == "450,640"
    assert [told(job.command) for job in plan.cooldowns] == [None] * 3
    assert [job.changes for job in plan.cooldowns] == [{}] * 3
    assert plan.notes == (
        "the training is told to save at 450, 640, besides every 100: branch points",
    )


def test_nothing_is_told_where_all_points_are_on_the_grid() -> None:
    plan = planned({"every": 300, "decay": FIFTY})
    assert (told(plan.trunk.command), plan.notes) == (None, ())
    assert plan.trunk.backend == plan.cooldowns[0].backend


def test_saves_of_ones_own_are_branch_points_too_and_stages_may_wait_for_them() -> None:
    plan = planned({"at": [450, 520], "decay": FIFTY}, save_at=[450])
    assert told(plan.trunk.command) == "450,520"
    assert plan.notes[0].startswith("the training is told to save at 520, ")
    stages = {"look": {"command": ["x"], "after": {"stable": {"checkpoint": 50}}}}
    settings = {"stages": stages, "backend.args.save_at": [50]}
    plan = make_plan(compose("demo", TINY, setting(settings)).experiment, Path("/out"))
    assert plan.jobs[-1].awaits[0].checkpoint == 50


def test_the_last_iteration_is_a_branch_point_and_a_merge_is_of_the_same_trainer() -> None:
    settings = {
        "backend.args.train_iters": 350,
        "cooldowns": [{"at": [350], "decay": FIFTY}],
        "merges": [{"at": [300], "last": 200}],
    }
    plan = make_plan(compose("demo", TINY, setting(settings)).experiment, Path("/out"))
    assert points(plan) == [350]
    assert {job.backend for job in plan.jobs} == {plan.trunk.backend}


def test_the_demos_trainer_saves_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken = language.draw_language(1)
    monkeypatch.setattr(language, "draw_language", lambda _seed, _kind="web": spoken)
    small = {"hidden_size": 8, "embedding_size": 4, "seq_length": 3, "global_batch_size": 8}
    args = {**small, "train_iters": 20, "save_interval": 10, "lr_warmup_iters": 0}
    trunk = planned({"at": [13], "decay": {"iterations": 5}}, root=tmp_path, **args).trunk
    assert trainer.main([*trunk.command[3:]]) == 0
    assert sorted(int(x.name[5:]) for x in Path(trunk.save_dir).glob("iter_*")) == [10, 13, 20]


def test_a_moved_branch_point_costs_a_share_of_the_budget_which_the_plan_says() -> None:
    plan = megatron({"at": [450], "decay": FIFTY})
    assert points(plan) == [400]
    moved = "cooldowns.0: 450: branches at 400, the checkpoint before 450 (save_interval 100)"
    assert f"{moved}, 10 % of its budget earlier" in plan.notes
    plan = megatron({"budgets": {"totals": [800], "fraction": 0.2}})
    assert any(note.endswith("5 % of its budget earlier") for note in plan.notes)


@pytest.mark.parametrize(("most", "fits"), [(0.1, True), (0.09, False), (0, False)])
def test_a_move_above_the_limit_is_refused_with_what_to_do(most: float, fits: bool) -> None:
    cooldown = {"at": [450], "decay": FIFTY, "snap_at_most": most}
    if fits:
        assert points(megatron(cooldown)) == [400]
        return
    why = f"10 % of its budget before 450, and snap_at_most is {100 * most:g} %: move the point"
    with pytest.raises(BadInput, match=re.escape(f"cooldowns.0: 450: branches at 400, {why}")):
        megatron(cooldown)


def test_the_limit_says_nothing_against_points_that_are_not_moved() -> None:
    cooldown = {"at": [300, 450], "decay": FIFTY, "snap_at_most": 0}
    assert points(planned(cooldown)) == [300, 450]


@pytest.mark.parametrize("value", [-0.1, 1, 2])
def test_a_limit_that_is_no_share_is_refused(value: float) -> None:
    with pytest.raises(BadInput, match="snap_at_most"):
        planned({"at": [450], "decay": FIFTY, "snap_at_most": value})


def test_a_trainer_that_cannot_be_told_stays_as_it_is() -> None:
    trunk = megatron({"at": [450], "decay": FIFTY}).trunk
    assert trunk.trainer.saving_at([450]) is trunk.trainer
    assert trunk.trainer.extra_saves == ()
    assert DemoBackend().saving_at([450]).extra_saves == (450,)
