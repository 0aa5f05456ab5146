"""Rules: which event leads to which action, once, and under which name on disk."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoexp.config.compose import Composed
from autoexp.config.cooldowns import Cooldown
from autoexp.config.experiment import Experiment, Project
from autoexp.monitor.decide import Asked, Rule, action_key, decide, implied
from autoexp.planning.plan import make_plan
from autoexp.rules.actions import Decay, Start
from autoexp.rules.events import AttemptJudged, CheckpointComplete, Event, JobGivenUp, StateChanged
from autoexp.rules.rules import OnCheckpoint
from autoexp.session.action_records import ActionRecord
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.builders import create

CHECKPOINT = CheckpointComplete(job="t", iteration=100, path="/t/iter_0000100")
BOTH = Rule(
    name="both",
    on=OnCheckpoint(job="t", iteration=100),
    then=(Asked(Start(job="a")), Asked(Start(job="b"))),
)
LATER = Rule(name="later", on=OnCheckpoint(job="t", iteration=200), then=(Asked(Start(job="c")),))
KEYS = ["both--checkpoint_t_100--0", "both--checkpoint_t_100--1"]


@pytest.mark.parametrize(
    ("event", "history", "launched"),
    [
        (CHECKPOINT, [], ["a", "b"]),
        (CHECKPOINT, KEYS[:1], ["b"]),
        (CHECKPOINT, KEYS, []),
        (CHECKPOINT.model_copy(update={"path": "/moved"}), KEYS, []),
        (CHECKPOINT.model_copy(update={"iteration": 200}), KEYS, ["c"]),
        (CHECKPOINT.model_copy(update={"iteration": 150}), [], []),
        (CHECKPOINT.model_copy(update={"job": "a"}), [], []),
        (StateChanged(job="t", attempt=1, position=1, old="PENDING", new="RUNNING"), [], []),
        (JobGivenUp(job="t", reason="r"), [], []),
        (
            AttemptJudged(
                job="t", attempt=1, verdict=Verdict.FINISHED, state="X", iteration=100, reason="r"
            ),
            [],
            [],
        ),
    ],
)
def test_an_event_leads_to_the_actions_of_its_rules_that_are_new(
    event: Event, history: list[str], launched: list[str]
) -> None:
    decided = decide(event, [BOTH, LATER], history)
    assert [record.action.job for record in decided] == launched
    assert all(record.status == "pending" and record.event == event for record in decided)


def test_deciding_twice_gives_the_same_keys() -> None:
    first, second = decide(CHECKPOINT, [BOTH]), decide(CHECKPOINT, [BOTH])
    assert [record.key for record in first] == [record.key for record in second] == KEYS


def test_a_cooldown_starts_at_its_parents_checkpoint_and_at_no_other(composed: Composed) -> None:
    rules = implied(make_plan(composed.experiment, Path("/out")).jobs)
    seen = [
        [record.action.job for record in decide(event, rules)]
        for iteration in (100, 200, 300)
        for event in [CheckpointComplete(job="tiny", iteration=iteration, path="/x")]
    ]
    assert seen == [["tiny-cd100"], ["tiny-cd200"], []]


@settings(deadline=None, max_examples=50)
@given(st.text(), st.text(), st.integers(0, 9))
def test_an_actions_key_is_safe_as_a_file_name(rule: str, event: str, position: int) -> None:
    key = action_key(rule, event, position)
    assert key.isascii()
    assert not set(key) & set("/\\\0\n \"'*?$&;|<>~:")
    assert key not in (".", "..")


def test_an_actions_key_tells_rule_event_and_position_apart() -> None:
    keys = [
        action_key(rule, event, position)
        for rule in ("start-a", "start-b")
        for event in ("checkpoint/a/1", "checkpoint/a/11", "checkpoint/b/1")
        for position in (0, 1)
    ]
    assert len(set(keys)) == len(keys)


def test_a_key_too_long_for_a_file_keeps_its_head_and_tells_itself_apart() -> None:
    event = f"log/{'j' * 160}/a1/{'r' * 40}/0-"
    keys = [action_key("r" * 40, f"{event}{n}", position) for n in (1, 2) for position in (0, 1)]
    assert len({*keys}) == 4 and keys[0] == action_key("r" * 40, f"{event}1", 0)
    for key in keys:
        assert key.startswith(f"{'r' * 40}--log_jjj")
        assert len(f".{key}.json.xxxxxxxx.tmp") == 255


def test_a_key_that_fits_stays_what_sessions_have_on_disk() -> None:
    assert action_key("r", "state/j/a1/0/FAILED", 0) == "r--state_j_a1_0_FAILED--0"
    longest = action_key("r" * 40, "e" * 191, 0)
    assert longest == f"{'r' * 40}--{'e' * 191}--0" and len(longest) == 236


def test_the_longest_names_still_make_file_names(tmp_path: Path, composed: Composed) -> None:
    long = Experiment(
        project=Project(name="p" * 60),
        backend=composed.experiment.backend,
        slurm=composed.experiment.slurm,
        cooldowns=(Cooldown(at=(100,), decay=Decay(iterations=50), name="c" * 40),),
    )
    path = create(composed._replace(experiment=long), tmp_path)
    session = Session.load(path)
    event = CheckpointComplete(job="p" * 60, iteration=100, path="/x")
    (action,) = decide(event, implied(session.plan.jobs))
    session.save_action(action)
    assert list(Session.load(path).actions) == [action.key]


def test_a_record_reads_back_as_it_was_written() -> None:
    (first, _) = decide(CHECKPOINT, [BOTH])
    assert ActionRecord.model_validate_json(first.model_dump_json()) == first
