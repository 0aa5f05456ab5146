"""Plans: from an experiment to its jobs, and every cooldown that cannot happen refused at once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoexp.backends.base import BackendBase
from autoexp.backends.demo import DemoBackend
from autoexp.config.compose import Composed, compose
from autoexp.config.experiment import CheckpointSource, Experiment, Project
from autoexp.errors import BadInput
from autoexp.planning.plan import Plan, make_plan
from autoexp.session.session import Session
from tests.builders import create

ROOT = Path("/out")
FIFTY = {"iterations": 50}


@pytest.fixture(autouse=True, scope="module")
def _saves_at_its_interval_alone() -> Iterator[None]:
    """As trainers do that cannot be told; tests/core/planning/test_off_grid.py has the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DemoBackend, "saving_at", BackendBase.saving_at)
        yield


def experiment(*cooldowns: dict[str, Any], **args: Any) -> Experiment:
    """A trunk of 1000 iterations that saves every 100, with a warm-up of 50."""
    args = {"train_iters": 1000, "save_interval": 100, "lr_warmup_iters": 50} | args
    content = {
        "project": {"name": "p"},
        "backend": {"kind": "demo", "args": args},
        "slurm": {"kind": "local"},
        "cooldowns": cooldowns,
    }
    return Experiment.model_validate(content)


def planned(*cooldowns: dict[str, Any], **args: Any) -> Plan:
    return make_plan(experiment(*cooldowns, **args), ROOT)


def branches(plan: Plan) -> list[tuple[int, int]]:
    """Branch point and decay length of each cooldown."""
    found = [job.branch for job in plan.cooldowns if job.branch is not None]
    return [(branch.iteration, branch.decay_iterations) for branch in found]


def refusals(*cooldowns: dict[str, Any], **args: Any) -> list[str]:
    with pytest.raises(BadInput) as refused:
        planned(*cooldowns, **args)
    return str(refused.value).splitlines()


# What it needs on the disk


@pytest.mark.parametrize(("in_place", "copies"), [(True, 2), (False, 0)])
def test_a_plan_says_how_many_checkpoints_are_copied(in_place: bool, copies: int) -> None:
    cost = planned({"at": [600, 300], "decay": FIFTY}, write_in_place=in_place).cost
    assert cost is not None
    assert cost.copied_checkpoints == copies
    assert cost.copied_bytes == (None if copies else 0)  # the checkpoints are yet to be made


def test_a_plan_from_a_checkpoint_says_what_its_copies_take(tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(bytes(1000))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "shard").write_bytes(bytes(500))
    own = experiment(
        {"at": [600], "decay": FIFTY},
        {"at": [600], "decay": {"iterations": 9}, "name": "b"},
        write_in_place=True,
    )
    start = CheckpointSource(path=str(tmp_path), iteration=600)
    cost = make_plan(own.model_copy(update={"start": start}), tmp_path).cost
    assert cost is not None
    assert (cost.copied_checkpoints, cost.copied_bytes) == (2, 3000)


# The jobs


def test_a_plan_is_the_trunk_and_then_its_cooldowns() -> None:
    plan = planned({"at": [600, 300], "decay": {"iterations": 50, "shape": "linear"}})
    assert [job.name for job in plan.jobs] == ["p", "p-cd600", "p-cd300"]
    assert plan.trunk.target_iteration == 1000
    first = plan.cooldowns[0]
    assert (first.parent, first.target_iteration) == ("p", 650)
    assert first.save_dir == "/out/p-cd600/checkpoints"
    assert first.command[-10:] == (
        *("--lr-decay-style", "WSD", "--lr-decay-iters", "650", "--lr-wsd-decay-iters", "50"),
        *("--lr-wsd-decay-style", "linear", "--min-lr", "0.0"),
    )


def test_every_job_writes_into_a_directory_of_its_own() -> None:
    plan = planned({"every": 100, "decay": FIFTY}, {"at": [300], "decay": FIFTY, "name": "b"})
    for what in ("name", "output_dir", "save_dir"):
        assert len({getattr(job, what) for job in plan.jobs}) == len(plan.jobs) == 12


# Branch points


def test_branch_points_snap_down_to_a_checkpoint_with_a_note() -> None:
    plan = planned({"at": [300, 450], "decay": FIFTY})
    assert branches(plan) == [(300, 50), (400, 50)]
    assert plan.notes == (
        "cooldowns.0: 450: branches at 400, the checkpoint before 450 (save_interval 100), "
        "10 % of its budget earlier",
    )


def test_every_gives_a_branch_point_up_to_and_at_the_target() -> None:
    plan = planned({"every": 300, "decay": FIFTY}, train_iters=900)
    assert [point for point, _ in branches(plan)] == [300, 600, 900]


def test_a_fraction_is_the_decays_share_of_the_branchs_total() -> None:
    plan = planned({"at": [400, 800], "decay": {"fraction": 0.2}})
    assert branches(plan) == [(400, 100), (800, 200)]


@settings(deadline=None)
@given(st.integers(100, 10**7), st.floats(0.01, 0.9), st.integers(1, 1000))
def test_a_budgets_decay_takes_what_the_snapped_trunk_leaves(
    total: int, fraction: float, interval: int
) -> None:
    start = round((1 - fraction) * total) // interval * interval
    cooldown = {"budgets": {"totals": [total], "fraction": fraction}}
    args = {"train_iters": 2 * 10**7, "save_interval": interval, "lr_warmup_iters": 0}
    if start == 0:
        assert "before the first checkpoint" in refusals(cooldown, **args)[0]
    else:
        plan = planned(cooldown, **args)
        assert branches(plan) == [(start, total - start)]
        assert plan.cooldowns[0].target_iteration == total


def test_budgets_note_the_branch_point_that_was_moved() -> None:
    plan = planned({"budgets": {"totals": [500, 800], "fraction": 0.2}})
    assert branches(plan) == [(400, 100), (600, 200)]
    assert plan.notes == (
        "cooldowns.0: 800: branches at 600, the checkpoint before 640 (save_interval 100), "
        "5 % of its budget earlier",
    )


# What cannot happen


def test_a_branch_before_the_first_checkpoint_is_refused() -> None:
    assert refusals({"at": [99], "decay": FIFTY}) == [
        "cooldowns.0: 99: before the first checkpoint, which is at 100"
    ]


def test_a_branch_beyond_the_target_is_refused() -> None:
    assert refusals({"at": [1100], "decay": FIFTY}) == [
        "cooldowns.0: 1100: beyond the trunk's target of 1000 iterations"
    ]


def test_a_branch_beyond_the_target_is_refused_though_it_would_snap_below() -> None:
    assert "beyond the trunk's target of 1000" in refusals({"at": [1050], "decay": FIFTY})[0]


def test_a_branch_inside_the_warm_up_is_refused() -> None:
    assert refusals({"at": [200], "decay": FIFTY}, lr_warmup_iters=201) == [
        "cooldowns.0: 200: inside the warm-up of 201 iterations"
    ]


def test_a_branch_at_the_end_of_the_warm_up_is_fine() -> None:
    assert branches(planned({"at": [200], "decay": FIFTY}, lr_warmup_iters=200)) == [(200, 50)]


def test_all_refusals_are_listed_at_once() -> None:
    lines = refusals(
        {"at": [50, 300, 2000], "decay": FIFTY},
        {"budgets": {"totals": [90]}},
        {"at": [300], "decay": FIFTY},
    )
    assert [line.rsplit(": ", 1)[0] for line in lines] == [
        *("cooldowns.0: 50", "cooldowns.0: 2000", "cooldowns.1: 90", "cooldowns.2: 300"),
    ]


def test_a_second_branch_of_one_name_is_refused_with_advice_that_helps() -> None:
    linear = {"at": [300], "decay": {"iterations": 50, "shape": "linear"}}
    lines = refusals({"at": [300], "decay": FIFTY}, linear)
    assert lines == ["cooldowns.1: 300: a second job named p-cd300; give this cooldown a `name`"]
    plan = planned({"at": [300], "decay": FIFTY}, linear | {"name": "linear"})
    assert [job.name for job in plan.cooldowns] == ["p-cd300", "p-cd300-linear"]


@pytest.mark.parametrize("how", [{"at": [300, 350]}, {"every": 50}])
def test_two_points_that_snap_to_one_checkpoint_are_refused_without_advice_that_does_not_help(
    how: dict[str, Any],
) -> None:
    # Both would get the same name, so no `name` tells them apart.
    message = "\n".join(refusals(how | {"decay": FIFTY}))
    assert "give this cooldown a `name`" not in message


# Paths are data

HOSTILE = (
    *("a b", 'it\'s "quoted"', "${oc.env:HOME}", "{project.name}", "${project.name}", "a\nb"),
    *("a,b", "a|touch x", "$(touch x)", "`id`", "-rf", "ö", "%s{0}\\n", "*", "~", "#", "a;b&c"),
)


def saves_to(path: Path) -> str:
    command = Session.load(path).plan.trunk.command
    return command[command.index("--save") + 1]


@pytest.mark.parametrize("text", HOSTILE)
def test_an_output_root_arrives_in_the_command_as_exactly_that_text(
    tmp_path: Path, composed: Composed, text: str
) -> None:
    project = Project(name="p", output_root=f"{tmp_path}/o/{text}")
    hostile = composed.experiment.model_copy(update={"project": project})
    path = create(composed._replace(experiment=hostile), tmp_path / "root", session_id="s")
    assert saves_to(path) == f"{tmp_path}/o/{text}/s/p/checkpoints"


def test_an_output_root_from_the_environment_is_never_resolved_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = f"{tmp_path}/o/" + " ".join(HOSTILE)
    monkeypatch.setenv("AUTOEXP_TEST_ROOT", root)
    composed = compose("demo", ["project.output_root=${oc.env:AUTOEXP_TEST_ROOT}"])
    path = create(composed, tmp_path / "root", session_id="s")
    assert saves_to(path) == f"{root}/s/demo/checkpoints"


# Rules that can never fire


def notes_of_a_described_trainer(line: str, **args: Any) -> tuple[str, ...]:
    """Notes of a plan with a rule on the rate and one on the speed."""
    backend = {
        "kind": "command",
        "command": ["train", "{save_dir}"],
        "cooldown": {"--decay": "{decay_iterations}"},
        "saves": {"name": "{iteration}", "must_exist": ["weights"]},
        "log_line": line,
        "args": {"train_iters": 1000, "save_interval": 100, **args},
    }
    rules = {"rate": {"off_schedule": {}}, "slow": {"throughput_below": {}}, "off": None}
    content = {
        "project": {"name": "p"},
        "backend": backend,
        "slurm": {"kind": "local"},
        "cooldowns": [{"at": [500], "decay": FIFTY}],
        "monitoring": {"metric_events": rules},
    }
    return make_plan(Experiment.model_validate(content), ROOT).notes


SILENT = "rule {} never fires: "
LOGS = "what this trainer logs has no "
ALL = r"(?P<iteration>\d+) (?P<loss>\S+) (?P<learning_rate>\S+) (?P<seconds>\S+)"


def test_a_plan_says_which_rules_can_never_fire_as_the_log_has_no_such_number() -> None:
    assert notes_of_a_described_trainer(r"(?P<iteration>\d+) (?P<loss>\S+)", lr=1e-3) == (
        SILENT.format("rate") + LOGS + "learning rate",
        SILENT.format("slow") + LOGS + "seconds per iteration",
    )
    assert notes_of_a_described_trainer(ALL, lr=1e-3) == ()


def test_a_plan_says_that_a_rate_is_compared_with_nothing_where_its_peak_is_unknown() -> None:
    assert notes_of_a_described_trainer(ALL) == (
        SILENT.format("rate") + "without `backend.args.lr` no rate is planned",
    )
