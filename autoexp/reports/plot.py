"""Plots loss curves with their branches, learning rates below them, and plans as timelines."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from autoexp import sinks
from autoexp.config.sweep_names import as_word
from autoexp.config.values.repeats import REPEAT, without_repeat
from autoexp.errors import BadInput
from autoexp.jobs.spec import JobSpec, root_of, tokens_of_curve
from autoexp.jobs.summary import place_of, walk
from autoexp.planning.plan import Plan, headline
from autoexp.reports.curves import Curve, read_curve, validation_loss
from autoexp.session.session import Session
from autoexp.states import Kind
from autoexp.storage import atomic

FORMATS = ("png", "pdf", "svg")
# Okabe and Ito's colours, which people with any kind of colour vision tell apart; yellow, which is
# faint on white, comes last.
_HUES = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
TRUNK = "#4a5568"
MERGED = "#000000"
# Of cooldowns, beside the hue, for readers who cannot tell one from another: on, off, on, off …
_DASHES = ((2.2, 0.7), (0.9, 0.7), (4.5, 0.8, 0.9, 0.8))
_BASELINE = (6.0, 2.0)  # long dashes
_RAW, _AGAIN = 0.22, 0.55  # opacity of the raw loss; of hues that are used a second time
_INSIDE = 6  # lines whose legend fits beside the curves
_LEGEND = 24  # lines that a legend has room for
_POINTS = 40  # that a smoothed curve has room for: more of them are noise to the eye
_LEAST = 4  # that are left of a short one
_PLANNED = 200  # points of a planned learning rate
_ROWS = 60  # jobs that a plan's picture has room for

# Losses as they are drawn, by session and job, and by iteration.
Drawn = dict[tuple[str, str], dict[int, float]]


class Subject(NamedTuple):
    """A session to plot: values alone, so that it can be drawn outside its monitor's thread."""

    id: str
    path: Path
    jobs: tuple[JobSpec, ...]
    losses: Mapping[str, float] = MappingProxyType({})
    """Validation losses at the end of cooldowns and baselines, and of merges, by job."""

    @classmethod
    def of(cls, session: Session) -> "Subject":
        records = session.jobs.values()
        ends = (job for job in records if job.spec.starts_at or job.spec.baseline)
        found = {job.spec.name: validation_loss(job) for job in ends}
        losses = {name: loss for name, loss in found.items() if loss is not None}
        return cls(session.id, session.path, tuple(job.spec for job in records), losses)


class Options(NamedTuple):
    """How to draw."""

    tokens: bool = False
    """Tokens on the horizontal axis, instead of iterations."""
    smooth: int | None = None
    """Logged points that a smoothed loss is a mean of; 1 draws the loss as logged."""
    title: bool = True


class _Line(NamedTuple):
    """A curve as it is drawn."""

    spec: JobSpec
    session: Subject
    root: str
    """The training that it comes from, with its session."""
    curve: Curve
    number: int | None
    """Among the branches of its session; None for what is no branch."""
    seed: int
    """Points of the parent at its beginning: the lines meet."""


class _Merged(NamedTuple):
    """A merged model as it is drawn."""

    spec: JobSpec
    session: Subject
    at: int
    loss: float


def draw(
    *sessions: Subject, path: Path | None = None, options: Options | None = None
) -> Path | None:
    """Draw curves into a file, `plot.png` in the first session unless `path` is given.

    Returns None, and draws nothing, while no loss has been logged. Raises BadInput for a format
    that is not known, and where tokens are asked for and unknown.
    """
    options = options or Options()
    kind = format_of(path)
    lines = [line for session in sessions for line in _lines_of(session)]
    if not lines:
        return None
    merged = [each for session in sessions for each in _merged_of(session)]
    figure = Figure(figsize=(10, 6.5), dpi=110, layout="constrained")
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    hues, drawn = _hues(lines), Drawn()
    longest = Counter[str]()
    for line in lines:
        longest[line.root] = max(longest[line.root], len(line.curve.losses))
    for line in lines:
        smooth = options.smooth or _window(longest[line.root], len(line.curve.losses))
        key = _hued_by(line, hues)
        smoothed = options._replace(smooth=smooth)
        _draw_line(loss, rate, line, hues[key], smoothed, drawn, by_point=key == line.root)
    for each in merged:
        at = places(each.spec, each.session, [each.at], options)
        loss.plot(at, [each.loss], "*", color=MERGED, ms=11, zorder=6)
    _dress(loss, rate, lines, merged, options)
    entries = _labels(lines, hues, many=len(sessions) > 1)
    legend(loss, [*entries, *_merged_labels(merged, many=len(sessions) > 1)])
    if options.title:
        names = sinks.picture(", ".join(session.id for session in sessions))
        cooldowns = sum(line.spec.kind is Kind.COOLDOWN for line in lines)
        loss.set_title(f"{names}: {cooldowns} cooldowns" if cooldowns else names, loc="left")
    target = path or sessions[0].path / "plot.png"
    save(figure, target, kind, by_umask=path is not None)
    return target


def format_of(path: Path | None) -> str:
    """The format of a picture by the end of its name; raises BadInput for one that is not known."""
    kind = "png" if path is None else path.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        raise BadInput(f"{path}: a picture ends in {', '.join(f'.{name}' for name in FORMATS)}")
    return kind


def save(figure: Figure, path: Path, kind: str, *, by_umask: bool = True) -> None:
    """Write a picture, whole or not at all."""
    picture = io.BytesIO()
    figure.savefig(picture, format=kind)
    atomic.write(path, picture.getvalue(), by_umask=by_umask)


def _lines_of(session: Subject) -> list[_Line]:
    """The curves of a session that have a point; what has no iterations has none."""
    specs = {spec.name: spec for spec in session.jobs}
    found: list[_Line] = []
    branches = 0
    for spec in session.jobs:
        curve = read_curve(session.path, spec.name)
        if spec.branch is not None:
            curve = curve.behind(spec.branch.iteration)
        if not curve.iterations:
            continue
        is_branch = spec.branch is not None
        trunk = read_curve(session.path, spec.parent or "") if is_branch else None
        joined = curve.joined_to(trunk) if trunk is not None else curve
        seed = len(joined.iterations) - len(curve.iterations)
        root = f"{session.id}/{root_of(spec, specs).name}"
        found.append(_Line(spec, session, root, joined, branches if is_branch else None, seed))
        branches += is_branch
    return found


def _merged_of(session: Subject) -> list[_Merged]:
    """The merged models of a session whose validation loss is known."""
    merges = [(spec, spec.merge, session.losses.get(spec.name)) for spec in session.jobs]
    return [
        _Merged(spec, session, merge.at, loss)
        for spec, merge, loss in merges
        if merge is not None and loss is not None
    ]


# Hues: one for each point of a sweep; of a single training, one for each branch and baseline


def _hues(lines: Sequence[_Line]) -> dict[str, tuple[str, float]]:
    """Colour and opacity by point; of one point alone by job."""
    roots = {line.root: _point_of(line.spec, line.root) for line in lines}
    if len(roots) > 1:
        points = list(dict.fromkeys(roots.values()))
        return {root: hue(points.index(point)) for root, point in roots.items()}
    decayed = [line.spec.name for line in lines if line.spec.decay is not None]
    return {name: hue(number) for number, name in enumerate(decayed)} | {"": (TRUNK, 1.0)}


def _point_of(spec: JobSpec, root: str) -> str:
    """What the repeats of a point share: they have one hue. Of others, the first training."""
    if REPEAT not in spec.settings:
        return root
    shared = without_repeat(spec.settings, spec.backend.model_dump())
    return f"{root.partition('/')[0]}/{sorted(shared.items())!r}"


def hue(number: int) -> tuple[str, float]:
    return _HUES[number % len(_HUES)], 1.0 if number < len(_HUES) else _AGAIN


def _hued_by(line: _Line, hues: Mapping[str, tuple[str, float]]) -> str:
    if line.root in hues:
        return line.root
    return line.spec.name if line.spec.decay is not None else ""


# Lines


def _draw_line(
    loss: Axes,
    rate: Axes,
    line: _Line,
    hue: tuple[str, float],
    options: Options,
    drawn: Drawn,
    *,
    by_point: bool,
) -> None:
    colour, opacity = hue
    at = _places(line, options)
    style, width = _look_of(line, by_point=by_point)
    losses, window = np.asarray(line.curve.losses), options.smooth or 1
    if window > 1:
        loss.plot(at, losses, color=colour, lw=0.8, alpha=_RAW * opacity)
    shown = np.concatenate([losses[: line.seed], _smoothed(losses[line.seed :], window)])
    if line.seed:  # on the line of its parent, smoothed as that is
        parent = drawn.get((line.session.id, line.spec.parent or ""), {})
        shown[0] = parent.get(line.curve.iterations[0], shown[0])
    own = zip(line.curve.iterations, map(float, shown), strict=True)
    drawn[line.session.id, line.spec.name] = dict(own)
    under = 2 if line.spec.baseline is None else 1.9  # its first part is as the training's
    for axes, values in ((loss, shown), (rate, line.curve.learning_rates)):
        axes.plot(at, values, color=colour, lw=width, ls=style, alpha=opacity, zorder=under)
    if line.number is not None:
        loss.plot(at[0], shown[0], "o", color=colour, ms=4.5, alpha=opacity, zorder=5)
    _draw_planned(rate, line, hue, options)
    if (end := line.session.losses.get(line.spec.name)) is not None:
        loss.plot(at[-1], end, "D", color=colour, ms=6, mec="white", zorder=5)


def _draw_planned(rate: Axes, line: _Line, hue: tuple[str, float], options: Options) -> None:
    """The planned rate, dotted under the measured one."""
    spec, decay = line.spec, line.spec.decay
    if decay is None:
        return
    points = min(_PLANNED, decay.target - decay.iteration + 1)
    steps = [int(at) for at in np.linspace(decay.iteration, decay.target, points)]
    found = [(step, spec.trainer.planned_rate(decay, step)) for step in steps]
    known = {step: value for step, value in found if value is not None}
    if known:
        at = places(spec, line.session, list(known), options)
        rate.plot(at, list(known.values()), color=hue[0], lw=1.0, ls=":", alpha=hue[1], zorder=1)


def _window(longest: int, points: int) -> int:
    """Points that a line is smoothed over: the branches of a training as itself, if they can be."""
    return max(1, min(longest // _POINTS, points // _LEAST))


def _look_of(line: _Line, *, by_point: bool) -> tuple[str | tuple[int, tuple[float, ...]], float]:
    """Line style and width: trainings are solid, cooldowns dashed by their number and thicker.

    Where the hue says the point, all cooldowns have one style.
    """
    if line.spec.baseline is not None:
        return (0, _BASELINE), 1.6
    if line.number is None:
        return "-", 1.3
    return (0, _DASHES[0 if by_point else line.number % len(_DASHES)]), 2.4


def _places(line: _Line, options: Options) -> list[float]:
    return places(line.spec, line.session, line.curve.iterations, options)


def places(
    spec: JobSpec, session: Subject, iterations: Sequence[int], options: Options
) -> list[float]:
    """Where iterations of a job stand on the horizontal axis; raises BadInput without tokens."""
    found: Sequence[int] | None = iterations
    if options.tokens:
        found = tokens_of_curve(spec, {each.name: each for each in session.jobs}, iterations)
    if found is None:
        raise BadInput(f"{spec.name}: its tokens are not known; leave out --tokens")
    return [float(each) for each in found]


def _smoothed(values: "NDArray[np.float64]", window: int) -> "NDArray[np.float64]":
    """A centred mean over `window` points, over fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    # As many on both sides, so that an end is not drawn towards the middle.
    reach = np.minimum((window - 1) // 2, np.minimum(places, places[::-1]))
    smoothed: NDArray[np.float64] = (sums[places + reach + 1] - sums[places - reach]) / (
        2 * reach + 1
    )
    return smoothed


# What stands around them


def _labels(
    lines: Sequence[_Line], hues: Mapping[str, tuple[str, float]], *, many: bool
) -> list[Line2D]:
    """Entries of the legend: each hue, and in a sweep what the styles of lines mean."""
    found: dict[str, Line2D] = {}
    by_point = any(line.root in hues for line in lines)
    for line in lines:
        key = _hued_by(line, hues)
        colour, opacity = hues[key]
        style, width = ("-", 2.4) if by_point else _look_of(line, by_point=by_point)
        label = sinks.picture(_label(line, by_point=by_point, many=many))
        entry = Line2D([], [], color=colour, alpha=opacity, ls=style, lw=width, label=label)
        found.setdefault(_point_of(line.spec, line.root) if by_point else key, entry)
    entries = list(found.values())
    kinds = {str(line.spec.kind): _look_of(line, by_point=True) for line in lines}
    if by_point and len(kinds) > 1:
        for name, (style, width) in kinds.items():
            label = "training" if name == Kind.TRAIN else name
            entries.append(Line2D([], [], color="0.3", ls=style, lw=width, label=label))
    return entries


def _merged_labels(merged: Sequence[_Merged], *, many: bool) -> list[Line2D]:
    """An entry of the legend for each merged model."""
    names = [f"{each.session.id} {each.spec.title}" if many else each.spec.title for each in merged]
    return [
        Line2D([], [], color=MERGED, marker="*", ms=11, ls="", label=sinks.picture(name))
        for name in names
    ]


def _label(line: _Line, *, by_point: bool, many: bool) -> str:
    """The swept values of a point, else the job's title, or the name of a training."""
    if by_point and line.spec.settings:
        shared = without_repeat(line.spec.settings, line.spec.backend.model_dump())
        words = (f"{key.rpartition('.')[2]} {as_word(value)}" for key, value in shared.items())
        label = ", ".join(words) or "repeats"
    elif by_point:
        label = line.root.partition("/")[2]
    else:
        label = line.spec.title
    return f"{line.session.id} {label}" if many else label


def _dress(
    loss: Axes, rate: Axes, lines: Sequence[_Line], merged: Sequence[_Merged], options: Options
) -> None:
    ends = [line.session.losses.get(line.spec.name) for line in lines]
    validated = [each for each in ends if each is not None] + [each.loss for each in merged]
    loss.set_ylabel("loss (nats per token)" + (", ◆ ★ on validation" if validated else ""))
    rate.set_ylabel("learning rate")
    rate.set_xlabel("tokens" if options.tokens else "iteration")
    rate.set_ylim(bottom=0)
    if options.tokens:
        rate.xaxis.set_major_formatter(EngFormatter(sep=""))
    for axes in (loss, rate):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    # The first iterations would squeeze everything of interest into the lowest tenth.
    shown = sorted([*validated, *(value for line in lines for value in line.curve.losses)])
    settled = shown[int(0.97 * (len(shown) - 1))]
    margin = 0.08 * (settled - shown[0]) or 0.1
    loss.set_ylim(shown[0] - margin, settled + margin)


def legend(loss: Axes, entries: list[Line2D]) -> None:
    if 0 < len(entries) <= _INSIDE:
        loss.legend(handles=entries, frameon=False)
    elif _INSIDE < len(entries) <= _LEGEND:
        legend = loss.legend(handles=entries, frameon=False, fontsize="small", loc="upper left")
        legend.set_bbox_to_anchor((1.0, 1.0))


# A plan, before anything of it runs


def draw_plan(plan: Plan, name: str, path: Path) -> None:
    """Draw a plan over its iterations: trainings, the decays that branch from them, and stages."""
    specs = {spec.name: spec for spec in plan.jobs}
    jobs = [specs[job] for job, _ in walk(map(place_of, plan.jobs))][:_ROWS]
    points = {spec.name: _point_of(spec, f"/{root_of(spec, specs).name}") for spec in plan.jobs}
    hues = list(dict.fromkeys(points.values()))
    figure = Figure(figsize=(10, 1.3 + 0.32 * len(jobs)), layout="constrained")
    axes = figure.subplots()
    rows = {spec.name: row for row, spec in enumerate(jobs)}
    ends: dict[str, float] = {}
    for spec in jobs:
        colour, opacity = hue(hues.index(points[spec.name]))
        ends[spec.name] = _draw_job(axes, spec, rows, ends, colour, opacity)
    _dress_plan(axes, plan, jobs, ends)
    title = sinks.picture(f"{name}: {headline(plan)}")
    if len(plan.jobs) > len(jobs):
        title += f"; the first {len(jobs)} are drawn"
    axes.set_title(title, loc="left", fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.fonttype": "none"}):  # text stays text
        save(figure, path, "svg")


def _draw_job(
    axes: Axes,
    spec: JobSpec,
    rows: Mapping[str, int],
    ends: Mapping[str, float],
    colour: str,
    opacity: float,
) -> float:
    """Draw a job into its row; returns the iteration at which it ends."""
    row = rows[spec.name]
    above = [awaited.job for awaited in spec.awaits] or ([spec.parent] if spec.parent else [])
    if spec.target_iteration is None:  # takes no iterations: a stage
        at = max((ends[job] for job in above if job in ends), default=0.0)
        axes.plot(at, row, "D", color=colour, ms=6, alpha=opacity)
        return at
    end, decay = spec.target_iteration, spec.decay
    if decay is None:
        axes.barh(row, end, 0.5, 0, color=colour, alpha=opacity)
    else:  # the learning rate comes down
        start = decay.iteration
        heights = [row + 0.25, row - 0.25, row - 0.25, row + 0.25]
        axes.fill([start, start, decay.falls_from, end], heights, color=colour, lw=0)
        if spec.branch is not None and spec.parent is not None and spec.parent in rows:
            axes.plot([start, start], [rows[spec.parent], row], color=colour, lw=0.8, zorder=0)
    return float(end)


def _dress_plan(axes: Axes, plan: Plan, jobs: Sequence[JobSpec], ends: Mapping[str, float]) -> None:
    launches = Counter[str]()
    for each in plan.launches:
        launches[each.job] += each.count
    for row, spec in enumerate(jobs):
        notes = [f"{spec.machine.gpus} GPUs"] if spec.machine.gpus else []
        if spec.planned is not None and spec.machine.gpus:
            notes.append(f"{spec.planned.gpu_hours:.2f} GPU h")
        if launches[spec.name]:
            notes.append(f"launches {launches[spec.name]} more")
        axes.annotate(
            ", ".join(notes),
            (ends[spec.name], row),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
            color="0.35",
            bbox={"facecolor": "white", "linewidth": 0, "pad": 0.5},
        )
    axes.set_yticks(range(len(jobs)), [sinks.picture(spec.name) for spec in jobs])
    axes.set_ylim(len(jobs) - 0.4, -0.6)  # the first job on top
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.18 * max([*ends.values(), 1.0]))  # with room for the notes
    axes.set_xlabel("iteration")
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
