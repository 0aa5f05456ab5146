"""An attempt on a sick node is given back, counts against nobody, and others avoid the node."""

import json
import os
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from autoexp.config.compose import compose
from autoexp.jobs.spec import JobSpec
from autoexp.model import now
from autoexp.nodes.avoid_list import Avoided, AvoidList
from autoexp.operations.nodes.avoidance import to_avoid
from autoexp.payload import main
from autoexp.reports.explain import explain_job
from autoexp.resources.machines import SlurmCluster
from autoexp.rules.events import NodesFoundSick
from autoexp.schedulers.base import AttemptRef, prepare
from autoexp.schedulers.exit_files import from_exit_file
from autoexp.schedulers.local import LocalScheduler
from autoexp.session.action_records import ActionStatus
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.builders import TINY, create
from tests.core.story import Story, perform
from tests.killing import KilledAt

MACHINE = SlurmCluster(partition="none")
SICK = {"n2": "/tmp: 0.0 GB are free"}


def story_with(tmp_path: Path, *overrides: str) -> Story:
    policy = f"{{check: basic, avoid_file: {tmp_path}/nodes.jsonl, gives_back: 2}}"
    words = (*TINY, f"nodes={policy}", "cooldowns=[]", *overrides)
    return Story(create(compose("demo", words), tmp_path, session_id="s1"))


def give_back(story: Story, sick: dict[str, str] = SICK) -> None:
    """Submit, and have the attempt end for sick nodes."""
    story.submit()
    story.look(state="RUNNING", nodes="n[1-2]")
    story.look(
        state="NODE_FAIL", reason="sick nodes: …", sick_nodes=sick, ended_at=now(), nodes="n[1-2]"
    )


def act(story: Story) -> None:
    for action in story.session.pending_actions():
        perform(story, action)


def test_an_attempt_that_is_given_back_does_not_count_and_its_node_is_avoided(
    tmp_path: Path,
) -> None:
    story = story_with(tmp_path, "monitoring.max_attempts_without_progress=1")
    give_back(story)
    job = story.job()
    assert (job.attempts[0].verdict, job.verdict) == (Verdict.CONTINUE, None)
    assert job.attempts_without_progress == 0
    # Whatever becomes of the list: the record itself says it.
    assert to_avoid(story.session).names(MACHINE) == ("n2",)
    act(story)
    (entry,) = AvoidList(tmp_path / "nodes.jsonl").current(now())
    assert (entry.node, entry.why, entry.source) == ("n2", SICK["n2"], "check")
    assert entry.evidence.endswith("/check")
    told = " ".join(explain_job(story.path, "tiny").sentences)
    assert "tiny attempt 1: sick nodes: n2: /tmp: 0.0 GB are free" in told
    assert "rule nodes did have others avoid the sick nodes" in told


def test_it_is_given_back_so_often_and_then_fails_with_what_to_look_at(tmp_path: Path) -> None:
    story = story_with(tmp_path)
    for number in range(3):
        assert story.job().verdict is None
        give_back(story, {f"n{number}": "ill"})
        act(story)
    assert story.job().verdict is Verdict.FAILED
    assert "3 attempts were given back (nodes.gives_back: 2)" in str(story.job().reason)


def test_a_node_is_avoided_for_a_while(tmp_path: Path) -> None:
    story = story_with(tmp_path)
    give_back(story)
    assert story.session.sick_nodes(now()) == ("n2",)
    assert story.session.sick_nodes(now() + timedelta(days=1, minutes=1)) == ()


def test_a_submission_avoids_what_other_sessions_and_people_have_listed(tmp_path: Path) -> None:
    story = story_with(tmp_path)
    until = now() + timedelta(hours=1)
    AvoidList(tmp_path / "nodes.jsonl").add(
        [
            Avoided(id="1", node="n7", until=until, why="", source="check"),
            Avoided(id="2", node="n8", until=until, why="", source="person"),
            Avoided(id="3", node="n9", until=now(), why="", source="person"),
        ]
    )
    assert to_avoid(story.session).names(MACHINE) == ("n7", "n8")


def test_a_list_that_cannot_be_read_holds_nothing_up(tmp_path: Path) -> None:
    story = story_with(tmp_path)
    (tmp_path / "nodes.jsonl").mkdir()
    assert to_avoid(story.session).names(MACHINE) == ()
    give_back(story)
    assert to_avoid(story.session).names(MACHINE) == ("n2",)


def test_checks_put_no_more_nodes_into_the_list_than_may_be_avoided(tmp_path: Path) -> None:
    story = story_with(tmp_path, "nodes.most=2")
    give_back(story, {f"n{number}": "a bug of the check" for number in range(9)})
    act(story)
    assert len(AvoidList(tmp_path / "nodes.jsonl").current(now())) == 2
    assert len(to_avoid(story.session).names(MACHINE)) == 2
    (action,) = story.session.actions.values()
    assert action.status is ActionStatus.DONE and "nodes.most is 2" in str(action.result)


def test_a_kill_at_any_step_lists_a_node_once_and_submits_once_more(
    tmp_path: Path, killed_at: KilledAt
) -> None:
    first = story_with(tmp_path)
    first.submit()
    first.look(state="RUNNING", nodes="n2")
    kept = tmp_path / "kept"
    first.path.rename(kept)
    listed = AvoidList(tmp_path / "nodes.jsonl")
    for n in range(1, 100):
        shutil.rmtree(first.path, ignore_errors=True)
        shutil.copytree(kept, first.path)
        listed.path.unlink(missing_ok=True)

        def go_on() -> None:
            story = Story(first.path)
            if story.job().attempts[0].verdict is None:
                ended = {"sick_nodes": SICK, "ended_at": now()}
                story.look(state="NODE_FAIL", reason="sick", **ended)
            story.look()
            act(story)
            story.session.begin_attempt(story.job())

        was_killed = killed_at(n, go_on)
        go_on()
        session = Session.load(first.path)
        job = session.jobs["tiny"]
        assert [attempt.number for attempt in job.attempts] == [1, 2], n
        assert (job.attempts[0].verdict, job.attempts_without_progress) == (Verdict.CONTINUE, 0)
        found = [e for e in session.journal.entries if isinstance(e.event, NodesFoundSick)]
        assert len(found) == 1
        assert len(listed.path.read_text().splitlines()) == 1
        assert to_avoid(session).names(MACHINE) == ("n2",)
        if not was_killed:
            assert n > 10
            return
    raise AssertionError("it never came to its end")


# The payload itself


def run_locally(tmp_path: Path, *overrides: str) -> tuple[JobSpec, AttemptRef]:
    """Run the payload of a session's first attempt on this machine, to its end."""
    words = (*TINY, "backend.args.lr_warmup_iters=5", "cooldowns=[]", *overrides)
    story = Story(create(compose("demo", words), tmp_path, session_id="s1"))
    attempt = story.session.begin_attempt(story.job())
    assert attempt is not None
    ref, scheduler = story.session.ref(attempt), LocalScheduler()
    spec = story.job().spec
    prepare(ref, spec, attempt, scheduler.payload_spec(spec, attempt))
    if os.fork() == 0:
        os._exit(main(ref.directory))
    os.wait()
    return spec, ref._replace(
        job_id=json.loads((ref.directory / "exit.json").read_text())["job_id"]
    )


def test_the_payload_gives_the_attempt_back_before_the_trainer_starts(tmp_path: Path) -> None:
    spec, ref = run_locally(tmp_path, f"nodes={{check: basic, disks: ['{tmp_path}/gone']}}")
    status = from_exit_file(ref)
    assert status is not None and status.state == "NODE_FAIL"
    ((node, why),) = status.sick_nodes.items()
    assert why == f"{tmp_path}/gone: No such file or directory"
    assert status.reason == f"sick nodes: {node}: {why}"
    assert not Path(spec.save_dir).exists()


@pytest.mark.parametrize("policy", ["{check: basic}", "{command: ['true']}", "null"])
def test_a_healthy_node_trains(tmp_path: Path, policy: str) -> None:
    spec, ref = run_locally(tmp_path, f"nodes={policy}")
    status = from_exit_file(ref)
    assert status is not None and (status.state, status.sick_nodes) == ("COMPLETED", {})
    assert any(Path(spec.save_dir).glob("iter_*"))
    assert (ref.directory / "check").is_dir() == (policy != "null")
