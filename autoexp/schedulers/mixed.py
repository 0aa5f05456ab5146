"""A cluster's jobs, and those of the same session that run beside the monitor.

A transfer from a login node needs no allocation: its attempts are local ones, and each call goes to
the scheduler that has the attempt.
"""

from collections.abc import Sequence

from autoexp.jobs.record import Attempt
from autoexp.jobs.spec import JobSpec
from autoexp.schedulers.base import (
    AttemptRef,
    JobStatus,
    PayloadSpec,
    Scheduler,
    SubmitOptions,
)
from autoexp.schedulers.local import LocalScheduler


class MixedScheduler:
    """Hands attempts to a cluster's scheduler, or to that of this machine."""

    def __init__(self, cluster: Scheduler) -> None:
        self.cluster = cluster
        self._local = LocalScheduler()

    def _of(self, is_local: bool) -> Scheduler:
        return self._local if is_local else self.cluster

    def payload_spec(self, spec: JobSpec, attempt: Attempt) -> PayloadSpec:
        return self._of(attempt.is_local).payload_spec(spec, attempt)

    def submit(self, ref: AttemptRef, options: SubmitOptions, lock: int) -> str:
        return self._of(ref.is_local).submit(ref, options, lock)

    def longest_array(self) -> int:
        return self.cluster.longest_array()

    def find(self, ref: AttemptRef, *, in_flight: bool) -> str | None:
        return self._of(ref.is_local).find(ref, in_flight=in_flight)

    def query(self, refs: Sequence[AttemptRef]) -> dict[str, JobStatus]:
        """Query the cluster about its own attempts alone: for local ones it is not asked."""
        here, there = _divided(refs)
        found = self._local.query(here) if here else {}
        return found | (self.cluster.query(there) if there or not here else {})

    def cancel(self, refs: Sequence[AttemptRef]) -> dict[str, str]:
        here, there = _divided(refs)
        found = self._local.cancel(here) if here else {}
        return found | (self.cluster.cancel(there) if there else {})

    def tell(self, ref: AttemptRef, name: str) -> str:
        return self._of(ref.is_local).tell(ref, name)

    def avoid(self, refs: Sequence[AttemptRef], nodes: Sequence[str]) -> None:
        if there := _divided(refs)[1]:
            self.cluster.avoid(there, nodes)


def _divided(refs: Sequence[AttemptRef]) -> tuple[list[AttemptRef], list[AttemptRef]]:
    """The attempts of this machine, and those of the cluster."""
    return [ref for ref in refs if ref.is_local], [ref for ref in refs if not ref.is_local]
