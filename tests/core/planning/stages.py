"""Studies with stages: their jobs, and sessions of them that go on."""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoexp.config.compose import compose
from autoexp.dotted import setting
from autoexp.errors import BadInput
from autoexp.jobs.spec import JobSpec
from autoexp.operations import actions, requests
from autoexp.planning.study import plan_study
from autoexp.rules.actions import Start
from autoexp.session.inbox import RetryRequest, enqueue
from autoexp.states import Verdict
from tests.builders import TINY
from tests.core.story import Story
from tests.killing import KilledAt

OUT = Path("/out")


def jobs(stages: dict[str, Any], *overrides: str, **settings: Any) -> dict[str, JobSpec]:
    composed = compose("demo", [*TINY, *overrides], setting({"stages": stages, **settings}))
    return {job.name: job for job in plan_study(composed, OUT).jobs}


def refusal(stages: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(BadInput) as refused:
        jobs(stages, *overrides)
    return str(refused.value)


def finish(story: Story, name: str) -> None:
    story.look(name=name, state="COMPLETED", exit_code=0)
    assert story.job(name).verdict is Verdict.FINISHED


def started(story: Story) -> list[str]:
    """Do the actions that are to be done, as the session's flow would."""
    names = []
    for action in story.session.pending_actions():
        assert isinstance(action.action, Start)
        job = actions.begin(story.session, action)
        assert job is not None
        actions.complete(story.session, action, job)
        names.append(job.spec.name)
    return names


def ask(story: Story, *names: str) -> list[str]:
    enqueue(story.path, RetryRequest(jobs=names, by="ann"))
    return requests.process_requests(story.session)


def releases(story: Story, tmp_path: Path, killed_at: KilledAt) -> Iterator[Story]:
    """Copies of the session that started what is ready, each killed a step later, and again."""
    for step in itertools.count(1):
        copy = tmp_path / f"killed-{step}" / "s1"
        shutil.copytree(story.path, copy)
        killed = killed_at(step, lambda copy=copy: started(Story(copy)))  # type: ignore[misc]
        again = Story(copy)
        again.look()
        started(again)
        yield again
        if not killed:
            break
    assert step > 2
