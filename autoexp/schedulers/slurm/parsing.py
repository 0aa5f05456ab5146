"""Parses the output of squeue and sacct."""

import math
import pwd
from datetime import UTC, datetime
from typing import NamedTuple

from autoexp import states
from autoexp.schedulers.base import JobStatus

# One query for everything: 8 ms for one job, 46 ms for 1,000 (SLURM 22.05; --json takes 1 s).
SQUEUE_FORMAT = (
    "JobArrayID:.60|,State:.20|,exit_code:.12|,Reason:.80|,StartTime:.30|,EndTime:.30|,"
    "NodeList:.300|,Name:.200|"
)
SACCT_FORMAT = "JobID,JobName,State,ExitCode,DerivedExitCode,Start,End,NodeList"

# SLURM reports a kill for memory as exit signal 125.
_OUT_OF_MEMORY_SIGNAL = 125
_LARGEST_STATUS = 0xFFFF
_LAST_SECOND = 253_402_300_799
"""Of the year 9999: datetime knows no later one."""
_LONGEST_LIMIT = 10**7
_DIGITS = 15


class Row(NamedTuple):
    """One job as listed by a command."""

    job_id: str
    name: str
    status: JobStatus


def read_squeue(text: str) -> list[Row]:
    """Read the output of `squeue -h -r -t all -O SQUEUE_FORMAT`, times in seconds since 1970."""
    rows = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) < 8:
            continue
        job_id, state, raw_exit, reason, start, end, nodes = cells[:7]
        # A name may hold the separator itself.
        name = "|".join(cells[7:-1])
        state = states.clean(state)
        code, signal = _wait_status(raw_exit) if states.is_terminal(state) else (None, None)
        rows.append(
            Row(
                job_id,
                name,
                JobStatus(
                    state=state,
                    reason=None if reason in ("None", "") else reason,
                    exit_code=code,
                    signal=signal,
                    nodes=nodes or None,
                    # Of a pending job SLURM shows when it expects to start it.
                    started_at=None if state == "PENDING" else _time(start),
                    ended_at=_time(end) if states.is_terminal(state) else None,
                    expected_at=_time(start) if state == "PENDING" else None,
                ),
            )
        )
    return rows


def read_sacct(text: str) -> list[Row]:
    """Read `sacct -X -D -n -P -o SACCT_FORMAT`; of several rows of an id the last one counts."""
    rows: dict[str, Row] = {}
    for line in text.splitlines():
        cells = line.split("|")
        if len(cells) < 8:
            continue
        job_id, name, state, exit_code, derived, start, end = cells[:7]
        nodes = cells[-1]
        reason = _by_whom(state)
        state = states.clean(state)
        code, signal = _pair(exit_code)
        if state == "FAILED" and _pair(derived)[1] == _OUT_OF_MEMORY_SIGNAL:
            # Inside an srun step the kill for memory shows in the derived exit code only.
            state = "OUT_OF_MEMORY"
        rows[job_id] = Row(
            job_id,
            name,
            JobStatus(
                state=state,
                reason=reason,
                exit_code=code,
                signal=signal,
                nodes=None if nodes in ("None assigned", "") else nodes,
                started_at=_time(start),
                ended_at=_time(end),
            ),
        )
    return list(rows.values())


def _by_whom(cell: str) -> str | None:
    """The user who cancelled a job: `by ann` of the cell `CANCELLED by 1000`."""
    uid = states.canceller(cell)
    if uid is None:
        return None
    try:
        return f"by {pwd.getpwuid(uid).pw_name}"
    except (KeyError, OverflowError):  # who is unknown on this node
        return f"by the user of id {uid}"


def _wait_status(cell: str) -> tuple[int | None, int | None]:
    """Exit code and signal of a raw wait status: code in the high byte, signal in seven bits."""
    status = _number(cell, _LARGEST_STATUS)
    if status is None:
        return None, None
    signal = status & 0x7F
    return (None, signal) if signal else (status >> 8, None)


def _pair(cell: str) -> tuple[int | None, int | None]:
    """Exit code and signal of a cell such as `3:0`."""
    first, _, second = cell.partition(":")
    code, signal = _number(first, 0xFF), _number(second, 0xFF)
    if code is None or signal is None:
        return None, None
    return (None, signal) if signal else (code, None)


def _time(cell: str) -> datetime | None:
    """`A time; `N/A`, `Unknown` and `None` are None."""
    seconds = _number(cell, _LAST_SECOND)
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


def _number(cell: str, largest: int) -> int | None:
    """A cell's number; None if it is not one, as `²`, which Python takes for a digit."""
    if not (cell.isascii() and cell.isdigit() and len(cell) <= _DIGITS):
        return None
    number = int(cell)
    return number if number <= largest else None


def read_limit(text: str) -> float:
    """Minutes of a time limit such as `infinite`, `30:00`, `12:00:00` or `2-00:00:00`."""
    days, _, clock = text.rpartition("-")
    whole = _number(days or "0", _LONGEST_LIMIT)
    parts = [_number(part, _LONGEST_LIMIT) for part in clock.split(":")]
    numbers = [part for part in parts if part is not None]
    if whole is None or len(numbers) < len(parts) or len(parts) > 3:
        return math.inf
    # sinfo shows minutes and seconds, or hours too; with days in front, hours come first.
    hours, minutes, seconds = [*[0] * (3 - len(numbers)), *numbers][:3]
    return whole * 1440 + hours * 60 + minutes + seconds / 60


def read_longest(text: str, *, default: bool) -> float:
    """Most minutes that partitions allow, by `sinfo -h -o "%P %l"`; infinite without a limit.

    `default` takes the default partition alone.
    """
    lines = [line.split() for line in text.splitlines()]
    limits = [x[1] for x in lines if len(x) == 2 and (not default or x[0].endswith("*"))]
    # A job may run in any of its partitions, so the longest counts.
    return max((read_limit(limit) for limit in limits), default=math.inf)


def read_scripts(text: str) -> dict[str, str]:
    """The submitted command of each job, from lines `id|command`."""
    rows = (line.partition("|") for line in text.splitlines())
    return {job_id: words for job_id, bar, words in rows if bar}


def of_script(text: str, script: str) -> list[str]:
    """Ids of the jobs that were submitted with a batch script."""
    return [job_id for job_id, words in read_scripts(text).items() if f"/{script}" in words]
