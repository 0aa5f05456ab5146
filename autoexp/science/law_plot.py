"""The picture of a law: the runs on its curves, and their residuals below."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from autoexp.reports.plot import format_of, save
from autoexp.science.law import Fit

_MARKERS = "osD^vP*X<>"
_CURVES = 10
"""Most sizes that have a line of their own in the legend."""


def draw_law(fit: Fit, title: str, path: Path) -> None:
    """Draw losses over tokens, a curve for each size, and residuals.

    Raises BadInput for a format that is not known.
    """
    kind = format_of(path)
    figure = Figure(figsize=(9, 7), dpi=110, layout="constrained")
    loss, residual = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    sizes = sorted({run.parameters for run in fit.runs})
    hues = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, len(sizes)))
    tokens = np.geomspace(
        min(run.tokens for run in fit.runs) / 1.3, max(run.tokens for run in fit.runs) * 1.3, 60
    )
    low = [fit.predict(sizes[-1], each).low for each in tokens]
    high = [fit.predict(sizes[-1], each).high for each in tokens]
    loss.fill_between(tokens, low, high, color=hues[-1], alpha=0.15, lw=0)
    for place, (size, hue) in enumerate(zip(sizes, hues, strict=True)):
        mark = _MARKERS[place % len(_MARKERS)]
        curve = [fit.law.loss(size, each) for each in tokens]
        label = f"N = {size:,.0f}" if len(sizes) <= _CURVES else None
        loss.plot(tokens, curve, color=hue, lw=1.2)
        pairs = zip(fit.runs, fit.residuals, strict=True)
        own = [(run.tokens, run.loss, left) for run, left in pairs if run.parameters == size]
        at, losses, left_over = zip(*own, strict=True)
        loss.plot(at, losses, mark, color=hue, ms=6, label=label)
        residual.plot(at, [100 * left for left in left_over], mark, color=hue, ms=5)
    e = fit.intervals["E"]
    loss.axhline(e.value, color="#4a5568", lw=1, ls="--")
    loss.axhspan(e.low, e.high, color="#4a5568", alpha=0.12, lw=0)
    loss.text(tokens[-1], e.value, f"E = {e.value:.3f} ({e.low:.3f} to {e.high:.3f})", ha="right",
              va="bottom", fontsize="small")  # fmt: skip
    loss.set_title(title, loc="left")
    loss.set_ylabel("loss (nats per token)")
    loss.set_xscale("log")
    residual.axhline(0, color="#4a5568", lw=1, ls="--")
    residual.set_ylabel("residual (%)")
    residual.set_xlabel("tokens D")
    for axes in (loss, residual):
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    if len(sizes) <= _CURVES:
        loss.legend(frameon=False)
    save(figure, path, kind)
