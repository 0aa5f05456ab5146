"""The batch script of an attempt, written by submitit, and how it is handed to sbatch."""

import re
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

import submitit

from autoexp.errors import (
    SchedulerUnavailable,
    SubmissionPostponed,
    SubmissionRefused,
    SubmissionUncertain,
    SubmitLimitReached,
)
from autoexp.resources.machines import SlurmCluster
from autoexp.schedulers.base import SubmitOptions
from autoexp.schedulers.slurm.commands import (
    NO_ANSWER,
    SlurmCommandFailed,
    in_one_line,
    run,
)
from autoexp.storage import atomic

# sbatch's words for transient failures. No answer at all is another matter (NO_ANSWER), and
# everything else is lasting. The words are of SLURM 20.11 to 25.11: in src/sbatch/sbatch.c, which
# retries by itself for a while, src/common/slurm_errno.c, and for limits on the number of jobs
# the reasons of src/common/job_state_reason.c.
_PASSING = re.compile(
    "Resource temporarily unavailable|Slurm temporarily unable|"
    "Unable to create job record|job queue full|Job creation temporarily disabled|"
    "Requested nodes are busy|Required ports are in use|Rate limit exceeded|"
    "Required partition not available|"
    "Protocol authentication error|standby mode|I/O error writing script|"
    "No space left on device|Cannot allocate memory"
)
_PASSING_AT_SITES = re.compile("(try again|retry) (later|momentarily)", re.IGNORECASE)
# Limits on the number of jobs, and how sites say it in a plugin or a wrapper (TACC: "Too many
# simultaneous jobs in queue").
_SUBMIT_LIMIT = re.compile(
    "(Max|Grp)SubmitJob|"
    r"(?i:too many (\w+ )?jobs|"
    r"(submit|submission|job) limit (was |is |has been )?(reached|exceeded)|"
    r"(reached|exceed\w*) (\w+ ){0,3}(limit|number) of (\w+ ){0,2}(jobs|submissions)|"
    r"maximum number of (\w+ )?jobs|max(imum)? job limit)"
)
# The last line is the same for every limit. Behind the name of a limit on a job's size waiting is
# in vain; older plugins name none, and then a limit on the number of jobs is likelier.
_POLICY = re.compile(r"Job violates accounting/QOS policy.*")
_NAMED_LIMIT = re.compile(r"\b(QOS|Assoc|Max|Min|Partition|Invalid)[A-Z]\w+|\bPartition\w+Limit")
# The controller's refusal, and sbatch's words for bad options before it asks the controller.
REFUSAL = re.compile("Batch job submission failed|[Uu]nrecognized option|[Ii]nvalid .*specif")


# `12` or `12;cluster` as --parsable has it, or as a wrapper says it that drops the option.
_ANSWER = re.compile(
    r"^(?:Submitted batch job )?(?P<job_id>[0-9]+)(?:;(?P<cluster>\S+)| on cluster (?P<named>\S+))?"
    r"[ \t\r]*$",
    re.MULTILINE,
)


class Answer(NamedTuple):
    """sbatch's answer about a submitted job."""

    job_id: str
    cluster: str | None


class AttemptExecutor(submitit.SlurmExecutor):
    """submitit's SLURM executor for one attempt: no pickle, a time-out, a clean environment.

    submitit's own submission writes a pickle that is moved into place after sbatch (a job killed
    in between waits a minute for it and dies), and lets the outer job's SLURM_* variables in.
    """

    def __init__(self, script: Path, lock: int, timeout_s: float) -> None:
        super().__init__(script.parent)
        self._script = script
        self._lock = lock
        self._timeout_s = timeout_s
        self.sent_to: str | None = None
        """The cluster that took the job, where sbatch has named one."""

    def script(self, command: str) -> str:
        """The batch script around a shell command."""
        return str(self._make_submission_file_text(command, ""))

    def _submit_command(self, command: str) -> submitit.SlurmJob[Any]:
        atomic.write(self._script, self.script(command), executable=True)
        answer = read_answer(_sbatch(self._script, self._lock, self._timeout_s))
        self.sent_to = answer.cluster
        return submitit.SlurmJob(self.folder, answer.job_id, tasks=[0])


def read_answer(text: str) -> Answer:
    """Read the id in sbatch's answer, after any output of a site's wrapper.

    Raises SubmissionUncertain where there is none.
    """
    found = list(_ANSWER.finditer(text))
    if not found:
        raise SubmissionUncertain(f"sbatch answered {text[-500:]!r}, which is not a job id")
    return Answer(found[-1]["job_id"], found[-1]["cluster"] or found[-1]["named"])


def _sbatch(script: Path, lock: int, timeout_s: float) -> str:
    try:
        return run(["sbatch", "--parsable", str(script)], timeout_s, pass_fds=(lock,))
    except SchedulerUnavailable as error:
        raise SubmissionUncertain(str(error)) from error
    except SlurmCommandFailed as error:
        if is_submit_limit(error.stderr):
            raise SubmitLimitReached(error.stderr) from error
        if is_passing(error.stderr):
            raise SubmissionPostponed(error.stderr) from error
        if NO_ANSWER.search(error.stderr):
            raise SubmissionUncertain(error.stderr) from error
        raise SubmissionRefused(in_one_line(error.stderr)) from error


def is_passing(words: str) -> bool:
    """True if sbatch's message names a transient failure."""
    patterns = (_PASSING, _PASSING_AT_SITES)
    return is_submit_limit(words) or any(pattern.search(words) for pattern in patterns)


def is_submit_limit(words: str) -> bool:
    """True if sbatch's message says that this user has too many jobs."""
    if _SUBMIT_LIMIT.search(words):
        return True
    rest = _POLICY.sub("", words)
    return rest != words and not _NAMED_LIMIT.search(rest)


def executor_for(
    cluster: SlurmCluster, script: Path, options: SubmitOptions, lock: int = -1
) -> AttemptExecutor:
    """An executor that holds the options of one attempt."""
    executor = AttemptExecutor(script, lock, cluster.query_timeout_s + 30)
    known = {
        "account": cluster.account,
        "partition": cluster.partition,
        "qos": cluster.qos,
        "gpus_per_node": (cluster.gpus_per_node or None) if cluster.request_gpus else None,
        "cpus_per_task": cluster.cpus_per_task,
    }
    executor.update_parameters(
        **{name: value for name, value in known.items() if value is not None},
        nodes=cluster.nodes,
        ntasks_per_node=cluster.tasks_per_node,
        use_srun=False,
        stderr_to_stdout=True,
        setup=list(cluster.setup) or None,
        job_name=options.name,
        time=None if options.time_limit_min is None else as_time(options.time_limit_min),
        # Sites with strict wckeys refuse submitit's own default.
        wckey=None,
        additional_parameters=_additional(cluster, options),
    )
    return executor


def _additional(cluster: SlurmCluster, options: SubmitOptions) -> dict[str, Any]:
    """Options that override submitit's."""
    parameters: dict[str, Any] = {
        "output": _pattern(options),
        "open-mode": "append",
        "requeue" if cluster.requeue else "no-requeue": True,
    }
    # To the batch process alone, which is our payload: sent to every process of every step, it
    # kills whatever does not handle it, and orphans torchrun's workers.
    parameters["signal"] = f"B:USR1@{cluster.warn_before_limit_s}"
    if options.tasks:
        parallel = f"%{cluster.array_parallel}" if cluster.array_parallel else ""
        parameters["array"] = ",".join(str(task) for task in options.tasks) + parallel
    if options.after is not None:
        parameters["dependency"] = f"afterany:{options.after}"
    if cluster.min_nodes is not None and cluster.min_nodes < cluster.nodes:
        parameters["no-kill"] = True  # a node that fails does not end the job
    # A flag that is off is left out. Spelled as submitit spells them, so that they replace its own.
    given = {**cluster.plugin_options, **cluster.options}
    own = {k.replace("-", "_"): v for k, v in given.items() if v is not False}
    if cluster.at is not None:
        own["clusters"] = cluster.at
    avoided = [str(own["exclude"])] if own.get("exclude") else []
    if options.avoided:
        own["exclude"] = ",".join([*avoided, *options.avoided])
    return parameters | own


def _pattern(options: SubmitOptions) -> str:
    """The log path for sbatch: a `%` is a pattern, and `%a` an array task's index."""
    if not options.tasks:
        return options.log.replace("%", "%%")
    directory, _, name = options.log.rpartition("/")
    return f"{directory.replace('%', '%%')}/{name}"


def as_time(minutes: float) -> str:
    """A time limit in sbatch's format, rounded up to a whole second: `M:SS`."""
    seconds = -int(-minutes * 60 // 1)
    return f"{seconds // 60}:{seconds % 60:02}"


def body(cluster: SlurmCluster, directory: Path) -> str:
    """The last line of the script. `exec` makes the payload the batch process itself."""
    python = cluster.python or sys.executable
    return f"exec {shlex.join([python, '-u', str(directory / 'payload.py')])}"
