"""Stages: what they refer to, in which order, when they start, and that values stay data."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest

from autoexp.config.compose import compose
from autoexp.dotted import setting
from autoexp.errors import BadInput
from autoexp.operations import requests
from autoexp.planning.standalone import branch_alone
from autoexp.planning.study import plan_study
from autoexp.rules.actions import Decay
from autoexp.rules.events import JobReady, RetryAsked
from autoexp.session.create import new_id_of
from autoexp.session.from_session import Origin, compose_from
from autoexp.session.inbox import RetryRequest, enqueue
from autoexp.session.session import Session
from autoexp.states import Kind, Verdict
from tests.builders import TINY, create
from tests.core.planning.stages import OUT, ask, finish, jobs, refusal, releases, started
from tests.core.story import Story
from tests.killing import KilledAt

CONVERT = {"command": ["convert", "{sibling.stable.checkpoint_path}", "{job.output_dir}"]}
EVALUATE = {
    "kind": "evaluate",
    "command": ["evaluate", "{sibling.convert.output_dir}"],
    "scores": "scores.json",
}


def test_a_stage_is_a_job_behind_what_it_refers_to() -> None:
    found = jobs({"evaluate": EVALUATE, "convert": CONVERT})
    assert list(found) == ["tiny", "tiny-cd100", "tiny-cd200", "tiny-convert", "tiny-evaluate"]
    convert, evaluate = found["tiny-convert"], found["tiny-evaluate"]
    assert [str(awaited) for awaited in convert.awaits] == ["tiny"]
    assert [str(awaited) for awaited in evaluate.awaits] == ["tiny-convert"]
    assert evaluate.command == ("evaluate", "/out/tiny-convert")
    assert (evaluate.kind, evaluate.scores) == (Kind.EVALUATE, "/out/tiny-evaluate/scores.json")
    assert convert.command[1] == "{sibling.stable.checkpoint_path}"


def test_a_stage_knows_its_siblings_names_paths_and_parameters() -> None:
    command = [
        "x",
        "{sibling.stable.name}",
        "{sibling.stable.backend.args.lr}",
        "{sibling.stable.target_iteration}",
        "{sibling.cd100.save_dir}",
        "{job.name}",
        "{{braces}}",
    ]
    found = jobs({"s": {"command": command}})["tiny-s"]
    assert found.command == (
        *("x", "tiny", "0.01", "300", "/out/tiny-cd100/checkpoints", "tiny-s", "{braces}"),
    )
    assert {str(awaited) for awaited in found.awaits} == {"tiny", "tiny-cd100"}


def test_each_cooldown_can_have_stages_of_its_own() -> None:
    each = {"each": "cooldown"}
    found = jobs(
        {
            "convert": {**each, "command": ["c", "{sibling.cooldown.checkpoint_path}"]},
            "evaluate": {**EVALUATE, **each},
        }
    )
    assert list(found)[3:] == [
        *("tiny-cd100-convert", "tiny-cd200-convert"),
        *("tiny-cd100-evaluate", "tiny-cd200-evaluate"),
    ]
    evaluate = found["tiny-cd200-evaluate"]
    assert evaluate.parent == "tiny-cd200"
    assert evaluate.command == ("evaluate", "/out/tiny-cd200-convert")
    assert [str(awaited) for awaited in evaluate.awaits] == ["tiny-cd200-convert"]


def test_a_stage_runs_on_its_own_resources() -> None:
    found = jobs({"s": {"command": ["x"], "slurm": {"gpus_per_node": 1}}}, "slurm.gpus_per_node=4")
    assert (found["tiny"].machine.gpus, found["tiny-s"].machine.gpus) == (4, 1)


def test_a_stage_that_is_written_for_the_cluster_runs_on_a_laptop_too() -> None:
    stages = {"s": {"command": ["x"], "slurm": {"qos": "short", "time_limit_min": 60}}}
    machines = [jobs(stages, which)["tiny-s"].machine for which in ("slurm=local", "slurm=base")]
    assert [machine.kind for machine in machines] == ["local", "slurm"]
    assert [machine.time_limit_min for machine in machines] == [60, 60]
    assert machines[1].model_dump()["qos"] == "short"


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (
            {
                "a": {"command": ["{sibling.b.name}"]},
                "b": {"command": ["{sibling.c.name}"]},
                "c": {"command": ["{sibling.a.name}"]},
            },
            "a cycle, ",
        ),
        ({"a": {"command": ["{sibling.a.name}"]}}, "a cycle, a -> a"),
        (
            {"a": {"command": ["{sibling.b.name}"]}, "b": {"command": ["{sibling.nope.name}"]}},
            "stages.b: there is no sibling `nope` (a -> b -> nope); there are: stable, cd100, ",
        ),
        ({"a": {"command": ["x"], "after": {"nope": "finished"}}}, "no sibling `nope`"),
        (
            {"a": {"command": ["{sibling.stable.output}"]}},
            "did you mean `{sibling.stable.output_dir}`?",
        ),
        ({"a": {"command": ["{job.nmae}"]}}, "did you mean `{job.name}`?"),
        ({"a": {"command": ["{"]}}, "has a single `{`"),
        ({"a": {"command": ["{sibling.cooldown.name}"]}}, "say `each: cooldown`"),
        (
            {
                "a": {"command": ["x"], "each": "cooldown"},
                "b": {"command": ["{sibling.a.name}"]},
            },
            "a is one for each cooldown; say `each: cooldown` too",
        ),
        (
            {"a": {"command": ["x"], "after": {"stable": {"checkpoint": 150}}}},
            "stable has no checkpoint 150: they are at multiples of 100, up to 300",
        ),
        (
            {"a": CONVERT, "b": {"command": ["x"], "after": {"a": {"checkpoint": 100}}}},
            "a makes no checkpoints",
        ),
        ({"a": {"command": ["x"], "slurm": {"kind": "slurm"}}}, "belongs to the session"),
        ({"a": {"command": ["x"], "slurm": {"gpu": 1}}}, "stages.a.slurm"),
        ({"stable": {"command": ["x"]}}, "the training is `stable`"),
        ({"a": {"command": []}}, "stages.a: give exactly one of `command` and `train`"),
    ],
)
def test_a_stage_that_cannot_be_is_refused_with_the_way_to_it(
    stages: dict[str, Any], said: str
) -> None:
    assert said in refusal(stages)


@pytest.mark.parametrize(
    "name",
    [
        *("sibling.stable.__class__", "job.__class__", "__import__('os')", "0", "job.name!r"),
        *("job.name:>999999999", "job[name]", "sibling.stable.backend.__dict__", "python.path"),
        *("job.name.__class__.__mro__", "env.HOME", "oc.env:HOME", "../../etc/passwd", " "),
    ],
)
def test_a_template_reaches_nothing_but_the_names_it_is_given(name: str) -> None:
    assert "nothing here is called" in refusal({"a": {"command": [f"{{{name}}}"]}})


def test_a_cycle_is_told_with_its_path() -> None:
    message = refusal(
        {
            "one": {"command": ["{sibling.two.name}"]},
            "two": {"command": ["x"], "after": {"one": "finished"}},
        }
    )
    assert "one -> two -> one" in message or "two -> one -> two" in message


# In a session


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """The training runs; a conversion and an evaluation wait for it."""
    stages = {"convert": CONVERT, "evaluate": EVALUATE}
    composed = compose("demo", [*TINY, "cooldowns=[]"], setting({"stages": stages}))
    path = create(composed, tmp_path / "sessions", session_id="s1")
    story = Story(path)
    story.submit()
    return story


def test_a_stage_is_released_once_its_sibling_has_finished_and_its_command_filled_then(
    story: Story,
) -> None:
    story.save(300)
    story.look(state="RUNNING")
    assert started(story) == []

    finish(story, "tiny")
    assert started(story) == ["tiny-convert"]
    story.look()
    assert started(story) == []

    convert = story.job("tiny-convert")
    assert convert.launched
    assert convert.spec.command[1] == str(story.folder(300))
    assert not story.job("tiny-evaluate").launched
    events = [e.event for e in story.session.journal.entries if isinstance(e.event, JobReady)]
    assert [event.job for event in events] == ["tiny-convert"]


def test_a_stage_waits_for_a_checkpoint_only_when_it_says_so(tmp_path: Path) -> None:
    stage = {**CONVERT, "after": {"stable": {"checkpoint": 200}}}
    composed = compose("demo", [*TINY, "cooldowns=[]"], setting({"stages": {"convert": stage}}))
    story = Story(create(composed, tmp_path / "sessions", session_id="s1"))
    story.submit()
    story.save(100)
    story.look(state="RUNNING")
    assert started(story) == []
    story.save(200)
    story.look(state="RUNNING")
    assert started(story) == ["tiny-convert"]
    assert story.job("tiny-convert").spec.command[1] == str(story.folder(200))


def test_stages_are_cancelled_with_the_reason_when_their_sibling_fails_for_good(
    story: Story,
) -> None:
    story.look(state="FAILED", exit_code=3)
    story.look()
    convert, evaluate = story.job("tiny-convert"), story.job("tiny-evaluate")
    assert convert.verdict is evaluate.verdict is Verdict.FAILED
    assert convert.reason == "cancelled: tiny failed (FAILED (exit code 3))"
    assert evaluate.reason == convert.reason
    assert story.session.is_over


def test_a_value_with_braces_is_put_in_as_it_is(tmp_path: Path) -> None:
    """What a checkpoint's path holds is data: it is not read as a template again."""
    root = tmp_path / "{job.name}" / "$(touch x)" / "{{"
    composed = compose("demo", [*TINY, "cooldowns=[]"], setting({"stages": {"convert": CONVERT}}))
    story = Story(create(composed, root, session_id="s1"))
    story.submit()
    story.save(300)
    finish(story, "tiny")
    started(story)
    _, checkpoint, output = story.job("tiny-convert").spec.command
    assert checkpoint == str(story.folder(300))
    assert output == str(story.path / "output" / "tiny-convert")


def test_scores_are_read_when_the_job_has_finished(story: Story) -> None:
    run(story, '{"loss": 2.5, "tasks": {"a": {"accuracy": 1}}, "name": "x", "nan": NaN}')
    job = story.job("tiny-evaluate")
    assert job.verdict is Verdict.FINISHED
    assert job.scores == {"loss": 2.5, "tasks.a.accuracy": 1.0}
    assert job.reason == "exit code 0; scores that are not finite: nan"
    assert Session.load(story.path).jobs["tiny-evaluate"].scores == job.scores


def test_an_evaluation_that_lacks_a_score_runs_again_when_it_is_named(story: Story) -> None:
    run(story, '{"loss": 2.5}')
    (note,) = ask(story, "tiny-evaluate")
    assert "retries tiny-evaluate" in note
    job = story.job("tiny-evaluate")
    assert (job.verdict, job.scores, job.wants_attempt()) == (None, {}, True)
    story.submit("tiny-evaluate")
    Path(job.spec.scores or "").write_text('{"loss": 2.5, "accuracy": 0.5}')
    story.look(name="tiny-evaluate", state="COMPLETED", exit_code=0)
    job = story.job("tiny-evaluate")
    assert (job.verdict, len(job.attempts)) == (Verdict.FINISHED, 2)
    assert job.scores == {"loss": 2.5, "accuracy": 0.5}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"a": "b"}', "holds no number"),
        ("[" * 100000, "not JSON"),
        ('{"a": 1' + "0" * 400 + ', "b": -Infinity}', "holds no finite number (a, b)"),
        (" " * (1 << 21), "has more than 1048576 bytes"),
    ],
)
def test_an_evaluation_without_scores_has_failed(
    story: Story, content: str | None, said: str
) -> None:
    run(story, content)
    job = story.job("tiny-evaluate")
    assert job.verdict is Verdict.FAILED
    assert job.reason is not None
    assert job.reason.startswith("exit code 0, but without scores: ")
    assert said in job.reason


def run(story: Story, scores: str | None) -> None:
    """All stages run to their end, and the last one writes down scores."""
    story.save(300)
    finish(story, "tiny")
    started(story)
    story.submit("tiny-convert")
    finish(story, "tiny-convert")
    assert started(story) == ["tiny-evaluate"]
    story.submit("tiny-evaluate")
    path = Path(story.job("tiny-evaluate").spec.scores or "")
    path.parent.mkdir(parents=True)
    if scores is not None:
        path.write_text(scores)
    story.look(name="tiny-evaluate", state="COMPLETED", exit_code=0)


# From elsewhere


def test_a_cooldown_on_its_own_keeps_the_stages_of_cooldowns(tmp_path: Path) -> None:
    each = {"each": "cooldown", "command": ["x", "{sibling.cooldown.checkpoint_path}"]}
    stages = {"convert": CONVERT, "each_one": each}
    whole = compose("demo", [*TINY, "backend.args.lr=1e-2,2e-2"], setting({"stages": stages}))
    story = Story(create(whole, tmp_path / "sessions", session_id="s1"))
    story.submit("tiny-lr0.02")
    story.save(100, name="tiny-lr0.02")
    story.look(name="tiny-lr0.02", state="RUNNING")

    again = compose_from(story.session, Origin("s1", "tiny-lr0.02", 100))
    jobs = {job.name: job for job in plan_study(again, OUT).jobs}
    assert [job.kind for job in jobs.values()] == [Kind.COOLDOWN, Kind.COMMAND]
    assert all("0.02" in job.command for job in jobs.values() if job.branch)

    decay = Decay(iterations=20)
    with pytest.raises(BadInput, match="a cooldown is of one training, and not a sweep"):
        branch_alone(whole, story.folder(100, name="tiny-lr0.02"), decay)
    single = compose("demo", TINY, setting({"stages": stages}))
    alone = branch_alone(single, story.folder(100, name="tiny-lr0.02"), decay)
    assert [job.name for job in plan_study(alone, OUT).jobs] == [
        *("tiny-cd100", "tiny-cd100-each_one"),
    ]
    assert new_id_of(alone).startswith("tiny-cd100-")


# Again


def test_a_failed_training_can_be_run_again_with_all_that_waited_for_it(story: Story) -> None:
    story.save(100)
    story.look(state="FAILED", exit_code=3)
    story.look()
    assert story.session.is_over

    assert ask(story) == ["ann: retries tiny, tiny-convert, tiny-evaluate"]
    assert not story.session.is_over
    story.open()
    story.look()
    assert {job.verdict for job in story.session.jobs.values()} == {None}
    story.submit()
    attempt = story.job().attempt
    assert attempt is not None
    assert (attempt.number, attempt.first_iteration) == (2, 100)
    story.save(300)
    finish(story, "tiny")
    assert started(story) == ["tiny-convert"]


def test_a_stage_that_failed_is_run_again_alone_and_starts_what_follows(story: Story) -> None:
    story.save(300)
    finish(story, "tiny")
    started(story)
    story.submit("tiny-convert")
    story.look(name="tiny-convert", state="FAILED", exit_code=1)
    story.look()

    assert ask(story, "tiny-convert") == ["ann: retries tiny-convert, tiny-evaluate"]
    story.look()
    assert story.job("tiny-evaluate").verdict is None
    story.submit("tiny-convert")
    finish(story, "tiny-convert")
    assert started(story) == ["tiny-evaluate"]


def test_a_retry_that_is_killed_at_any_step_is_done_once_when_it_is_repeated(
    story: Story, tmp_path: Path, killed_at: KilledAt
) -> None:
    story.save(100)
    story.look(state="FAILED", exit_code=3)
    story.look()
    enqueue(story.path, RetryRequest(by="ann"))
    for step in itertools.count(1):
        copy = tmp_path / f"killed-{step}" / "s1"
        shutil.copytree(story.path, copy)
        killed = killed_at(step, lambda copy=copy: requests.process_requests(Session.load(copy)))
        requests.process_requests(Session.load(copy))
        jobs = Session.load(copy).jobs.values()
        assert [(job.verdict, job.retries) for job in jobs] == [(None, 1)] * 3
        assert retried(copy) == ["tiny", "tiny-convert", "tiny-evaluate"]
        if not killed:
            break
    assert step > 3


def retried(session: Path) -> list[str]:
    """The jobs that the journal says were run again."""
    events = [entry.event for entry in Session.load(session).journal.entries]
    return [event.job for event in events if isinstance(event, RetryAsked)]


def test_a_release_that_is_killed_at_any_step_fills_the_command_once(
    story: Story, tmp_path: Path, killed_at: KilledAt
) -> None:
    story.save(300)
    finish(story, "tiny")
    for again in releases(story, tmp_path, killed_at):
        convert = again.job("tiny-convert")
        assert convert.launched
        assert convert.spec.command[1] == str(story.folder(300))
        assert [action.status for action in again.session.actions.values()] == ["done"]


@pytest.mark.parametrize(
    ("name", "said"), [("nope", "no such job"), ("tiny", "has finished; only failed jobs")]
)
def test_only_failed_jobs_are_run_again(story: Story, name: str, said: str) -> None:
    story.save(300)
    finish(story, "tiny")
    (note,) = ask(story, name)
    assert said in note


def test_a_cooldown_that_never_started_is_run_again_with_its_training(tmp_path: Path) -> None:
    story = Story(create(compose("demo", TINY), tmp_path / "sessions", session_id="s1"))
    story.submit()
    story.look(state="FAILED", exit_code=1)
    story.look()
    assert story.job("tiny-cd100").verdict is Verdict.FAILED
    ask(story)
    story.look()
    assert story.job("tiny-cd100").verdict is None
    story.submit()
    story.save(100)
    story.look(state="RUNNING")
    assert started(story) == ["tiny-cd100"]
