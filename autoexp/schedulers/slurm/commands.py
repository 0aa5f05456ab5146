"""Runs SLURM's commands: with a time limit, in a clean environment, never through a shell."""

import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence

from autoexp import proxies, sinks
from autoexp.errors import SchedulerError, SchedulerUnavailable

# An outer job's variables would become options of the inner one (sbatch(1), INPUT ENVIRONMENT
# VARIABLES), and a user's preferences would filter what squeue and sacct show. A cluster that is
# chosen by a variable is `slurm.clusters`, which goes to every command.
_SCRUBBED = (
    *("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_"),
    *("PMI", "SUBMITIT_", "PREFECT_"),
)

# Where the cluster is, and who the user is for it: SLURM's own client asks for these with getenv
# in src/common/{read_config,fetch_config,sack_api}.c, src/interfaces/auth.c and auth_jwt.c (25.11).
_KEPT = (
    *("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"),
    *("SLURM_SACK_SOCKET", "SLURM_SACK_KEY", "SLURM_SACK_JWKS"),
)

# A command's words when it got no answer: its request may have been carried out or not. They are
# those of SLURM's src/common/slurm_errno.c and of the C library.
NO_ANSWER = re.compile(
    "Socket timed out|Unable to contact|Zero Bytes were transmitted|Message (send|receive) failure|"
    "Header lengths are longer|Unexpected message|Connection (refused|reset|timed out)|"
    "Transport endpoint|No route to host|Broken pipe"
)


_SPEAKER = re.compile(r"^\s*s\w+: (error|fatal): ")


class SlurmCommandFailed(Exception):
    """A command ended with an exit code other than 0."""

    def __init__(self, arguments: Sequence[str], code: int, stderr: str) -> None:
        self.stderr = stderr.strip()
        super().__init__(f"{arguments[0]} exited {code}: {self.stderr}")


def environment() -> dict[str, str]:
    """The environment for SLURM's commands, and so for the jobs that they start."""
    given = proxies.environment()
    kept = {k: v for k, v in given.items() if not k.startswith(_SCRUBBED)}
    return kept | {name: os.environ[name] for name in _KEPT if name in os.environ}


def at(cluster: str | None, command: Sequence[str]) -> list[str]:
    """The command, asked of a cluster by name; all of SLURM's commands take `--clusters`."""
    name, *arguments = command
    return [name, *([f"--clusters={cluster}"] if cluster else []), *arguments]


def run(arguments: Sequence[str], timeout_s: float, *, pass_fds: Sequence[int] = ()) -> str:
    """Run a command and return its output.

    Raises SchedulerUnavailable when it does not end in time, cannot be started or is killed, and
    SlurmCommandFailed with the command's message when it fails.
    """
    # Seconds since 1970: no time zone, and no change of the clock in autumn.
    clock = {"SLURM_TIME_FORMAT": "%s"} if arguments[0] in ("squeue", "sacct") else {}
    answer = bounded(arguments, timeout_s, {**environment(), **clock}, pass_fds)
    if answer.returncode < 0:
        # It did not report what it had done already.
        raise SchedulerUnavailable(f"{arguments[0]} was killed by signal {-answer.returncode}")
    if answer.returncode != 0:
        raise SlurmCommandFailed(arguments, answer.returncode, answer.stderr or answer.stdout)
    return answer.stdout


def bounded(
    arguments: Sequence[str],
    timeout_s: float,
    variables: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end, however it ends; by default in this process's environment.

    Raises SchedulerUnavailable when it does not end in time or cannot be started.
    """
    try:
        return subprocess.run(
            list(arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=variables,
            pass_fds=tuple(pass_fds),
            # Ctrl-C in the terminal is for the monitor: an sbatch that it ends may have submitted.
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise SchedulerUnavailable(f"{arguments[0]} gave no answer in {timeout_s:.0f} s") from error
    except OSError as error:
        raise SchedulerUnavailable(f"{arguments[0]} cannot be run: {error}") from error


def in_one_line(words: str) -> str:
    """A command's message without its name in front of each line."""
    lines = [_SPEAKER.sub("", line).strip() for line in words.splitlines()]
    return "; ".join(line for line in lines if line)


def about(job_id: str, words: str) -> str:
    """scancel's message about a job: `Kill job error on job id 12: Invalid job id specified`."""
    named = re.compile(rf"job id {re.escape(job_id)}\b")
    return "; ".join(line for line in words.splitlines() if named.search(line))


def signal_batch(run: Callable[[list[str]], str], job_id: str, name: str, *, is_ours: bool) -> str:
    """Signal a job's batch script, and none of its steps; returns the answer.

    Raises SchedulerError where SLURM refuses it, or the id is another job's by now;
    SchedulerUnavailable without an answer.
    """
    if not is_ours:
        raise SchedulerError(f"job {job_id} is not in the queue, or another's by now")
    try:
        run(["scancel", "--batch", f"--signal={name}", job_id])
    except SlurmCommandFailed as error:
        if NO_ANSWER.search(error.stderr):
            raise SchedulerUnavailable(str(error)) from error
        raise SchedulerError(sinks.line(error.stderr)) from error
    return f"scancel --batch --signal={name} {job_id}: accepted"
