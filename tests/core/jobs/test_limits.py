"""The wall time that a job asks for, as far as it is known before it is begun."""

from pathlib import Path

import pytest

from autoexp.config.compose import compose
from autoexp.errors import BadInput
from autoexp.jobs.limits import is_measured, time_limit
from autoexp.jobs.record import JobRecord
from autoexp.planning.plan import make_plan

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


@pytest.mark.parametrize("limit", ["time_limit_min", "cooldown_time_limit_min"])
@pytest.mark.parametrize("machine", ["local", "local_cluster"])
def test_a_warning_before_the_beginning_is_refused_with_its_line_and_advice(
    limit: str, machine: str
) -> None:
    if (machine, limit) == ("local", "cooldown_time_limit_min"):
        return  # it has none
    words = [f"slurm={machine}", f"slurm.{limit}=0.5"]
    with pytest.raises(BadInput) as refused:
        compose("demo", words)
    said = str(refused.value)
    assert f"`{limit}: 0.5` leaves no time before the warning, which comes 30 s earlier" in said
    assert "lower `warn_before_limit_s`" in said
    assert "slurm.warn_before_limit_s" in said
    compose("demo", [*words, "slurm.warn_before_limit_s=10"])


def test_a_stage_that_is_warned_before_it_begins_is_refused() -> None:
    stage = "stages.check={command: [hostname], slurm: {time_limit_min: 0.25}}"
    composed = compose("demo", [*ASKED, stage])
    with pytest.raises(BadInput, match=r"stages\.check\.slurm\.warn_before_limit_s: .* 0\.25"):
        make_plan(composed.experiment, Path("/out"))


def test_a_derived_limit_leaves_time_before_the_warning() -> None:
    machine = ("slurm.startup_min=0", "slurm.warn_before_limit_s=240")
    trunk, branch = make_plan(compose("demo", [*ASKED, ONE, *machine]).experiment, Path("/")).jobs
    parent = JobRecord(spec=trunk, mean_seconds_per_iteration=0.001)
    assert time_limit(JobRecord(spec=branch), parent) == 5
