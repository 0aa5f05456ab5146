"""What actions write: repeatable after a kill, refused in words, and nothing more than asked."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from autoexp.errors import BadInput, SessionError
from autoexp.model import now
from autoexp.monitor.template_values import values_of
from autoexp.operations import actions as acting
from autoexp.operations import requests
from autoexp.operations.launch import Launching, joining
from autoexp.resources.machines import SlurmCluster
from autoexp.rules.actions import Cancel, ExcludeNodes, Launch
from autoexp.rules.events import BudgetPassed, LogMatched, TrunksFinished
from autoexp.schedulers.base import SubmitOptions
from autoexp.schedulers.local import LocalScheduler
from autoexp.schedulers.slurm.script import executor_for
from autoexp.session.action_records import ActionRecord, ActionStatus
from autoexp.session.inbox import ActionRequest, SubmitRequest, enqueue
from autoexp.session.session import ExcludedNode, Session
from autoexp.states import Kind, Verdict
from tests.core.story import StoryOf, of, say


def matched(**values: Any) -> LogMatched:
    return LogMatched(
        job="tiny", attempt=1, rule="r", generation=0, offset=0, line="x", values=values
    )


def asked(action: Any, event: Any = None) -> ActionRecord:
    event = event or matched()
    return ActionRecord(key="r--k--0", rule="r", event=event, action=action)


# Nodes


def test_a_blamed_node_is_avoided_until_it_expires_and_evidence_counts_once(
    session_path: Path,
) -> None:
    session = Session.load(session_path)
    action = asked(ExcludeNodes(expires=60), matched(node="nid005012"))
    for _ in range(2):
        acting.exclude_nodes(session, action, {})
    again = Session.load(session_path)
    assert [(b.node, b.evidence) for b in again.excluded.nodes] == [("nid005012", "log/tiny/a1/r")]
    assert again.excluded.current(now()) == ("nid005012",)
    assert again.excluded.current(now() + timedelta(seconds=61)) == ()


@pytest.mark.parametrize(
    "node", ["a b", "a,b", "$(reboot)", "", "-x", "n\n#SBATCH --wrap=x", "../n"]
)
def test_what_cannot_be_a_node_never_reaches_slurm(session_path: Path, node: str) -> None:
    session = Session.load(session_path)
    entry = ExcludedNode(node=node, evidence="e", reason="r", until=now())
    with pytest.raises(SessionError, match="cannot be the name of a node"):
        session.excluded.add([entry])
    assert Session.load(session_path).excluded.nodes == []


@pytest.mark.parametrize(("nodes", "blamed"), [("n3", ["n3"]), ("n[3-4]", []), (None, [])])
def test_without_a_name_in_the_line_only_the_one_node_of_the_attempt_is_blamed(
    story_of: StoryOf,
    nodes: str | None,
    blamed: list[str],
) -> None:
    story = story_of()
    story.look(state="RUNNING", nodes=nodes)
    acting.exclude_nodes(story.session, asked(ExcludeNodes()), {})
    assert [entry.node for entry in story.session.excluded.nodes] == blamed


def test_submissions_exclude_blamed_nodes_beside_the_users_own(tmp_path: Path) -> None:
    cluster = SlurmCluster(options={"exclude": "n1"})
    request = SubmitOptions("name", str(tmp_path / "log"), cluster, avoided=("n2", "n3"))
    script = executor_for(cluster, tmp_path / "batch.sh", request).script("true")
    assert "#SBATCH --exclude=n1,n2,n3\n" in script
    plain = executor_for(cluster, tmp_path / "batch.sh", request._replace(avoided=())).script(
        "true"
    )
    assert "#SBATCH --exclude=n1\n" in plain


# Launching


def launch(session: Session, action: ActionRecord) -> list[str]:
    assert isinstance(action.action, Launch)
    values = values_of(action.event, action.rule, session)
    about = (session.experiment, session.path, session.id)
    made = Launching(action, action.action, values, *about).run(LocalScheduler())
    jobs = joining(session, action.key, made)
    requests.add_jobs(session, SubmitRequest(jobs=jobs, by="rule r"))
    return [job.name for job in jobs]


def test_a_configuration_is_launched_in_the_same_session_once(session_path: Path) -> None:
    session = Session.load(session_path)
    settings = {"backend.args.train_iters": 400, "cooldowns": [], "project.description": "{words}"}
    event = matched(rank="3", words="${oc.env:HOME}, {rank} \\ [x]")
    action = asked(Launch(config="demo", name="again-{rank}", set=settings), event)
    for _ in range(2):
        names = launch(Session.load(session_path), action)
    assert names == ["again-3"]
    with pytest.raises(BadInput, match="has a job of this name"):
        launch(Session.load(session_path), action.model_copy(update={"key": "other"}))
    session = Session.load(session_path)
    spec = session.jobs["again-3"].spec
    assert (spec.kind, spec.parent, spec.target_iteration) == (Kind.EVALUATE, "tiny", 400)
    assert session.jobs["again-3"].launched
    assert set(session.meta.jobs) == {"tiny", "tiny-cd100", "tiny-cd200", "again-3"}


def test_a_launched_command_takes_its_values_as_arguments(session_path: Path) -> None:
    session = Session.load(session_path)
    awkward = "a b; $(touch x) {job.name}"
    command = Launch(command=("eval", "{details}"), name="e", as_kind="command")
    launch(session, asked(command, matched(details=awkward)))
    spec = Session.load(session_path).jobs["e"].spec
    assert (spec.command, spec.target_iteration) == (("eval", awkward), None)


@pytest.mark.parametrize("name", ["a/b", "../x", "", "x y"])
def test_a_name_that_comes_from_a_log_is_checked(session_path: Path, name: str) -> None:
    session = Session.load(session_path)
    action = asked(Launch(command=("true",), name="{details}"), matched(details=name))
    with pytest.raises(BadInput):
        launch(session, action)


# Cancelling, retrying, dropping


def test_a_rule_cancels_the_events_job_or_jobs_by_kind(session_path: Path) -> None:
    session = Session.load(session_path)
    acting.ask_cancel(session, asked(Cancel(jobs=("cooldown",), reason="{x}")), {"x": "why"})
    requested = {name: job.cancel_requested for name, job in session.jobs.items()}
    by = "rule r: why"
    assert requested == {"tiny": None, "tiny-cd100": by, "tiny-cd200": by}
    acting.ask_cancel(session, asked(Cancel()), {})
    assert session.jobs["tiny"].cancel_requested == "rule r"


def test_a_failed_action_of_any_kind_can_be_retried_and_its_deadline_counts_anew(
    session_path: Path,
) -> None:
    session = Session.load(session_path)
    action = asked(Cancel())
    action.asked_at -= timedelta(days=2)
    session.save_action(action)
    acting.fail(session, action, "not done: not within 1 d")
    enqueue(session_path, ActionRequest(key=action.key, verb="retry", by="ann"))
    assert requests.process_requests(session) == [f"ann: retries {action.key}"]
    again = Session.load(session_path).actions[action.key]
    assert again.status is ActionStatus.PENDING
    assert now() - again.asked_at < timedelta(minutes=1)


def test_cancelling_a_whole_session_drops_what_waits(session_path: Path) -> None:
    session = Session.load(session_path)
    session.save_action(asked(Cancel()))
    assert not session.is_over
    requests.request_cancel(session, (), "ann")
    (action,) = Session.load(session_path).actions.values()
    assert (action.status, action.reason) == (ActionStatus.FAILED, "dropped: ann")


# The session as a whole


def test_all_trainings_finished_and_a_budget_passed_are_events_of_the_session(
    story_of: StoryOf,
) -> None:
    story = story_of(
        session_events={
            "end": {"trunks_finished": True, "actions": [{"log": {}}]},
            "costs": {"gpu_hours_above": 1.0, "actions": [{"cancel": {"jobs": ["cooldown"]}}]},
        }
    )
    attempt = story.job().attempts[0]
    attempt.gpus = 4
    story.save(300)
    look = story.look(
        state="COMPLETED", exit_code=0, started_at=now() - timedelta(hours=1), ended_at=now()
    )
    assert of(look, TrunksFinished) == [TrunksFinished(trunks=1)]
    (budget,) = of(look, BudgetPassed)
    assert budget.gpu_hours == pytest.approx(4.0, abs=0.1)
    assert {action.rule for action in look.actions} == {"end", "costs"}
    assert of(story.look(), BudgetPassed) == of(story.open().look(), BudgetPassed) == []


def test_what_jobs_said_in_the_same_look_gives_an_action_each(
    story_of: StoryOf,
) -> None:
    rule = {"say": {"pattern": "fault (?P<n>[0-9])", "every": True, "actions": [{"log": {}}]}}
    story = story_of(log_events=rule)
    say(story, "fault 1")
    say(story, "fault 2")
    actions = story.look().actions
    assert [a.event.values["n"] for a in actions if isinstance(a.event, LogMatched)] == [1, 2]
    assert len({action.key for action in actions}) == 2
    assert story.job().verdict is not Verdict.FAILED
