"""The table of states: every cell a scheduler prints is terminal, running or alive."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoexp import states
from autoexp.states import Fault, Reaction


@pytest.mark.parametrize(
    ("cell", "state"),
    [
        ("COMPLETED", "COMPLETED"),
        ("COMPLETED+", "COMPLETED"),
        ("CANCELLED by 1000", "CANCELLED"),
        ("CANCELLED+", "CANCELLED"),
        ("  RUNNING \n", "RUNNING"),
        ("OUT_OF_MEMORY", "OUT_OF_MEMORY"),
        ("", ""),
        ("   ", ""),
    ],
)
def test_a_cell_is_stripped_to_its_state(cell: str, state: str) -> None:
    assert states.clean(cell) == state


@pytest.mark.parametrize(
    "state",
    [
        *("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"),
        *("COMPLETING", "RESIZING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"),
        *("RESV_DEL_HOLD", states.WAITING, states.SUBMITTING, "", "EXPEDITING", "completed"),
    ],
)
def test_a_state_without_a_row_is_alive(state: str) -> None:
    assert not states.is_terminal(state)
    with pytest.raises(KeyError):
        states.facts(state)


@settings(deadline=None, max_examples=50)
@given(st.text())
def test_whatever_a_scheduler_may_invent_is_alive(state: str) -> None:
    assert states.is_terminal(state) == (state in states.terminal_states())


@pytest.mark.parametrize("state", states.terminal_states())
def test_every_terminal_state_has_its_facts(state: str) -> None:
    row = states.facts(state)
    assert states.is_terminal(state)
    assert not states.is_running(state)
    assert states.clean(state) == state
    assert row.fault in Fault
    assert row.reaction in Reaction
    assert row.meaning


@pytest.mark.parametrize(
    ("state", "fault", "reaction"),
    [
        ("COMPLETED", Fault.NOBODY, Reaction.JUDGE),
        ("FAILED", Fault.USER, Reaction.FAIL),
        ("OUT_OF_MEMORY", Fault.USER, Reaction.FAIL),
        ("CANCELLED", Fault.CANCELLED, Reaction.FAIL),
        ("TIMEOUT", Fault.TIME_LIMIT, Reaction.RESUBMIT),
        ("PREEMPTED", Fault.PREEMPTION, Reaction.RESUBMIT),
        ("NODE_FAIL", Fault.INFRASTRUCTURE, Reaction.RESUBMIT),
        ("BOOT_FAIL", Fault.INFRASTRUCTURE, Reaction.RESUBMIT),
        ("LOST", Fault.INFRASTRUCTURE, Reaction.RESUBMIT),
        ("DEADLINE", Fault.USER, Reaction.FAIL),
    ],
)
def test_the_users_own_faults_are_not_repeated_and_the_clusters_are(
    state: str, fault: Fault, reaction: Reaction
) -> None:
    assert states.facts(state)[:2] == (fault, reaction)


def test_a_job_that_runs_is_not_one_that_waits() -> None:
    assert states.is_running("RUNNING")
    assert states.is_running("COMPLETING")
    assert not states.is_running("PENDING")
    assert not states.is_running("SUSPENDED")
    assert not states.is_running("SOMETHING_NEW")
