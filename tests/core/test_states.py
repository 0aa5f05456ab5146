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


@pytest.mark.parametrize(
    ("cell", "uid"),
    [
        ("CANCELLED by 1000", 1000),
        ("CANCELLED by 0", 0),
        ("CANCELLED", None),
        ("CANCELLED+", None),
        ("CANCELLED by ann", None),
        ("CANCELLED by ²", None),
        ("CANCELLED by " + "9" * 5000, 9999999999),
        ("COMPLETED by 1000", None),
        ("", None),
    ],
)
def test_the_user_who_cancelled_a_job_stands_in_the_cell(cell: str, uid: int | None) -> None:
    assert states.canceller(cell) == uid


FOR_EVER = {
    "held": (
        *("launch failed requeued held", "launch_failed_requeued_held", "JobHoldMaxRequeue"),
        *("job requeued in held state", "(job requeued in special exit state)", "JobHeldUser"),
        *("launch failure limit exceeded requeued held", "JobHeldAdmin", "JobLaunchFailure"),
        "user env retrieval failed requeued held",
    ),
    "reservation": (
        *("ReservationDeleted", "ReservationInvalid", "Reservation big was deleted"),
        "Reservation big is invalid",
    ),
    "limit": (
        *("QOSMaxWallDurationPerJobLimit", "AssocMaxWallDurationPerJobLimit", "QOSMaxGRESPerJob"),
        *("AssocMaxNodePerJobLimit", "QOSMaxCpuPerNode", "QOSMaxCpuMinutesPerJobLimit"),
        *("QOSMinGRES", "QOSMinCpuNotSatisfied", "AssocMaxBillingPerNode", "PartitionConfig"),
        "AccountingPolicy",
    ),
    "used up": (
        *("AssocGrpCPUMinutesLimit", "AssocGrpBillingMinutes", "QOSGrpGRESMinutes"),
        *("AssocGrpWallLimit", "QOSGrpWallLimit", "QOSUsageThreshold"),
        "Job is at or exceeds QOS big's group max TRES(gres/gpu) minutes of 10 with 10",
        "Job is at or exceeds association (acc=a/user=b/part=) group wall limit 10 with 10",
    ),
    "slurm.account": ("InvalidAccount", "AccountNotAllowed"),
    "slurm.qos": ("InvalidQOS", "QOSNotAllowed"),
    "slurm.partition": (
        *("PartitionDown", "PartitionInactive"),
        "uid 1000 not in group permitted to use this partition (big). groups allowed: a",
    ),
    "slurm.": ("PartitionTimeLimit", "PartitionNodeLimit", "BadConstraints", "MaxMemPerLimit"),
    "cancel": ("DependencyNeverSatisfied",),
}


@pytest.mark.parametrize(
    ("word", "reason"), [(word, reason) for word, many in FOR_EVER.items() for reason in many]
)
def test_a_reason_for_which_a_job_waits_for_ever_comes_with_advice(word: str, reason: str) -> None:
    assert word in (states.stuck(reason) or "")


@pytest.mark.parametrize(
    "reason",
    [
        *("Priority", "Resources", "None", "Dependency", "BeginTime", "Licenses", "Prolog"),
        *("QOSMaxJobsPerUserLimit", "QOSMaxGRESPerUser", "QOSGrpNodeLimit", "AssocGrpGRES"),
        *("QOSGrpCPURunMinutesLimit", "AssocGrpGRESRunMinutes", "MaxGRESPerAccount"),
        *("AssocMaxJobsLimit", "JobArrayTaskLimit", "Reservation", "Cleaning", "Constraints"),
        "ReqNodeNotAvail, Reserved for maintenance",
        "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority",
        *("", "x" * 100_000),
    ],
)
def test_a_reason_that_passes_comes_without(reason: str) -> None:
    assert states.stuck(reason) is None
