"""Verdicts: what an ended attempt means, as a table over how it ended and how far it came."""

import itertools

import pytest

from autoexp import states
from autoexp.backends.protocol import Branch
from autoexp.jobs.record import JobRecord
from autoexp.jobs.verdicts import Judgement, judge, made_progress
from autoexp.states import Verdict
from tests.builders import attempt_of, spec_of

FINISHED, CONTINUE, FAILED = Verdict.FINISHED, Verdict.CONTINUE, Verdict.FAILED
RESUBMITTED = ("TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "LOST")
USERS = ("FAILED", "OUT_OF_MEMORY", "CANCELLED", "DEADLINE", "REVOKED")


def judged(
    state: str,
    *,
    target: int | None = 300,
    saved: tuple[int, ...] = (),
    logged: int | None = None,
    first: int = 0,
    warned: bool = False,
    cancelled: str | None = None,
    idle_before: int = 0,
    exit_code: int | None = None,
    signal: int | None = None,
    reason: str | None = None,
    branch: Branch | None = None,
) -> Judgement:
    """Judge the only attempt of a job; three attempts without progress are the most."""
    attempt = attempt_of(
        state=state,
        first_iteration=first,
        warned=warned,
        exit_code=exit_code,
        signal=signal,
        reason=reason,
    )
    job = JobRecord(
        spec=spec_of("true", target_iteration=target, branch=branch),
        attempts=[attempt],
        iteration=logged,
        checkpoints=list(saved),
        attempts_without_progress=idle_before,
        cancel_requested=cancelled,
    )
    return judge(job, attempt, most_without_progress=3)


@pytest.mark.parametrize("state", states.terminal_states())
def test_a_job_whose_target_is_saved_is_finished_however_it_ended(state: str) -> None:
    assert judged(state, saved=(100, 300)) == (FINISHED, "reached iteration 300")


@pytest.mark.parametrize("state", states.terminal_states())
def test_a_job_that_was_asked_to_end_has_failed_and_says_who_asked(state: str) -> None:
    assert judged(state, saved=(100,), cancelled="ann") == (FAILED, "cancelled: ann")


def test_completed_below_the_target_goes_on() -> None:
    verdict, reason = judged("COMPLETED", saved=(100, 200), logged=210)
    assert (verdict, reason) == (CONTINUE, "COMPLETED at iteration 210 of 300")


def test_completed_with_the_target_in_the_log_alone_is_not_finished() -> None:
    verdict, reason = judged("COMPLETED", saved=(200,), logged=300)
    assert verdict is CONTINUE
    assert reason == (
        "COMPLETED, but the log comes to iteration 300, and /out/checkpoints has no checkpoint of "
        "300 (its newest is 200)"
    )
    again = judged("COMPLETED", saved=(200,), logged=300, first=200, idle_before=2)
    assert again.verdict is FAILED
    assert "no checkpoint of 300 (its newest is 200); 3 attempts in a row" in again.reason
    assert "(it has none)" in judged("COMPLETED", logged=300).reason


def test_a_crash_with_the_target_in_the_log_only_is_not_finished() -> None:
    assert judged("FAILED", saved=(200,), logged=300, exit_code=1).verdict is FAILED


@pytest.mark.parametrize("state", RESUBMITTED)
@pytest.mark.parametrize("warned", [False, True])
def test_what_was_not_the_users_fault_goes_on(state: str, warned: bool) -> None:
    assert judged(state, saved=(100,), warned=warned).verdict is CONTINUE


@pytest.mark.parametrize("state", USERS)
def test_what_was_the_users_fault_has_failed_in_spite_of_progress(state: str) -> None:
    assert judged(state, saved=(100,)).verdict is FAILED


def test_an_error_after_the_warning_is_an_interruption() -> None:
    verdict, reason = judged("FAILED", saved=(100,), warned=True, exit_code=1)
    assert verdict is CONTINUE
    assert reason == "ended on the warning 30 s before the limit at iteration 100 of 300"


@pytest.mark.parametrize(
    "ending",
    [
        {"state": "TIMEOUT", "reason": states.ENDED_ON_WARNING},
        {"state": "FAILED", "reason": "NonZeroExitCode"},
    ],
)
def test_a_trainer_that_dies_of_the_warning_without_saving_has_reached_its_time_limit(
    ending: dict[str, str],
) -> None:
    verdict, reason = judged(**ending, warned=True, signal=15)  # type: ignore[arg-type]
    words = "ended on the warning 30 s before the limit without a new checkpoint; it does not save"
    assert verdict is CONTINUE
    assert reason.startswith(words)
    again = judged(**ending, warned=True, signal=15, idle_before=2)  # type: ignore[arg-type]
    assert again.verdict is FAILED
    assert again.reason.startswith(words)
    assert "3 attempts in a row" in again.reason


@pytest.mark.parametrize("state", [state for state in USERS if state != "FAILED"])
def test_what_is_not_of_the_warning_is_not_put_down_to_it(state: str) -> None:
    assert "warning" not in judged(state, warned=True).reason


def test_of_a_cancelled_attempt_it_is_said_who_cancelled_it() -> None:
    reason = judged("CANCELLED", reason="by ann", signal=15).reason
    assert reason == "CANCELLED by ann (signal 15, by someone else)"


@pytest.mark.parametrize("state", ["COMPLETED", *RESUBMITTED])
@pytest.mark.parametrize(
    ("idle_before", "saved", "verdict"),
    [
        (0, (), CONTINUE),
        (1, (), CONTINUE),
        (2, (), FAILED),
        (2, (100,), CONTINUE),
        (9, (100,), CONTINUE),
    ],
)
def test_the_third_attempt_in_a_row_without_a_checkpoint_is_the_last(
    state: str, idle_before: int, saved: tuple[int, ...], verdict: Verdict
) -> None:
    judgement = judged(state, idle_before=idle_before, saved=saved, logged=90)
    assert judgement.verdict is verdict
    if verdict is FAILED:
        assert "3 attempts in a row without a new iteration" in judgement.reason


@pytest.mark.parametrize(
    ("state", "verdict"),
    [("COMPLETED", FINISHED), ("FAILED", FAILED), ("CANCELLED", FAILED), ("NODE_FAIL", CONTINUE)],
)
def test_a_job_without_a_target_goes_by_its_exit_code(state: str, verdict: Verdict) -> None:
    assert judged(state, target=None).verdict is verdict


def test_the_reason_of_a_job_without_a_target_names_no_target() -> None:
    assert "None" not in judged("NODE_FAIL", target=None).reason


def test_progress_is_what_was_saved_since_the_attempt_began() -> None:
    assert judged("TIMEOUT", first=100, saved=(100,), idle_before=2, logged=150).verdict is FAILED
    assert judged("TIMEOUT", first=100, saved=(100, 200), idle_before=2).verdict is CONTINUE


def test_a_branchs_own_start_is_no_progress() -> None:
    branch = Branch(iteration=200, decay_iterations=100, shape="linear", min_lr=0.0)
    judgement = judged("TIMEOUT", branch=branch, first=200, idle_before=2)
    assert judgement.verdict is FAILED
    assert judged("TIMEOUT", branch=branch, first=200).reason == "TIMEOUT at iteration 200 of 300"


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ({"state": "FAILED", "exit_code": 1}, "FAILED (exit code 1)"),
        ({"state": "FAILED", "signal": 11}, "FAILED (signal 11)"),
        ({"state": "CANCELLED"}, "CANCELLED (by someone else)"),
        ({"state": "OUT_OF_MEMORY"}, "OUT_OF_MEMORY"),
    ],
)
def test_the_reason_says_how_it_ended(ending: dict[str, object], words: str) -> None:
    assert judged(**ending).reason == words  # type: ignore[arg-type]


CASES = list(
    itertools.product(
        states.terminal_states(), (None, 300), ((), (100,), (100, 300)), (False, True), (0, 2)
    )
)


@pytest.mark.parametrize(("state", "target", "saved", "warned", "idle"), CASES)
def test_every_ending_has_a_verdict_and_a_reason(
    state: str, target: int | None, saved: tuple[int, ...], warned: bool, idle: int
) -> None:
    verdict, reason = judged(state, target=target, saved=saved, warned=warned, idle_before=idle)
    assert reason
    # A cancellation comes too late for a job whose target is saved.
    asked_to_end = judged(state, target=target, saved=saved, cancelled="x").verdict
    assert asked_to_end is (FINISHED if target in saved else FAILED)
    if verdict is CONTINUE:
        assert target not in saved
        assert saved or idle + 1 < 3
        assert states.facts(state).reaction is not states.Reaction.FAIL or (
            warned and (saved or state == "FAILED")
        )


def test_a_record_tells_where_its_job_would_go_on() -> None:
    attempt = attempt_of(first_iteration=100)
    job = JobRecord(spec=spec_of("true"), attempts=[attempt])
    assert job.saved_iteration == 0
    job.checkpoints = [100, 200]
    assert job.saved_iteration == 200
    assert made_progress(job, attempt)
