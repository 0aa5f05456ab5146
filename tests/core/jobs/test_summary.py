"""What a job is doing, in a person's words."""

from typing import Any

import pytest

from autoexp.jobs.record import JobRecord, RestartRequest
from autoexp.jobs.summary import activity_of
from autoexp.states import Activity, Verdict
from tests.builders import attempt_of, spec_of

ENDED = attempt_of(job_id="6", state="TIMEOUT", verdict=Verdict.CONTINUE)


def job(*attempts: Any, **changes: Any) -> JobRecord:
    return JobRecord(spec=spec_of("true"), attempts=list(attempts), **changes)


@pytest.mark.parametrize(
    ("record", "activity"),
    [
        (job(), Activity.WAITING),
        (job(attempt_of()), Activity.WAITING),
        (job(attempt_of(job_id="7", state="PENDING")), Activity.QUEUED),
        (job(attempt_of(job_id="7", state="CONFIGURING")), Activity.QUEUED),
        (job(attempt_of(job_id="7", state="RUNNING")), Activity.RUNNING),
        # It logs: the scheduler is yet to say that it runs.
        (job(attempt_of(job_id="7", state="PENDING", first_logged=(1,))), Activity.RUNNING),
        (job(ENDED), Activity.RESUBMITTING),
        (job(ENDED, attempt_of(number=2)), Activity.RESUBMITTING),
        (job(ENDED, attempt_of(number=2, job_id="8", state="PENDING")), Activity.QUEUED),
    ],
)
def test_what_a_job_does_is_told_by_its_attempts(record: JobRecord, activity: Activity) -> None:
    assert activity_of(record) is activity


@pytest.mark.parametrize(
    ("back", "activity"), [(None, Activity.RESUBMITTING), (100, Activity.ROLLING_BACK)]
)
def test_a_restart_is_told_from_a_roll_back(back: int | None, activity: Activity) -> None:
    asked = RestartRequest(attempt=1, action="a", reason="NaN", roll_back_to=back)
    record = job(attempt_of(job_id="7", state="RUNNING"), restart=asked)
    assert activity_of(record) is activity
