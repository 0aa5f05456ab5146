"""Requests that somebody makes."""

from pathlib import Path

from autoexp.jobs.spec import JobSpec
from autoexp.session.inbox import CancelRequest, SubmitRequest
from autoexp.states import Kind
from tests.builders import spec_of


def job(name: str, command: str = "true") -> JobSpec:
    return spec_of(command, name=name, kind=Kind.COMMAND, directory=Path("/out") / name)


def submit(*specs: JobSpec) -> SubmitRequest:
    return SubmitRequest(jobs=specs, by="ann")


def cancel(*names: str, by: str = "ann") -> CancelRequest:
    return CancelRequest(jobs=names, by=by)
