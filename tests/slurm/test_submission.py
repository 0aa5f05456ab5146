"""Exactly one submission, whatever dies, hangs or answers wrongly on the way."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from autoexp.config.compose import compose
from autoexp.errors import SubmissionRefused, SubmissionUncertain
from tests.builders import create
from tests.patience import until
from tests.slurm.bench import WITHOUT_JOBS, Bench, slurm
from tests.slurm.commands import HIDE_ENDED, Commands
from tests.slurm.submissions import RUN, assert_one_job, resume, runs
from tests.sources import ROOT

pytestmark = pytest.mark.slurm

# A process that does what a monitor does for a job that wants an attempt.
_SUBMIT = """
import sys
from pathlib import Path
from tests.killing import die_at
from tests.slurm.bench import Bench
die_at(int(sys.argv[3]))
bench = Bench(Path(sys.argv[1]))
bench.begin(sys.argv[2])
bench.send(sys.argv[2], fresh=True)
"""
TIMED_OUT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"


def start_submission(bench: Bench, name: str, kill_at: int = 0) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", _SUBMIT, str(bench.session.path), name, str(kill_at)],
        cwd=ROOT,
    )


def test_a_monitor_killed_at_any_step_of_a_submission_leaves_exactly_one_job(bench: Bench) -> None:
    path, names = bench.session.path, []
    for step in range(1, 30):
        name = f"killed-at-{step}"
        bench.add(name, RUN)
        names.append(name)
        code = start_submission(bench, name, kill_at=step).wait(timeout=300)
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
    assert start_submission(bench, "job").wait(timeout=300) == -9
    until(lambda: runs(bench, "job"), "the job")
    commands.tell("squeue", HIDE_ENDED)

    assert [resume(bench.session.path, "job")] == runs(bench, "job")
    commands.behaves()
    assert_one_job(bench.session.path, ["job"])


def test_a_job_of_a_session_of_the_same_id_is_not_taken_for_ours(
    bench: Bench, commands: Commands, tmp_path: Path
) -> None:
    other = Bench(create(compose("demo", WITHOUT_JOBS), tmp_path, session_id=bench.session.id))
    theirs = [other.submit("job", RUN), other.submit("held", RUN, options={"hold": True})]
    other.wait("COMPLETED", "job")
    for name in ("job", "held"):
        bench.add(name, RUN)
        bench.begin(name)
        assert (bench.real_jobs(name), len(other.real_jobs(name))) == (set(), 1)
    commands.tell("squeue", HIDE_ENDED)  # of one squeue is asked, of the other one sacct

    ours = [bench.send(name, fresh=False) for name in ("job", "held")]

    assert not set(ours) & set(theirs)
    commands.behaves()
    bench.wait("COMPLETED", "job", "held")
    assert [runs(bench, name) for name in ("job", "held")] == [[job_id] for job_id in ours]
    assert other.look()[other.attempt("held").key].state == "PENDING"


UNHEARD_OF = "quota daemon: cannot write the site's log"


def test_words_that_are_not_slurms_are_a_refusal_only_if_the_job_is_not_there(
    bench: Bench, commands: Commands
) -> None:
    commands.tell(
        "sbatch",
        f"""case "$*" in
*accepted*) "$real" "$@" >/dev/null ;;
esac
echo "{UNHEARD_OF}" >&2
exit 1""",
    )
    job_id = bench.submit("accepted", RUN)
    bench.add("not-taken", RUN)
    bench.begin("not-taken")
    with pytest.raises(SubmissionRefused, match=UNHEARD_OF):
        bench.send("not-taken", fresh=True)

    bench.wait("COMPLETED", "accepted")
    assert bench.real_jobs("accepted") == {job_id}
    assert runs(bench, "accepted") == [job_id]
    assert bench.real_jobs("not-taken") == set()


def test_the_end_of_a_second_copy_is_not_the_end_of_the_job(bench: Bench) -> None:
    first = bench.submit("job", ("sh", "-c", "echo $SLURM_JOB_ID >>runs; exec sleep 600"))
    until(lambda: runs(bench, "job"), "the first copy")
    ref = bench.ref("job")
    copy = slurm("sbatch", "--parsable", str(ref.directory / ref.script)).strip()
    # As if the answer to the first one had been lost, and the second one had come first.
    bench.attempt("job").job_id = copy

    bench.watch(lambda: bench.attempt("job").job_id == first, "the job that has the claim")
    assert bench.attempt("job").state == "RUNNING"
    bench.scheduler.cancel([bench.ref("job")])
    bench.wait("CANCELLED", "job")


def test_a_second_copy_of_a_job_finds_the_claim_taken_and_does_nothing(bench: Bench) -> None:
    bench.submit("job", ("sh", "-c", "echo $SLURM_JOB_ID >>runs; exec sleep 600"))
    until(lambda: runs(bench, "job"), "the first copy")
    script = bench.ref("job").directory / bench.ref("job").script
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
