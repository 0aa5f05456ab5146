"""Submissions that a monitor may not have seen the end of, and how often each ran."""

from pathlib import Path

from tests.slurm.bench import Bench

# Says that it ran: twice is once too often.
RUN = ("sh", "-c", "echo $SLURM_JOB_ID >>runs")


def resume(path: Path, name: str) -> str:
    """What the next monitor does about the job; returns the job id."""
    bench = Bench(path)
    if not bench.jobs[name].attempts:
        bench.begin(name)
    attempt = bench.attempt(name)
    return attempt.job_id or bench.send(name, fresh=False)


def runs(bench: Bench, name: str) -> list[str]:
    """Ids of the jobs that ran the command."""
    path = Path(bench.jobs[name].spec.output_dir) / "runs"
    return path.read_text().split() if path.exists() else []


def assert_one_job(path: Path, names: list[str]) -> None:
    """Each job was submitted once, is known under that id, and ran once."""
    bench = Bench(path)
    bench.wait("COMPLETED", *names)
    for name in names:
        job_id = bench.attempt(name).job_id
        assert bench.real_jobs(name) == {job_id}, name
        assert runs(bench, name) == [job_id], name
