"""Jobs of real trainers."""

from pathlib import Path

import pytest

from autoexp.schedulers.base import AttemptRef
from tests.builders import attempt_of, spec_of
from tests.processes import Job, JobOf
from tests.trainers.real import torch_python


@pytest.fixture
def torch() -> str:
    """A Python with torch."""
    return torch_python("torch")


@pytest.fixture
def job_of(tmp_path: Path) -> JobOf:
    """`job_of(*command)` is an attempt at the command, which runs in the directory `output`."""

    def make(*command: str) -> Job:
        directory = tmp_path / "attempts" / "s1-real-a1"
        spec = spec_of(*command, directory=tmp_path / "output")
        attempt = attempt_of("s1-real-a1", str(directory / "job.log"))
        return Job(AttemptRef("s1-real-a1", directory, "s1-real-a1", "batch.sh"), spec, attempt)

    return make
