"""A job that writes and writes, and comes no further than ever before, is noticed."""

import itertools
from typing import Any

import pytest
from pydantic import ValidationError

from autoexp.rules.describe import describe
from autoexp.rules.events import LoggingStopped, LogMatched, StateChanged
from autoexp.rules.rules import LogRule, StateRule
from tests.core.story import Story, StoryOf, of, say

RULE = {"after": 100, "counts": "progress", "actions": [{"log": {}}]}


@pytest.fixture(autouse=True)
def _minutes_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a minute from look to look."""
    clock = itertools.count(0, 30)
    monkeypatch.setattr("autoexp.monitor.job_watch.time.monotonic", lambda: float(next(clock)))


def looks(story: Story, *iterations: int) -> list[Any]:
    found = []
    for iteration in iterations:
        story.log(iteration)
        found += of(story.look(), LoggingStopped)
    return found


def test_a_log_that_repeats_itself_is_no_progress(story_of: StoryOf) -> None:
    story = story_of(inactivity_events={"still": RULE, "silent": {"after": 100}})
    assert looks(story, 10, 20, 30, 40) == []
    (event,) = looks(story, 10, 20, 30, 40, 20, 30, 40, 30)
    assert (event.rule, event.furthest, event.key) == ("still", 40, "inactive/tiny/a1/still/at40")
    assert "still: no iteration beyond 40 for 1" in describe(event)
    # It comes further, and stands still again: another event.
    assert [found.furthest for found in looks(story, 50, *(10, 20) * 6)] == [50]


def test_doing_again_what_a_roll_back_lost_is_progress(story_of: StoryOf) -> None:
    story = story_of(inactivity_events={"still": RULE})
    looks(story, 100, 200, 300)
    story.job().roll_backs, story.job().iteration = [100], 100
    assert looks(story, 110, 120, 130, 140, 150, 160, 170) == []


def test_an_exit_code_in_a_rule_is_that_of_a_failure() -> None:
    rule = StateRule.model_validate({"exit_codes": [93]})

    def fires(new: str, code: int | None) -> bool:
        changed = StateChanged(
            job="j", attempt=1, position=1, old="RUNNING", new=new, exit_code=code
        )
        return rule.fires(changed, "r")

    assert fires("FAILED", 93)
    assert not (fires("FAILED", 1) or fires("COMPLETED", 93) or fires("FAILED", None))
    with pytest.raises(ValidationError, match="a verdict has no exit code"):
        StateRule.model_validate({"exit_codes": [1], "verdict": "failed"})


def test_the_exit_code_of_an_attempt_reaches_its_event(story_of: StoryOf) -> None:
    story = story_of()
    (event,) = of(story.look(state="FAILED", exit_code=93), StateChanged)
    assert event.exit_code == 93


def test_so_many_restarts_inside_of_an_attempt_are_an_event_unless_it_comes_further(
    story_of: StoryOf,
) -> None:
    again = {"substring": "restarts inside", "times": 3, "actions": [{"log": {}}]}
    story = story_of(log_events={"again": again})

    def told(*iterations: int) -> list[LogMatched]:
        found = []
        for iteration in iterations:
            story.log(iteration)
            say(story, "restarts inside")
            found += of(story.look(state="RUNNING"), LogMatched)
        return found

    assert told(10, 20, 30, 40, 40) == []
    story.open()  # another monitor goes on counting
    (event,) = told(30)
    assert (event.rule, event.iteration) == ("again", 30)
    assert told(10, 20, 50, 50, 50, 50) == []  # once in an attempt
    with pytest.raises(ValidationError, match="give one"):
        LogRule.model_validate({**again, "every": True})
