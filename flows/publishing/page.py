"""The session's page in Prefect, as Markdown: its jobs, last events, plan and paths."""

from collections.abc import Iterator, Sequence
from datetime import timedelta

from autoexp.jobs.record import JobRecord
from autoexp.planning.plan import Plan
from autoexp.reports.log_end import failed_logs
from autoexp.reports.status import JobSummary, Status
from autoexp.rules.describe import describe
from autoexp.session.session import Session
from autoexp.sinks import markdown, markdown_code
from autoexp.states import Kind, Verdict

_EVENTS = 12


def session_page(session: Session, status: Status) -> str:
    """The page of a session at the moment of its status."""
    parts = [
        _headline(session, status),
        _table(session, status),
        _waiting(status),
        _ends_of_logs(session),
        _last_events(session),
        _paths(session, status),
    ]
    return "\n\n".join(part for part in parts if part)


def headline(status: Status) -> str:
    """One line for lists of artifacts, which stands above the page's own title, too."""
    over = sum(job.verdict in (Verdict.FINISHED, Verdict.FAILED) for job in status.jobs)
    return f"{status.state}, {over} of {len(status.jobs)} jobs are over"


def _headline(session: Session, status: Status) -> str:
    about = session.experiment.project.description
    hours = f"{sum(job.gpu_hours for job in status.jobs):.2f}"
    if planned := sum(job.planned_gpu_hours or 0 for job in status.jobs):
        hours += f" of {planned:.2f} planned"
    text = f"# {markdown(status.session)}: {status.state}"
    facts = f"{len(status.jobs)} jobs, {hours} GPU hours, {len(status.checkpoints)} checkpoints"
    return "\n\n".join(filter(None, [text, markdown(about), facts]))


def _table(session: Session, status: Status) -> str:
    head = (
        *("job", "state", "iteration", "loss", "time left"),
        *("GPU hours", "planned", "job ids", "nodes"),
    )
    rows = [_row(job, session.jobs[job.name]) for job in status.jobs]
    # A column that nobody has anything for is width without a word.
    filled = [place for place in range(len(head)) if any(row[place] for row in rows)]
    return _markdown_table(
        [head[place] for place in filled], [[row[place] for place in filled] for row in rows]
    )


def _row(job: JobSummary, record: JobRecord) -> tuple[str, ...]:
    done = job.verdict in (Verdict.FINISHED, Verdict.FAILED)
    ids = [attempt.job_id for attempt in job.attempts if attempt.job_id]
    nodes = record.attempt.nodes if record.attempt else None
    return (
        f"**{markdown(job.name)}**",
        str(job.verdict) if done else markdown(job.state),
        "" if job.target_iteration is None else f"{job.iteration or 0} / {job.target_iteration}",
        _loss(job),
        "" if job.seconds_left is None else str(timedelta(seconds=round(job.seconds_left))),
        f"{job.gpu_hours:.2f}" if job.gpu_hours else "",
        f"{job.planned_gpu_hours:.2f}" if job.planned_gpu_hours else "",
        markdown(", ".join(ids)),
        markdown(nodes or ""),
    )


def _loss(job: JobSummary) -> str:
    """The last loss, or the scores of an evaluation."""
    if job.scores:
        return ", ".join(
            f"{markdown(name)} {value:.4g}" for name, value in list(job.scores.items())[:3]
        )
    return "" if job.loss is None else f"{job.loss:.4f}"


def _waiting(status: Status) -> str:
    lines = [
        f"- **{markdown(job.name)}**: {markdown(note)}"
        for job in status.jobs
        for note in dict.fromkeys((job.warning, job.reason))
        if note
    ]
    return "\n".join(["## Notes per job", "", *lines]) if lines else ""


def _ends_of_logs(session: Session) -> str:
    """The last lines of the logs of jobs that failed."""
    parts = [
        f"**{markdown(log.job)}**\n\n" + "  \n".join(filter(None, map(markdown_code, log.lines())))
        for log in failed_logs(session.jobs.values())
    ]
    return "\n\n".join(["## Ends of logs", *parts]) if parts else ""


def _last_events(session: Session) -> str:
    lines = [
        f"- {entry.time.astimezone():%Y-%m-%d %H:%M:%S} {markdown(describe(entry.event))}"
        for entry in reversed(session.journal.last(_EVENTS))
    ]
    return "\n".join(["## Last events", "", *lines]) if lines else ""


def _paths(session: Session, status: Status) -> str:
    rows = [
        (markdown(job.name), markdown_code(job.output_dir), markdown_code(job.log or ""))
        for job in status.jobs
    ]
    table = _markdown_table(("job", "output", "log"), rows)
    return f"## Where things are\n\nsession: {markdown_code(str(session.path))}\n\n{table}"


def plan_page(plan: Plan) -> str:
    """The page of the plan that the session was created with."""
    head = ("job", "follows", "decays over", "shape", "to learning rate", "ends at")
    table = _markdown_table(head, _plan_rows(plan))
    notes = "\n".join(f"- {markdown(note)}" for note in plan.notes)
    return "\n\n".join(filter(None, ["# Plan", table, notes]))


def _plan_rows(plan: Plan) -> Iterator[tuple[str, ...]]:
    for job in plan.jobs:
        target = str(job.target_iteration or "")
        if (decay := job.decay) is None:
            shape = "constant" if job.kind is Kind.TRAIN else markdown(str(job.kind))
            after = markdown(", ".join(str(awaited) for awaited in job.awaits))
            yield (f"**{markdown(job.name)}**", after, "", shape, "", target)
        else:
            yield (
                f"**{markdown(job.name)}**",
                markdown(f"{job.parent} @{job.branch.iteration}" if job.branch else "from scratch"),
                str(decay.decay_iterations),
                markdown(decay.shape),
                f"{decay.min_lr:g}",
                target,
            )


def _markdown_table(
    head: Sequence[str], rows: "Sequence[Sequence[str]] | Iterator[tuple[str, ...]]"
) -> str:
    lines = [head, ["---"] * len(head), *(list(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
