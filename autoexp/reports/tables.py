"""Tables of plans and sessions for the terminal."""

import shlex
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from autoexp.jobs.summary import JobSummary, word
from autoexp.reports.status import Shown, Status
from autoexp.rules.durations import in_bytes, shortened
from autoexp.session.find import no_monitor
from autoexp.states import Kind, Verdict

if TYPE_CHECKING:  # the models of plans take longer to import than a large session to show
    from autoexp.jobs.spec import JobSpec
    from autoexp.planning.cost import Cost
    from autoexp.planning.plan import Plan
    from autoexp.reports.curves import Gain, Merged
    from autoexp.retention.forecast import Forecast

_FEW = 8
_SCORES = 3
# A narrower column of text is hard to read.
_NOTE = 25
_GAP = 2
_WIDE = 10_000
_LEAST_NAME = 8
_COLOURS = {"finished": "green", "failed": "red", "running": "cyan", "stopped": "yellow"}


class _Layout(NamedTuple):
    """What a table of jobs shows; of several, the first that fits is taken."""

    bar: int
    learning_rate: bool = True
    hours: bool = True
    validation: bool = True


_WHOLE = (_Layout(20), _Layout(8))
_LAYOUTS = (
    *_WHOLE,
    _Layout(8, learning_rate=False),
    _Layout(8, learning_rate=False, hours=False),
    _Layout(0, learning_rate=False, hours=False),
    _Layout(0, learning_rate=False, hours=False, validation=False),
)


class NumberTable:
    """A line for each row; where the room is small, in several parts that repeat the first column.

    A number that is cut says something else: where one has no room beside a long name, that is
    folded.
    """

    def __init__(self, headings: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> None:
        """`left`: how many of the first columns are adjusted to the left."""
        self._columns = [list(column) for column in zip(headings, *rows, strict=True)]
        self._left = left
        self._widths = [max(map(cell_len, column)) for column in self._columns]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.max_width - _GAP - max(self._widths[1:], default=0)
        name = min(self._widths[0], max(_LEAST_NAME, room))
        for number, part in enumerate(self._parts(options.max_width, name)):
            if number:
                yield Text()
            table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
            for place in part:
                heading = Text(self._columns[place][0])
                if place == 0:
                    table.add_column(heading, overflow="fold", width=name)
                    continue
                justify = "left" if place < self._left else "right"
                table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
            for cells in zip(*(self._columns[place][1:] for place in part), strict=True):
                table.add_row(*map(Text, cells))
            yield table

    def _parts(self, width: int, name: int) -> list[list[int]]:
        parts, taken = [[0]], name
        for place in range(1, len(self._columns)):
            if taken + _GAP + self._widths[place] > width and parts[-1] != [0]:
                parts.append([0])
                taken = name
            parts[-1].append(place)
            taken += _GAP + self._widths[place]
        return parts


class StatusTable:
    """The session's jobs: state, progress, loss, learning rate, GPU hours, time left, why.

    A reason stands at the end of its job's line, or below it where it would be narrow. Where the
    room is small, bars shrink, then the learning rate goes, the GPU hours, and the bars. Names and
    states are never cut.
    """

    def __init__(self, shown: Shown) -> None:
        self._jobs = shown.jobs
        self._hours = shown.gpu_hours > 0 or shown.planned_gpu_hours > 0
        self._validation = any(job.validation_losses for job in self._jobs)
        self._notes = [_note(job) for job in self._jobs]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        longest = max((len(note) for note in self._notes), default=0)
        note = _GAP + min(longest, _NOTE) if longest else 0
        for layout in _WHOLE:
            if self._width(console, layout) + note <= options.max_width:
                yield self._table(layout, notes=longest > 0)
                return
        widths = ((layout, self._width(console, layout)) for layout in _LAYOUTS)
        # The narrowest is shown whole, however narrow the terminal is.
        layout, width = next(
            (each for each in widths if each[1] <= options.max_width or each[0] is _LAYOUTS[-1]),
        )
        wide = options.update_width(max(width, options.max_width))
        heading, *lines = console.render_lines(self._table(layout, notes=False), wide, pad=False)
        yield Segments([*heading, Segment.line()])
        for line, job, text in zip(lines, self._jobs, self._notes, strict=True):
            yield Segments([*line, Segment.line()])
            if text and (job.scores or job.verdict != Verdict.FINISHED):
                yield Padding(text, (0, 0, 0, _GAP))

    def _width(self, console: Console, layout: _Layout) -> int:
        wide = console.options.update_width(_WIDE)
        return console.measure(self._table(layout, notes=False), options=wide).maximum

    def _table(self, layout: _Layout, *, notes: bool) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
        shown = {
            "job": "left",
            "state": "left",
            "iteration": "right",
            **({"": "left"} if layout.bar else {}),
            "loss": "right",
            **({"val": "right"} if layout.validation and self._validation else {}),
            **({"lr": "right"} if layout.learning_rate else {}),
            **({"GPU h": "right"} if layout.hours and self._hours else {}),
            "left": "right",
        }
        for heading, justify in shown.items():
            table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        if notes:
            table.add_column("", overflow="fold")
        for job, note in zip(self._jobs, self._notes, strict=True):
            shows = {
                "hours": layout.hours and self._hours,
                "validation": layout.validation and self._validation,
            }
            cells = _cells(job, layout._replace(**shows))
            table.add_row(*cells, *([note] if notes else []))
        return table


def _note(job: JobSummary) -> Text:
    """Scores of a job, and the reason for its state."""
    scores = ", ".join(f"{name} {value:.4g}" for name, value in list(job.scores.items())[:_SCORES])
    warning = "" if job.warning in (None, job.reason) else f"{job.warning}  "
    reason = (job.reason or "", "dim")
    return Text.assemble(scores, "  " if scores else "", (warning, "yellow"), reason)


def status_view(status: Status | Shown) -> RenderableType:
    """Headline and table; of very many jobs, the number of each kind."""
    shown = Shown.of(status) if isinstance(status, Status) else status
    parts: list[RenderableType] = [_headline(shown), Text(), StatusTable(shown)]
    left_out = shown.total - len(shown.jobs)
    if left_out:
        parts.append(Text(f"… and {left_out} more jobs; `--json` has all", "dim"))
    return Group(*parts)


def _headline(shown: Shown) -> Text:
    line = Text.assemble(("session ", "bold"), (shown.session, "bold"), "  ")
    line.append(shown.state, _COLOURS.get(shown.state, ""))
    if shown.total > _FEW:
        line.append("  " + ", ".join(f"{count} {state}" for state, count in shown.words.items()))
    if planned := shown.planned_gpu_hours:
        line.append(f"  {shown.gpu_hours:.2f} of {planned:.2f} planned GPU hours")
    if shown.state == "stopped":
        line.append(f"  {no_monitor(shown.session)}", "yellow")
    return line


def _cells(job: JobSummary, layout: _Layout) -> list[RenderableType]:
    target = job.target_iteration or 1
    done = job.iteration or 0
    state = word(job)
    colour = {"finished": "green", "failed": "red", "RUNNING": "cyan"}.get(state, "yellow")
    trains = job.target_iteration is not None
    rate = "" if job.learning_rate is None else f"{job.learning_rate:.1e}"
    # One of several sets: `--json` has all.
    losses = job.validation_losses
    last = losses.get("validation", next(iter(losses.values()), None))
    validation = "" if last is None else f"{last:.4f}"
    planned = "?" if job.planned_gpu_hours is None else f"{job.planned_gpu_hours:.2f}"
    bar = ProgressBar(target, min(done, target), layout.bar or None) if trains else ""
    return [
        job.name,
        Text(state, colour),
        f"{done}/{job.target_iteration}" if trains else "",
        *([bar] if layout.bar else []),
        "" if job.loss is None else f"{job.loss:.4f}",
        *([validation] if layout.validation else []),
        *([rate] if layout.learning_rate else []),
        *([f"{job.gpu_hours:.2f}/{planned}"] if layout.hours else []),
        _duration(job.seconds_left),
    ]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def gains_lines(found: "Iterable[Gain]", unseen: Iterable[str] = ()) -> list[str]:
    """Gains of cooldowns over the trunk; `unseen` are those whose start was not in the log."""
    lines = [
        f"{gain.job}: {gain.loss:.3f} at iteration {gain.iteration}, trunk {gain.trunk_loss:.3f}: "
        f"{'gained' if gain.gain >= 0 else 'lost'} {abs(gain.gain):.3f} nats"
        for gain in found
    ]
    if names := ", ".join(unseen):
        lines.append(f"{names}: no gain is shown, as its log does not say where it began")
    return lines


def merges_lines(found: "Iterable[Merged]") -> list[str]:
    """Merged models, each against the cooldown that it may replace."""
    lines = []
    for each in found:
        line = f"{each.job}: merged {each.loss:.3f}"
        if each.cooled is not None:
            line += f", cooled {each.cooled:.3f} ({each.cooldown})"
        if each.saved_gpu_hours:
            line += f", saved {each.saved_gpu_hours:,.2f} GPU hours"
        lines.append(line)
    return lines


def print_table(plan: "Plan", out: Console) -> None:
    """Print jobs, branch points, decay lengths and tokens."""
    rows: list[dict[str, str]] = []
    for job in plan.jobs:
        branch, decay = job.branch, job.decay
        tokens = job.tokens_at(job.target_iteration) if job.target_iteration else None
        rows.append(
            {
                "job": job.name,
                "kind": str(job.kind),
                "branches at": str(branch.iteration) if branch else "",
                "stable for": str(branch.stable_iterations or "") if branch else "",
                "decays over": str(decay.decay_iterations) if decay else "",
                "shape": decay.shape if decay else "constant" if job.kind is Kind.TRAIN else "",
                "to lr": f"{decay.min_lr:g}" if decay else "",
                "ends at": str(job.target_iteration or ""),
                "tokens": "" if tokens is None else shortened(tokens, 3),
                "GPUs": str(job.machine.gpus or ""),
                "time": _time_asked(job),
            }
        )
    out.print(_table_of(rows, out.width))


def print_commands(plan: "Plan", out: Console) -> None:
    """Print the whole command line of each job, with launcher and container."""
    from autoexp.schedulers.launch import with_launcher

    for job in plan.jobs:
        out.print(f"\n{job.name}:", style="bold")
        command = with_launcher(job.machine, job, job.name)
        out.print(f"  {shlex.join(command)}", soft_wrap=True)


def _table_of(rows: Sequence[dict[str, str]], width: int) -> Table:
    """The columns with content, in whole words; the kind only where it fits."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    names = [name for name in rows[0] if any(row[name] for row in rows)] if rows else []
    words = {name: " ".join([name, *(row[name] for row in rows)]).split() for name in names}
    least = {name: max(map(len, words[name])) for name in names}
    full = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}

    def fits(widths: dict[str, int]) -> bool:
        return sum(widths[name] + _GAP for name in names) - _GAP <= width

    if not fits(full) and not fits(least) and "kind" in names:
        names.remove("kind")  # the tree above says it, too
    for name in names:
        wanted = None if fits(full) or not fits(least) else least[name]
        table.add_column(name, overflow="fold", width=wanted)
    for row in rows:
        table.add_row(*(row[name] for name in names))
    return table


def _time_asked(job: "JobSpec") -> str:
    """The wall time that the job requests."""
    from autoexp.jobs.limits import is_measured

    limit = job.configured_limit_min
    known = "" if limit is None else _duration(limit * 60)
    if not is_measured(job):
        return known
    return f"measured in {job.parent}" + (f", at most {known}" if known else "")


def cost_line(cost: "Cost") -> str:
    """The cost of a plan, compared with separate runs where that is possible."""
    own = _amount(cost.iterations, cost.tokens)
    more = cost.baseline_iterations
    baselines = f"; baselines take {more} iterations besides" if more else ""
    if not cost.models:
        return f"in all {own}{baselines}"
    separate = _amount(cost.separate_iterations, cost.separate_tokens)
    many = "1 run" if cost.models == 1 else f"{cost.models} runs"
    return f"in all {own}; {many} from scratch would take {separate}{baselines}"


def print_cost(plan: "Plan", out: Console) -> None:
    """Print what a plan takes, and the disk space of the branches' starts where they are copies."""
    if plan.cost is None:
        return
    out.print(cost_line(plan.cost), soft_wrap=True)
    if plan.cost.copied_checkpoints:
        out.print(copies_line(plan.cost), soft_wrap=True)


def disk_line(disk: "Forecast", at: datetime) -> str:
    """The disk space of a plan's checkpoints: `disk: at most 14.2 TB of 15 TB on 3 March`."""
    what = f"{disk.checkpoints + disk.waiting} checkpoints"
    if disk.bytes is None:
        return f"disk: at most {what}; {disk.size_source}, and there are bytes"
    of = "" if disk.budget is None else f" of {in_bytes(disk.budget)}"
    end = None if disk.whole_after_s is None else at + timedelta(seconds=disk.whole_after_s)
    when = "" if end is None else f" on {end.day} {end:%B}, if nothing queues"
    queued = f", {disk.waiting} of them held by evaluations that wait" if disk.waiting else ""
    above = "; ABOVE retention.budget" if disk.is_above else ""
    most = f"disk: at most {in_bytes(disk.bytes)}{of}{when}"
    return f"{most}: {what}{queued} ({disk.size_source}){above}"


def copies_line(cost: "Cost") -> str:
    """The number of copied checkpoints, and their size."""
    count, size = cost.copied_checkpoints, cost.copied_bytes
    many = "1 checkpoint is copied" if count == 1 else f"{count} checkpoints are copied"
    known = "" if size is None else f", {size / 1e9:.3g} GB in all"
    return (
        f"{many} as starts of cooldowns{known}; no space is used where the filesystem shares blocks"
    )


def _amount(iterations: int, tokens: int | None) -> str:
    known = "" if tokens is None else f" ({shortened(tokens, 3)} tokens)"
    return f"{iterations} iterations{known}"
