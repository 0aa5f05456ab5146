"""Exactly one submission, whatever dies, hangs or answers wrongly on the way."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from autoexp.errors import SubmissionUncertain
from tests.slurm.bench import Bench, slurm, until
from tests.slurm.commands import HIDE_ENDED, Commands

pytestmark = pytest.mark.slurm

# A process that does what a monitor does for a job that wants an attempt.
_SUBMIT = """
import sys
from pathlib import Path
from tests.slurm.bench import Bench
bench = Bench(Path(sys.argv[1]))
bench.begin(sys.argv[2])
bench.send(sys.argv[2], fresh=True)
"""
# Says that it ran: twice is once too often.
RUN = ("sh", "-c", "echo $SLURM_JOB_ID >>runs")
TIMED_OUT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"


def start_submission(bench: Bench, name: str, kill_at: int = 0) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", _SUBMIT, str(bench.session.path), name],
        env={**os.environ, "AUTOEXP_TEST_KILL_AT": str(kill_at)},
        cwd=Path(__file__).parents[2],
    )


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


def test_a_monitor_killed_at_any_step_of_a_submission_leaves_exactly_one_job(bench: Bench) -> None:
    path, names = bench.session.path, []
    for step in range(1, 30):
        name = f"killed-at-{step}"
        bench.add(name, RUN)
        names.append(name)
        code = start_submission(bench, name, kill_at=step).wait(timeout=60)
        assert code in (0, -9), code
        if code == 0:
            break
    assert len(names) > 8, "the steps are not what they were"

    # Each waits for seconds of healthy answers: all at once.
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: resume(path, name), names))
    assert_one_job(path, names)


def test_whoever_resumes_waits_for_an_sbatch_that_outlived_its_monitor(
    bench: Bench, commands: Commands
) -> None:
    commands.tell(
        "sbatch",
        """case "$*" in
*slow-before*) sleep 3 ;;
*slow-after*) "$real" "$@"; code=$?; sleep 3; exit $code ;;
esac""",
    )
    names = ["slow-before", "slow-after"]
    for name in names:
        bench.add(name, RUN)
    monitors = [start_submission(bench, name) for name in names]
    until(lambda: len(commands.calls("sbatch")) == 2, "two sbatch")
    for monitor in monitors:
        monitor.kill()
        monitor.wait()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: resume(bench.session.path, name), names))
    assert_one_job(bench.session.path, names)
    assert len(commands.calls("sbatch")) == 2


def test_a_submission_that_timed_out_is_looked_up_before_it_is_repeated(
    bench: Bench, commands: Commands
) -> None:
    commands.tell(
        "sbatch",
        f"""case "$*" in
*accepted*) "$real" "$@" >/dev/null ;;
esac
echo '{TIMED_OUT}' >&2
exit 1""",
    )
    names = ["accepted", "not-taken"]
    for name in names:
        bench.add(name, RUN)
        bench.begin(name)
        with pytest.raises(SubmissionUncertain, match="Socket timed out"):
            bench.send(name, fresh=True)
    commands.behaves()
    commands.forget()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: resume(bench.session.path, name), names))
    assert_one_job(bench.session.path, names)
    assert [("not-taken" in call.arguments) for call in commands.calls("sbatch")] == [True]


def test_the_job_of_an_sbatch_that_hangs_is_found_while_it_hangs(
    bench: Bench, commands: Commands
) -> None:
    commands.tell("sbatch", '"$real" "$@" >/dev/null; exec sleep 20')
    bench.add("job", RUN)
    monitor = start_submission(bench, "job")
    until(lambda: commands.calls("sbatch"), "sbatch")
    monitor.kill()
    monitor.wait()

    resume(bench.session.path, "job")
    assert_one_job(bench.session.path, ["job"])


def test_a_job_that_ended_while_nobody_watched_is_not_submitted_again(
    bench: Bench, commands: Commands
) -> None:
    bench.add("job", RUN)
    # The monitor dies before it reads the answer.
    commands.tell("sbatch", '"$real" "$@" >/dev/null; kill -9 "$PPID"; exit 0')
    assert start_submission(bench, "job").wait(timeout=60) == -9
    until(lambda: runs(bench, "job"), "the job")
    commands.tell("squeue", HIDE_ENDED)

    assert [resume(bench.session.path, "job")] == runs(bench, "job")
    commands.behaves()
    assert_one_job(bench.session.path, ["job"])


def test_a_job_of_the_same_name_from_an_older_session_is_not_taken_for_ours(
    bench: Bench, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoexp.schedulers.slurm._CLOCKS_DIFFER", timedelta(0))
    name = f"{bench.session.id}-job-a1"
    older = slurm(
        "sbatch",
        "--parsable",
        "-p",
        "main",
        "--mem=10M",
        "-J",
        name,
        "-o",
        "/dev/null",
        "--wrap",
        "true",
    )
    time.sleep(1.1)  # SLURM's times are whole seconds
    bench.add("job", RUN)
    bench.begin("job")
    commands.forget()

    job_id = bench.send("job", fresh=False)

    assert job_id != older.strip()
    assert len(commands.calls("sbatch")) == 1
    bench.wait("COMPLETED", "job")
    assert runs(bench, "job") == [job_id]


def test_a_second_copy_of_a_job_finds_the_claim_taken_and_does_nothing(bench: Bench) -> None:
    bench.submit("job", ("sh", "-c", "echo $SLURM_JOB_ID >>runs; exec sleep 600"))
    until(lambda: runs(bench, "job"), "the first copy")
    script = bench.ticket("job").directory / "batch.sh"
    copy = slurm("sbatch", "--parsable", str(script)).strip()

    def state() -> str:
        return slurm("squeue", "-h", "-t", "all", "-j", copy, "-o", "%T").strip()

    until(lambda: state() == "COMPLETED", "the second copy")
    assert runs(bench, "job") == [bench.attempt("job").job_id]
    assert f"job {copy} has nothing to do" in bench.log("job")


def test_the_variables_of_an_outer_job_do_not_reach_the_inner_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = {
        "SBATCH_PARTITION": "urgent",
        "SBATCH_TIMELIMIT": "1",
        "SBATCH_GRES": "gpu:9",
        "SLURM_JOB_ID": "1",
        "SLURM_NTASKS": "64",
        "SLURM_MEM_PER_NODE": "1",
        "SLURM_OUTER": "leaks",
        "SRUN_OUTER": "leaks",
        "PMI_RANK": "63",
        "SUBMITIT_OUTER": "leaks",
        "PREFECT_API_URL": "http://outer",
    }
    for name, value in outer.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MINE", "kept")
    bench.submit("job", ("sh", "-c", "env -0 >env"))
    bench.wait("COMPLETED", "job")

    raw = (Path(bench.jobs["job"].spec.output_dir) / "env").read_text()
    inner = dict(line.split("=", 1) for line in raw.split("\0") if line)
    assert inner["SLURM_JOB_ID"] == bench.attempt("job").job_id
    assert inner["SLURM_JOB_PARTITION"] == "main"
    assert inner["MINE"] == "kept"
    leaked = {name for name, value in outer.items() if inner.get(name) == value}
    assert leaked == set()


@pytest.mark.parametrize(
    "folder",
    ["with space", "50%j", "it's", 'say "hello"', "$HOME", "`id`", "naïve-ü", "#x;y&z"],
)
def test_a_job_runs_and_logs_below_a_path_of_any_name(
    commands: Commands, tmp_path: Path, folder: str
) -> None:
    del commands
    bench = Bench.create(tmp_path / folder / "sessions")
    try:
        bench.submit("job", ("sh", "-c", "echo hello; echo $SLURM_JOB_ID >>runs"))
        bench.watch(lambda: not bench.attempt("job").is_open, "the end of the job")
        assert bench.attempt("job").state == "COMPLETED"
        assert bench.log("job") == "hello\n"
        assert runs(bench, "job") == [bench.attempt("job").job_id]
        assert {path.name for path in tmp_path.iterdir()} == {folder, "autoexp-commands"}
    finally:
        bench.close()
