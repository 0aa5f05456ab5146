"""What happens to a job stands in the log of its own run too: its page can be read alone."""

import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

from prefect.logging.handlers import APILogHandler

from autoexp import sinks

NAME = "prefect.flow_runs.jobs"
_EARLY = 50
"""Lines about a job that its run is told once it has begun."""


class JobLogs:
    """Tells each job's run what is logged about the job."""

    def __init__(self) -> None:
        self._flow_run_ids: dict[str, str] = {}
        self._early: dict[str, deque[logging.LogRecord]] = {}
        self._handler = APILogHandler()
        self._logger = logging.getLogger(NAME)
        # Who watches in a terminal reads these lines in the session's log already.
        self._logger.propagate = False
        self._logger.setLevel(logging.INFO)
        self._logger.addFilter(sinks.LINES)
        self._logger.addHandler(self._handler)

    def close(self) -> None:
        """Tell nothing more."""
        self._logger.removeHandler(self._handler)

    def begin(self, job: str, flow_run_id: str) -> None:
        """Note that a job's run has begun: it is told what was logged before, too."""
        self._flow_run_ids[job] = flow_run_id
        for record in self._early.pop(job, ()):
            self._send(record, flow_run_id)

    def end(self, job: str) -> None:
        """Note that a job is to have another run."""
        self._flow_run_ids.pop(job, None)

    def tell(self, job: str, message: str, level: int = logging.INFO) -> None:
        """Tell a job's run a line, now or once it has begun."""
        record = self._logger.makeRecord(NAME, level, "", 0, message, (), None)
        if (flow_run_id := self._flow_run_ids.get(job)) is not None:
            self._send(record, flow_run_id)
        else:
            self._early.setdefault(job, deque(maxlen=_EARLY)).append(record)

    def _send(self, record: logging.LogRecord, flow_run_id: str) -> None:
        record.flow_run_id = flow_run_id
        self._logger.handle(record)

    def beside(self, jobs: Sequence[str], log: "logging.Logger | Any") -> "TwoLogs":
        """The session's log, whose lines the runs of these jobs are told too."""
        return TwoLogs(self, jobs, log)


class TwoLogs(logging.LoggerAdapter[Any]):
    """Logs for a session and for some of its jobs."""

    def __init__(self, logs: JobLogs, jobs: Sequence[str], log: "logging.Logger | Any") -> None:
        super().__init__(log, {})
        self._logs = logs
        self._jobs = jobs

    def log(self, level: int, msg: object, *args: object, **others: Any) -> None:
        """Log a line in the session's log, and in those of the jobs' runs."""
        self.logger.log(level, msg, *args, **others)
        if sinks.IS_EVENT in (others.get("extra") or {}):
            return  # it comes as an event, too
        for job in self._jobs:
            self._logs.tell(job, str(msg) % args if args else str(msg), level)
