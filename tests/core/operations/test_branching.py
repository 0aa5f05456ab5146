"""Merges and chains in a session: pinned in time, started once, whatever is killed."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest

from autoexp.config.compose import compose
from autoexp.dotted import setting
from autoexp.monitor.steps import Submit, next_step
from autoexp.rules.actions import Keep, Start
from autoexp.session.action_records import ActionStatus
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.builders import TINY, create
from tests.core.monitor.driver import Driver
from tests.core.planning.stages import ask
from tests.core.story import Story, perform
from tests.fakes.scheduler import FakeScheduler, Fate
from tests.killing import KilledAt

MERGE = "tiny-merge300"
FIRST, LONG = "tiny-cd100-code", "tiny-cd100-code-cd150-long"
SETTINGS: dict[str, Any] = {
    "merges": [{"at": [300], "last": 200, "shape": "equal"}],
    "cooldowns": [
        {
            "at": [100],
            "name": "code",
            "decay": {"iterations": 50},
            "backend": {"args": {"mix": "code"}},
            "then": [{"name": "long", "decay": {"iterations": 50}}],
        }
    ],
}


@pytest.fixture
def story(tmp_path: Path) -> Story:
    composed = compose("demo", TINY[:-1], setting(SETTINGS))
    story = Story(create(composed, tmp_path / "sessions", session_id="s1"))
    story.submit()
    story.look(state="RUNNING")
    return story


def act(story: Story) -> list[str]:
    """Look, and do the actions that are to be done; returns the jobs that may be submitted."""
    story.look()
    for action in list(story.session.pending_actions()):
        if not action.is_settled:
            perform(story, action.model_copy())
    return sorted(
        name
        for name, job in story.session.jobs.items()
        if name != "tiny" and isinstance(next_step(job), Submit)
    )


def kept(story: Story) -> list[int]:
    return [
        iteration
        for iteration in (100, 200, 300)
        if list(story.job(MERGE).spec.input_dir(iteration).glob("iter_*/metadata.json"))
    ]


def test_inputs_of_a_merge_are_pinned_as_they_come_and_survive_the_parents_retention(
    story: Story,
) -> None:
    for iteration in (100, 200, 300):
        story.save(iteration)
        started = act(story)
        assert (MERGE in started) == (iteration == 300)
        shutil.rmtree(story.folder(iteration))
    assert kept(story) == [100, 200, 300]
    command = story.job(MERGE).spec.command
    paths = [word for word in command if "/inputs/" in word]
    assert len(paths) == 3 and all(Path(path, "metadata.json").exists() for path in paths)
    assert command[command.index("--weights") + 1 :][:3] == (repr(1 / 3),) * 3


def test_a_merge_of_which_an_input_was_deleted_too_early_fails_with_the_reason(
    story: Story,
) -> None:
    story.save(100)
    story.look()
    shutil.rmtree(story.folder(100))
    act(story)
    story.save(200)
    story.save(300)
    assert MERGE not in act(story)
    story.look(state="COMPLETED", exit_code=0)
    story.look()
    merge = story.job(MERGE)
    assert merge.verdict is Verdict.FAILED
    assert "checkpoint 100 of tiny was not pinned" in str(merge.reason)


def test_a_merge_never_starts_when_its_training_ends_before_its_last_checkpoint(
    story: Story,
) -> None:
    story.save(100)
    act(story)
    story.look(state="FAILED", exit_code=1)
    story.look()
    assert "tiny failed without a complete checkpoint at iteration 300" in str(
        story.job(MERGE).reason
    )


def test_a_chain_starts_at_the_end_of_the_branch_before_it_and_is_pinned(story: Story) -> None:
    story.save(100)
    assert act(story) == [FIRST]
    story.submit(FIRST)
    story.look(name=FIRST, state="RUNNING")
    folder = story.save(150, name=FIRST)
    assert act(story) == [LONG]
    shutil.rmtree(folder)
    assert (story.folder(150, name=LONG) / "metadata.json").exists()
    story.look(name=FIRST, state="COMPLETED", exit_code=0)
    assert story.job(FIRST).verdict is Verdict.FINISHED
    assert story.job(LONG).spec.changes == {}


def test_a_chain_whose_branch_fails_never_starts_and_is_retried_with_it(story: Story) -> None:
    story.save(100)
    act(story)
    story.submit(FIRST)
    story.look(name=FIRST, state="FAILED", exit_code=1)
    story.look()
    assert story.job(LONG).verdict is Verdict.FAILED
    assert f"never started: {FIRST} failed" in str(story.job(LONG).reason)
    ask(story, FIRST)
    assert (story.job(FIRST).verdict, story.job(LONG).verdict) == (None, None)
    story.submit(FIRST)
    story.look(name=FIRST, state="RUNNING")
    story.save(150, name=FIRST)
    assert act(story) == [LONG]


def test_an_input_that_was_rolled_back_is_pinned_anew(story: Story) -> None:
    """The training writes iteration 200 once more, and it is another model."""
    for iteration in (100, 200):
        story.save(iteration)
        act(story)
    shutil.rmtree(story.folder(200))
    story.track("100")
    story.session.change_job(story.job(), checkpoints=[100], roll_backs=[100])
    (story.save(200) / "model").write_text("the second one")
    act(story)
    story.save(300)
    assert MERGE in act(story)
    pinned = story.job(MERGE).spec.input_dir(200)
    assert [path.read_text() for path in pinned.glob("iter_*/model")] == ["the second one"]
    assert (pinned.parent / "200-set-aside-1").exists()


@pytest.mark.parametrize("dying_at", [200, 300])
def test_a_merge_killed_at_any_durable_step_is_started_once_with_all_its_inputs(
    story: Story, tmp_path: Path, killed_at: KilledAt, dying_at: int
) -> None:
    """The monitor dies over an input or the last one; the parent deletes what it has kept."""
    for iteration in range(100, dying_at, 100):
        story.save(iteration)
        act(story)
    for step in itertools.count(1):
        copy = moved(story, tmp_path / f"killed-{step}")
        copy.open().save(dying_at)
        killed = killed_at(step, lambda copy=copy: act(copy.open()))  # type: ignore[misc]
        assert (MERGE in act(copy.open())) == (dying_at == 300)
        for iteration in range(100, dying_at + 1, 100):
            shutil.rmtree(copy.folder(iteration))
        if dying_at == 200:
            copy.save(300)
            assert MERGE in act(copy.open())
        check_once(copy)
        assert kept(copy) == [100, 200, 300]
        if not killed:
            break
    assert step > 5


def test_a_chain_killed_at_any_durable_step_is_started_once(
    story: Story, tmp_path: Path, killed_at: KilledAt
) -> None:
    story.save(100)
    act(story)
    story.submit(FIRST)
    story.look(name=FIRST, state="RUNNING")
    for step in itertools.count(1):
        copy = moved(story, tmp_path / f"killed-{step}")
        copy.open().save(150, name=FIRST)
        killed = killed_at(step, lambda copy=copy: act(copy.open()))  # type: ignore[misc]
        assert act(copy.open()) == [LONG]
        shutil.rmtree(copy.folder(150, name=FIRST))
        assert (copy.folder(150, name=LONG) / "metadata.json").exists()
        check_once(copy)
        if not killed:
            break
    assert step > 5


@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_study_whose_monitor_dies_again_and_again_runs_each_branch_and_merge_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """It dies at its first durable step, the next one at its second, until one lives to the end.

    The training and the branches delete each checkpoint as soon as the next one is there.
    """
    fate, scheduler = Fate(monkeypatch), FakeScheduler()
    path = create(
        compose("demo", TINY[:-1], setting(SETTINGS)), tmp_path / "sessions", session_id="s1"
    )
    driver, deaths = Driver(path, scheduler), itertools.count(first)
    is_over, met = False, 0
    while not is_over:
        fate.steps_left = next(deaths)
        while not is_over and fate.spares(driver.round):
            is_over = driver.session.is_over
            pending = bool(driver.work or list(driver.session.pending_actions()))
            for job in scheduler.jobs.values():
                if not pending and job.state in ("PENDING", "RUNNING"):
                    job.state = "RUNNING"
                    job.train()
                    keep_newest(job.saves)
        met += not is_over
        driver = driver if is_over else Driver(path, scheduler)
    assert met > 10, "nothing was killed"
    assert set(scheduler.submissions.values()) == {1}
    jobs = Session.load(path).jobs
    assert set(jobs) == {"tiny", FIRST, LONG, MERGE}
    assert {name: job.reason for name, job in jobs.items() if job.verdict != "finished"} == {}
    assert [len(job.attempts) for job in jobs.values()] == [1] * 4
    commands = {job.output.name: job.spec["command"] for job in scheduler.jobs.values()}
    assert [name for name, words in commands.items() if "code" in words] == [FIRST, LONG]


def keep_newest(saves: Path) -> None:
    """Delete all checkpoints but the last, as a trainer's retention does."""
    for folder in sorted(saves.glob("iter_*"))[:-1]:
        shutil.rmtree(folder)


def moved(story: Story, root: Path) -> Story:
    """A copy of the session that writes in folders of its own."""
    copy = root / "s1"
    shutil.copytree(story.path, copy, symlinks=True)
    for file in (copy / "jobs").glob("*.json"):
        file.write_text(file.read_text().replace(str(story.path), str(copy)))
    for file in (copy / "events.jsonl", *(copy / "actions").glob("*.json")):
        if file.exists():
            file.write_text(file.read_text().replace(str(story.path), str(copy)))
    return Story(copy)


def check_once(story: Story) -> None:
    actions = story.open().session.actions.values()
    assert {action.status for action in actions} == {ActionStatus.DONE}
    starts = [action.action.job for action in actions if isinstance(action.action, Start)]
    assert len(starts) == len(set(starts))
    keeps = [(a.action.job, a.event.key) for a in actions if isinstance(a.action, Keep)]
    assert len(keeps) == len(set(keeps))
