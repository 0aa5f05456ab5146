"""Learning rates that a trainer writes beside its log, against the plan."""

import json
from pathlib import Path

import pytest
from tensorboardX import SummaryWriter

from autoexp.config.compose import compose
from autoexp.rules.events import MetricAlarm
from tests.builders import create
from tests.core.backends.conformance.torchtitan import TORCHTITAN, log_line
from tests.core.story import Story, of

BRANCH = "t-cd100"
RULE = {"rate": {"off_schedule": {"logged": 3}, "jobs": ["cooldown"]}}


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """A cooldown of torchtitan from 100 to 150 that runs, with event files."""
    whole = TORCHTITAN.configuration | {"monitoring": {"metric_events": RULE}}
    whole["backend"]["args"]["metrics"] = {"enable_tensorboard": True}
    (tmp_path / "t.yaml").write_text(json.dumps({"defaults": ["_self_"], **whole}))
    composed = compose(str(tmp_path / "t.yaml"))
    made = Story(create(composed, tmp_path / "sessions", session_id="s1"))
    made.job(BRANCH).launched = True
    made.submit(BRANCH)
    return made


def logged(story: Story, *rates: float) -> list[MetricAlarm]:
    """The alarms of a look at steps 110, 120 and so on, with these rates."""
    job = story.job(BRANCH)
    assert job.attempt is not None
    folder = Path(job.spec.save_dir) / "tb" / "20261129-1000"
    with SummaryWriter(str(folder)) as writer, Path(job.attempt.log).open("a") as log:
        for step, rate in enumerate(rates, start=11):
            writer.add_scalar("lr", rate, step * 10)
            log.write(log_line(step * 10, 2.5) + "\n")
    return of(story.look(name=BRANCH, state="RUNNING"), MetricAlarm)


def test_a_cooldown_whose_event_file_has_another_rate_than_planned_is_an_alarm(
    story: Story,
) -> None:
    (alarm,) = logged(story, 1e-3, 1e-3, 1e-3)
    assert (alarm.rule, alarm.job, alarm.iteration) == ("rate", BRANCH, 130)
    assert alarm.value == pytest.approx(1e-3)
    assert story.job(BRANCH).learning_rate == pytest.approx(1e-3)
    say_again = log_line(140, 2.5)
    attempt = story.job(BRANCH).attempt
    assert attempt is not None
    with Path(attempt.log).open("a") as log:
        log.write(say_again + "\n")
    assert of(story.look(name=BRANCH, state="RUNNING"), MetricAlarm) == []
    # The line itself has no rate, and takes none away.
    assert story.job(BRANCH).learning_rate == pytest.approx(1e-3)


def test_a_cooldown_whose_event_file_follows_the_plan_is_none(story: Story) -> None:
    branch = story.job(BRANCH).spec
    assert branch.decay is not None
    rates = [branch.trainer.planned_rate(branch.decay, step) for step in (110, 120, 130)]
    assert logged(story, *(rate for rate in rates if rate is not None)) == []
    assert story.job(BRANCH).learning_rate == pytest.approx(rates[-1])
