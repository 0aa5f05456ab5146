"""Plots the loss curve with its branches, and the learning rate below."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from autoexp import sinks
from autoexp.jobs.spec import JobSpec
from autoexp.reports.curves import Curve, read_curve, validation_loss
from autoexp.session.session import Session
from autoexp.states import Kind
from autoexp.storage import atomic

_TRUNK = "#4a5568"
_MERGED = "#000000"
# Of Okabe and Ito, for readers who see fewer; of many branches, hues in their order.
_HUES = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"),
    *("#7F3C8D", "#8C6D31", "#A5A5A5"),
)
# Beside the hue, for readers who cannot tell one from another.
_STYLES: tuple[str, ...] = ("-", "--", "-.")
_INSIDE = 6  # lines whose legend fits beside the curves
_LEGEND = 24  # lines that a legend has room for


class Subject(NamedTuple):
    """A session to plot: values alone, so that it can be drawn outside its monitor's thread."""

    id: str
    path: Path
    jobs: tuple[JobSpec, ...]
    losses: Mapping[str, float] = MappingProxyType({})
    """Validation losses at the end of cooldowns, and of merges, by job."""

    @classmethod
    def of(cls, session: Session) -> "Subject":
        records = session.jobs.values()
        found = {job.spec.name: validation_loss(job) for job in records if job.spec.starts_at}
        losses = {name: loss for name, loss in found.items() if loss is not None}
        return cls(session.id, session.path, tuple(job.spec for job in records), losses)


def draw(*sessions: Subject, path: Path | None = None) -> Path:
    """Draw curves into a PNG, `plot.png` in the first session unless `path` is given."""
    figure = Figure(figsize=(10, 6.5), dpi=110, layout="constrained")
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    colours = matplotlib.colormaps["plasma"]
    drawn = [(session, spec) for session in sessions for spec in session.jobs]
    branches = [spec for _, spec in drawn if _is_branch(spec)]
    many_trunks = sum(spec.kind is Kind.TRAIN and spec.parent is None for _, spec in drawn) > 1
    shown: list[float] = []
    for session, spec in drawn:
        if spec.merge is not None:
            if (merged := session.losses.get(spec.name)) is not None:
                label = sinks.picture(spec.title)
                loss.plot(spec.merge.at, merged, "*", color=_MERGED, ms=11, zorder=6, label=label)
                shown.append(merged)
            continue
        curve = read_curve(session.path, spec.name)
        if spec.branch is not None:
            curve = curve.behind(spec.branch.iteration)
        if not curve.iterations:
            continue
        label = sinks.picture(spec.title if len(sessions) == 1 else f"{session.id} {spec.title}")
        if not _is_branch(spec):
            first = spec.parent is None
            known = None if first and many_trunks else label
            _line(loss, rate, curve, _TRUNK, known, style="-" if first else "--")
        else:
            place = branches.index(spec) / max(1, len(branches) - 1)
            curve = _joined(session, spec.parent or "", curve)
            number = branches.index(spec)
            few = 2 < len(branches) <= len(_HUES)
            hue = _HUES[number] if few else colours(0.1 + 0.7 * place)
            style = _STYLES[number % len(_STYLES)]
            _line(loss, rate, curve, hue, label, width=2.0, style=style)
            _planned(rate, spec, hue)
            if (last := session.losses.get(spec.name)) is not None:
                loss.plot(curve.iterations[-1], last, "D", color=hue, ms=6, mec="white", zorder=5)
            loss.plot(curve.iterations[0], curve.losses[0], "o", color=_TRUNK, ms=5, zorder=5)
        shown += curve.losses
    _dress(loss, rate, sinks.picture(", ".join(session.id for session in sessions)), drawn, shown)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    target = path or sessions[0].path / "plot.png"
    atomic.write(target, picture.getvalue(), by_umask=path is not None)
    return target


def _is_branch(spec: JobSpec) -> bool:
    """True if its curve branches from another one."""
    return spec.branch is not None


def _line(
    loss: Axes,
    rate: Axes,
    curve: Curve,
    colour: object,
    label: str | None,
    *,
    width: float = 1.2,
    style: str = "-",
) -> None:
    at = curve.iterations
    loss.plot(at, curve.losses, color=colour, lw=width, ls=style, label=label)
    rate.plot(at, curve.learning_rates, color=colour, lw=width, ls=style)


def _planned(rate: Axes, spec: JobSpec, hue: object) -> None:
    """The planned rate, dotted under the measured one."""
    assert spec.branch is not None
    at = range(spec.branch.iteration, spec.branch.target + 1)
    planned = [spec.trainer.planned_rate(spec.branch, iteration) for iteration in at]
    if None not in planned:
        rate.plot(list(at), planned, color=hue, lw=1.0, ls=":", zorder=1)  # type: ignore[arg-type]


def _joined(session: Subject, parent: str, curve: Curve) -> Curve:
    """The branch with the parent's last point before it in front, so that the lines meet."""
    trunk = read_curve(session.path, parent)
    before = [i for i, at in enumerate(trunk.iterations) if at < curve.iterations[0]]
    if not before:
        return curve
    last = before[-1]
    return Curve(
        [trunk.iterations[last], *curve.iterations],
        [trunk.losses[last], *curve.losses],
        [trunk.learning_rates[last], *curve.learning_rates],
    )


def _dress(
    loss: Axes,
    rate: Axes,
    title: str,
    drawn: Sequence[tuple[Subject, JobSpec]],
    shown: Sequence[float],
) -> None:
    cooldowns = sum(spec.kind is Kind.COOLDOWN for _, spec in drawn)
    loss.set_title(f"{title}: {cooldowns} cooldowns", loc="left")
    ends = any(session.losses for session, _ in drawn)
    loss.set_ylabel("loss (nats per token)" + (", ◆ ★ on validation" if ends else ""))
    rate.set_ylabel("learning rate")
    rate.set_xlabel("iteration")
    rate.set_ylim(bottom=0)
    for axes in (loss, rate):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    if not shown:
        loss.text(0.5, 0.5, "no loss logged yet", ha="center", transform=loss.transAxes)
        return
    # The first iterations would squeeze everything of interest into the lowest tenth.
    settled = sorted(shown)[int(0.97 * (len(shown) - 1))]
    margin = 0.08 * (settled - min(shown)) or 0.1
    loss.set_ylim(min(shown) - margin, settled + margin)
    lines = len(loss.get_legend_handles_labels()[1])
    if 0 < lines <= _INSIDE:
        loss.legend(frameon=False)
    elif _INSIDE < lines <= _LEGEND:
        loss.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
