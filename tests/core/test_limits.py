"""The wall time that a job asks for, as far as it is known before it is begun."""

from pathlib import Path

from autoexp.compose import compose
from autoexp.limits import is_measured
from autoexp.plan import make_plan

ASKED = ("slurm=local_cluster", "slurm.time_limit_min=600", "project.name=t")
ONE = "cooldowns=[{at: [1000], decay: {iterations: 200}}]"


def limits(*overrides: str) -> tuple[float | None, float | None, bool]:
    """Of the training and its cooldown, and whether the latter will be measured."""
    plan = make_plan(compose("demo", [*ASKED, ONE, *overrides]).experiment, Path("/out"))
    trunk, branch = plan.jobs
    return trunk.configured_limit_min, branch.configured_limit_min, is_measured(branch)


def test_a_cooldown_asks_for_what_is_measured_and_no_more_than_its_training() -> None:
    assert limits() == (600, 600, True)


def test_a_fixed_time_of_cooldowns_is_theirs_alone() -> None:
    assert limits("slurm.cooldown_time_limit_min=60") == (600, 60, False)


def test_a_cooldown_from_an_older_session_asks_for_the_whole_limit() -> None:
    experiment = compose("demo", [*ASKED, ONE]).experiment
    (branch,) = make_plan(experiment, Path("/out")).cooldowns
    alone = branch.model_copy(update={"parent": None})
    assert (alone.configured_limit_min, is_measured(alone)) == (600, False)
