"""What stands on a session's web page, part by part."""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime

from autoexp.jobs.record import JobRecord
from autoexp.jobs.spec import JobSpec
from autoexp.model import now
from autoexp.reports import curves, results
from autoexp.reports.html.elements import Html, Inside, element, facts, folded, table, together
from autoexp.reports.status import JobSummary, Status, status_of
from autoexp.resources.machines import SlurmCluster
from autoexp.rules.describe import describe
from autoexp.rules.durations import shortened
from autoexp.session.session import Session
from autoexp.states import Kind, Verdict
from autoexp.storage import atomic

_EVENTS = 300
_NUMBERS = {"iteration", "loss", "gain", "GPU hours"}
_ROWS = 2000
_OPEN_TREES = 60
"""Jobs of a session up to which every training's branches are shown at once."""
_LONGEST_CONFIGURATION = 200_000
_KINDS = {Kind.TRAIN: "training", Kind.EVALUATE: "evaluation"}


def sections(session: Session) -> dict[str, Html]:
    """The parts by their places on the page, in order."""
    status = status_of(session)
    return {
        "head": _head(session, status),
        "asked": _asked(session),
        "tree": _tree(session, status),
        "results": _results(session, status),
        "hours": _hours(status),
        "events": _events(session),
        "provenance": _provenance(session),
    }


def _head(session: Session, status: Status) -> Html:
    words = Counter(_word(job) for job in status.jobs)
    counted = ", ".join(f"{count} {word}" for word, count in words.items())
    about = session.experiment.project.description
    return together(
        [
            element("h1", status.session, " ", _badge(status.state)),
            element("p", about, class_="about") if about else None,
            element("p", f"{len(status.jobs)} jobs: {counted}. As of {_time(now())}."),
        ]
    )


def _word(job: JobSummary) -> str:
    return str(job.verdict) if job.verdict else job.state


def _badge(word: str) -> Html:
    return element("span", word, class_=f"badge {word.lower()}" if word.isalpha() else "badge")


def _time(when: datetime | None) -> str:
    return "" if when is None else f"{when:%Y-%m-%d %H:%M} UTC"


# What was asked


def _asked(session: Session) -> Html:
    meta, experiment = session.meta, session.experiment
    specs = [job.spec for job in session.jobs.values()]
    words = shlex.join([meta.config, *meta.overrides])
    kinds = Counter(spec.kind for spec in specs)
    asked = facts(
        [
            ("command", element("code", f"autoexp run {words}")),
            ("trainer", experiment.backend.kind),
            ("where", _where(session)),
            ("jobs", ", ".join(_counted(kind, count) for kind, count in kinds.items())),
            ("length", _length(specs)),
            ("swept", _swept(specs)),
            ("GPU hours at most", experiment.budget.stop_above),
        ]
    )
    return together([element("h2", "What was asked"), asked, _configuration(session)])


def _counted(kind: Kind, count: int) -> str:
    return f"{count} {_KINDS.get(kind, kind)}{'' if count == 1 else 's'}"


def _where(session: Session) -> str:
    machine = session.experiment.slurm
    if not isinstance(machine, SlurmCluster):
        return "processes on one machine"
    nodes = "1 node" if machine.nodes == 1 else f"{machine.nodes} nodes"
    known = (
        ("partition", machine.partition),
        ("account", machine.account),
        ("QOS", machine.qos),
        ("cluster", machine.at),
    )
    place = "".join(f", {name} {value}" for name, value in known if value)
    gpus = f" of {machine.gpus_per_node} GPUs" if machine.gpus_per_node else ""
    return f"SLURM: {nodes}{gpus} a job{place}"


def _length(specs: Sequence[JobSpec]) -> str:
    lengths = [
        (spec.target_iteration, spec.tokens_at(spec.target_iteration))
        for spec in specs
        if spec.kind is Kind.TRAIN and spec.target_iteration is not None
    ]
    found = (
        f"{iterations} iterations" + ("" if tokens is None else f" ({shortened(tokens, 3)} tokens)")
        for iterations, tokens in dict.fromkeys(lengths)
    )
    return ", ".join(found)


def _swept(specs: Sequence[JobSpec]) -> Html | None:
    values: dict[str, dict[str, None]] = {}
    for spec in specs:
        for key, value in spec.settings.items():
            values.setdefault(key, {})[str(value)] = None
    lines = [element("li", element("code", k), ": ", ", ".join(v)) for k, v in values.items()]
    return element("ul", *lines) if lines else None


def _configuration(session: Session) -> Html | None:
    try:
        raw = atomic.read(session.path / "config" / "resolved.yaml", _LONGEST_CONFIGURATION)
    except OSError:
        return None
    text = raw.decode(errors="replace")
    return folded("the whole configuration", element("pre", text))


# Jobs


def _tree(session: Session, status: Status) -> Html:
    summaries = {job.name: job for job in status.jobs}
    children: dict[str | None, list[JobRecord]] = {}
    for job in session.jobs.values():
        parent = job.spec.parent
        known = parent in session.jobs and parent != job.spec.name
        children.setdefault(parent if known else None, []).append(job)
    few = len(session.jobs) <= _OPEN_TREES

    def branch(job: JobRecord) -> Html:
        below = children.get(job.spec.name, [])
        line = _job(job, summaries[job.spec.name])
        if not below:
            return element("li", line)
        inside = element("ul", *map(branch, below))
        title = element("summary", line)
        return element("li", element("details", title, inside, open_=few))

    trees = element("ul", *map(branch, children.get(None, [])), class_="tree")
    return together([element("h2", "Jobs"), trees])


def _job(job: JobRecord, summary: JobSummary) -> Html:
    spec = job.spec
    known = []
    if spec.decay is not None:
        decay = f"decays over {spec.decay.decay_iterations} to {spec.decay.min_lr:g}"
        known.append(f"from iteration {spec.decay.falls_from}, {decay}")
    if spec.target_iteration is not None:
        known.append(f"{job.iteration or 0} of {spec.target_iteration} iterations")
    if summary.loss is not None:
        known.append(f"loss {summary.loss:.4f}")
    known += [f"{name} {value:.4g}" for name, value in list(summary.scores.items())[:3]]
    if summary.reason and summary.verdict is not Verdict.FINISHED:
        known.append(summary.reason)
    about = element("span", "; ".join(known), class_="dim")
    return together([element("b", spec.name), " ", _badge(_word(summary)), " ", about])


def _results(session: Session, status: Status) -> Html:
    found = results.compared([session])
    gained = {gain.job: gain.gain for gain in curves.gains(session)}
    summaries = {job.name: job for job in status.jobs}
    columns = list(dict.fromkeys(key for row in found for key in row))
    settings = columns[columns.index("job") + 1 : columns.index("iteration")] if found else []
    scores = columns[columns.index("gpu_hours_spent") + 1 :] if found else []
    named = [key.removeprefix("backend.args.") for key in settings]
    hours = any(row["gpu_hours_spent"] for row in found)
    head = ["job", *named, "state", "iteration", "loss", "gain", *scores]
    rows: list[list[Inside]] = [
        [
            row["job"],
            *(_number(row[key]) for key in settings),
            _badge(_word(summaries[row["job"]])),
            row["iteration"],
            _number(row["final_loss"]),
            _number(gained.get(row["job"])),
            *(_number(row.get(key)) for key in scores),
            *([f"{row['gpu_hours_spent']:.2f}"] if hours else []),
        ]
        for row in found[:_ROWS]
    ]
    more = len(found) - len(rows)
    unseen = curves.without_seen_start(session)
    return together(
        [
            element("h2", "Results"),
            table([*head, *(["GPU hours"] if hours else [])], rows, _NUMBERS | {*named, *scores}),
            element(
                "p",
                "Losses in nats per token, the mean of the last three logged. Gain: the loss of "
                "the training at the same iteration, minus the cooldown's.",
                class_="dim",
            ),
            element("p", f"No gain of {', '.join(unseen)}: its log does not say where it began.")
            if unseen
            else None,
            element("p", f"… and {more} more rows: autoexp export.") if more > 0 else None,
        ]
    )


def _number(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _hours(status: Status) -> Html:
    """GPU hours by kind of job, used and planned; nothing where no job has a GPU."""
    if not any(job.gpu_hours or job.planned_gpu_hours for job in status.jobs):
        return Html("")
    rows: list[list[Inside]] = []
    for kind in dict.fromkeys(job.kind for job in status.jobs):
        rows.append(_hours_of(str(kind), [job for job in status.jobs if job.kind is kind]))
    rows.append(_hours_of("all", status.jobs))
    head = ("kind", "jobs", "used", "planned", "unplanned jobs")
    return together([element("h2", "GPU hours"), table(head, rows, head[1:])])


def _hours_of(name: str, jobs: Sequence[JobSummary]) -> list[Inside]:
    planned = [job.planned_gpu_hours for job in jobs if job.planned_gpu_hours is not None]
    used = sum(job.gpu_hours for job in jobs)
    return [name, len(jobs), f"{used:.2f}", f"{sum(planned):.2f}", len(jobs) - len(planned)]


# What happened, and where from


def _events(session: Session) -> Html:
    shown = list(reversed(session.journal.last(_EVENTS)))
    lines = [
        element(
            "li", element("time", f"{entry.time:%Y-%m-%d %H:%M:%S}"), " ", describe(entry.event)
        )
        for entry in shown
    ]
    more = len(session.journal) - len(shown)
    return together(
        [
            element("h2", "Events"),
            element("p", f"{len(session.journal)} events, the newest first; times in UTC."),
            element("ol", *lines, class_="events"),
            element("p", f"… and {more} earlier ones: autoexp events.") if more > 0 else None,
        ]
    )


def _provenance(session: Session) -> Html:
    meta = session.meta
    known: list[tuple[str, Inside]] = [
        ("created", _time(meta.created)),
        ("directory", element("code", str(session.path))),
        ("commit", element("code", meta.git["commit"]) if meta.git.get("commit") else None),
        ("branch", meta.git.get("branch")),
        ("uncommitted changes", meta.git.get("uncommitted")),
        ("packages", ", ".join(f"{name} {version}" for name, version in meta.versions.items())),
        ("Prefect flow runs", ", ".join(meta.flow_run_ids)),
    ]
    newest = {found.job: found for found in session.checkpoints()}
    checkpoints: list[list[Inside]] = [
        [found.job, found.iteration, found.path] for found in newest.values()
    ]
    head = ("job", "attempt", "job id", "state", "nodes", "started", "ended", "exit")
    attempts = list(_attempts(session))
    return together(
        [
            element("h2", "Provenance"),
            facts(known),
            folded(
                f"{len(attempts)} submissions",
                table(head, attempts[:_ROWS], ("attempt", "job id", "exit")),
            ),
            folded(
                "newest checkpoints",
                table(("job", "iteration", "path"), checkpoints[:_ROWS], ["iteration"]),
            )
            if checkpoints
            else None,
        ]
    )


def _attempts(session: Session) -> Iterator[list[Inside]]:
    for job in session.jobs.values():
        for attempt in job.attempts:
            yield [
                job.spec.name,
                attempt.number,
                attempt.job_id,
                attempt.state,
                attempt.nodes,
                _time(attempt.started_at),
                _time(attempt.ended_at),
                attempt.exit_code,
            ]
