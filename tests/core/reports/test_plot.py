"""The picture of the curves: hues, styles, labels, formats."""

import math
import random
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from autoexp.cli.main import main
from autoexp.config.compose import compose
from autoexp.errors import BadInput
from autoexp.jobs.summary import place_of, walk
from autoexp.planning.plan import headline, make_plan
from autoexp.reports import plot
from autoexp.reports.plot import Options, Subject, draw, draw_plan
from autoexp.session.session import Session
from tests.builders import create

SIZE = (
    "backend.args.train_iters=600",
    "backend.args.save_interval=100",
    "cooldowns=[{at: [200, 400], decay: {iterations: 100}}]",
)
SWEPT = "backend.args.lr=3e-4,1e-3,3e-3"
EVALUATED = "stages.score={command: ['true']}"


def logged(path: Path, *, without: str = " ") -> Subject:
    """A session whose jobs have logged curves, but for some."""
    session, noise = Session.load(path), random.Random(7)
    for number, job in enumerate(session.jobs.values()):
        target = job.spec.target_iteration
        if target is None or without in job.spec.name:
            continue
        start = job.spec.branch.iteration if job.spec.branch else 0
        rows = []
        for at in range(start + 10, target + 1, 10):
            gain = 0.25 * math.sqrt((at - start) / (target - start)) if start else 0.0
            loss = 2.0 + 1.2 * math.exp(-at / 150) + 0.06 * (number // 3) - gain
            rate = 1e-3 * (1 - (at - start) / (target - start)) if start else 1e-3
            rows.append(f"{at},{loss + noise.gauss(0, 0.02)},{rate},0.1\n")
        file = session.path / "metrics" / f"{job.spec.name}.csv"
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(rows))
    return Subject.of(session)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn."""
    drawn: list[Figure] = []

    class Kept(Figure):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            drawn.append(self)

    monkeypatch.setattr(plot, "Figure", Kept)
    return drawn


def lines_of(axes: Axes) -> list[Line2D]:
    return [line for line in axes.lines if line.get_marker() == "None"]


def legend(axes: Axes) -> list[str]:
    found = axes.get_legend()
    return [] if found is None else [text.get_text() for text in found.get_texts()]


def sweep(root: Path, *words: str) -> Path:
    return create(compose("demo", [*SIZE, SWEPT, *words]), root, session_id="s")


def test_a_point_of_a_sweep_has_one_hue_and_its_cooldowns_are_dashed_and_thicker(
    tmp_path: Path, figures: list[Figure]
) -> None:
    assert draw(logged(sweep(tmp_path)), options=Options(smooth=1)) == tmp_path / "s" / "plot.png"
    loss = figures[0].axes[0]
    lines = lines_of(loss)
    assert len(lines) == 9  # three points, each a training with two cooldowns
    assert {to_hex(line.get_color()).upper() for line in lines} == set(plot._HUES[:3])
    solid = [line for line in lines if line.get_linestyle() == "-"]
    dashed = [line for line in lines if line.get_linestyle() == "--"]
    assert (len(solid), len(dashed)) == (3, 6)
    assert min(line.get_linewidth() for line in dashed) > max(x.get_linewidth() for x in solid)
    assert legend(loss) == ["lr 0.0003", "lr 0.001", "lr 0.003", "training", "cooldown"]


def test_repeats_of_a_point_share_its_hue_and_its_entry_in_the_legend(
    tmp_path: Path, figures: list[Figure]
) -> None:
    draw(logged(sweep(tmp_path, "repeats=2")), options=Options(smooth=1))
    loss = figures[0].axes[0]
    lines = lines_of(loss)
    assert len(lines) == 18
    assert {to_hex(line.get_color()).upper() for line in lines} == set(plot._HUES[:3])
    assert legend(loss) == ["lr 0.0003", "lr 0.001", "lr 0.003", "training", "cooldown"]


def test_repeats_of_one_training_have_one_hue(tmp_path: Path, figures: list[Figure]) -> None:
    composed = compose("demo", [*SIZE, "repeats=3"])
    draw(logged(create(composed, tmp_path, session_id="s")), options=Options(smooth=1))
    loss = figures[0].axes[0]
    assert len(lines_of(loss)) == 9
    assert {to_hex(line.get_color()).upper() for line in lines_of(loss)} == {plot._HUES[0]}
    assert legend(loss) == ["repeats", "training", "cooldown"]


def test_the_raw_loss_is_faint_under_a_smoothed_line_that_keeps_both_ends(
    tmp_path: Path, figures: list[Figure]
) -> None:
    draw(logged(sweep(tmp_path, "cooldowns=[]")), options=Options(smooth=9))
    raw, smoothed = lines_of(figures[0].axes[0])[:2]
    assert raw.get_alpha() < 0.3 and smoothed.get_alpha() == 1.0
    before, after = raw.get_ydata(), smoothed.get_ydata()
    assert (before[0], before[-1]) == pytest.approx((after[0], after[-1]))
    assert after[30] == pytest.approx(sum(before[26:35]) / 9)


def test_a_training_alone_gives_each_branch_a_hue_and_its_title(
    tmp_path: Path, figures: list[Figure]
) -> None:
    path = create(compose("demo", SIZE), tmp_path, session_id="s")
    draw(logged(path), options=Options(smooth=5))
    loss = figures[0].axes[0]
    assert legend(loss) == ["train demo", "cooldown demo @200", "cooldown demo @400"]
    assert loss.get_title(loc="left") == "s: 2 cooldowns"
    trunk, *branches = (line for line in lines_of(loss) if line.get_alpha() == 1.0)
    assert to_hex(trunk.get_color()) == plot.TRUNK
    assert [to_hex(line.get_color()).upper() for line in branches] == list(plot._HUES[:2])
    # A branch begins on the line of the trunk, smoothed as that is.
    at = list(trunk.get_xdata()).index(200)
    assert branches[0].get_xdata()[0] == 200
    assert branches[0].get_ydata()[0] == trunk.get_ydata()[at]


def test_what_has_logged_nothing_is_neither_drawn_nor_counted(
    tmp_path: Path, figures: list[Figure]
) -> None:
    path = create(compose("demo", [*SIZE, EVALUATED]), tmp_path, session_id="s")
    draw(logged(path, without="cd400"), options=Options(smooth=1))
    loss = figures[0].axes[0]
    assert loss.get_title(loc="left") == "s: 1 cooldowns"
    assert len(lines_of(loss)) == 2


def test_nothing_is_drawn_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = create(compose("demo", SIZE), tmp_path, session_id="s")
    assert draw(Subject.of(Session.load(path))) is None
    assert main(["plot", str(path)]) == 2
    assert "no loss has been logged yet" in capsys.readouterr().err
    assert not (path / "plot.png").exists()


def test_tokens_can_stand_below_and_the_title_can_be_left_out(
    tmp_path: Path, figures: list[Figure]
) -> None:
    path = create(compose("demo", SIZE), tmp_path, session_id="s")
    draw(logged(path), options=Options(tokens=True, title=False))
    loss, rate = figures[0].axes
    assert loss.get_title(loc="left") == ""
    assert rate.get_xlabel() == "tokens"
    batches = Session.load(path).jobs["demo"].spec.trainer.batches(1)
    assert batches is not None
    assert lines_of(loss)[0].get_xdata()[0] == batches.tokens(10)
    assert rate.xaxis.get_major_formatter()(2_000_000.0) == "2M"


@pytest.mark.parametrize(
    ("name", "beginning"),
    [("a.png", b"\x89PNG"), ("a.PDF", b"%PDF"), ("a.svg", b"<?xml")],
)
def test_the_ending_of_the_file_says_the_format(
    tmp_path: Path, name: str, beginning: bytes
) -> None:
    path = create(compose("demo", SIZE), tmp_path / "root", session_id="s")
    logged(path)
    assert main(["plot", str(path), "-o", str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_bytes().startswith(beginning)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = create(compose("demo", SIZE), tmp_path / "root", session_id="s")
    with pytest.raises(BadInput, match=r"a.jpg: a picture ends in \.png, \.pdf, \.svg"):
        draw(logged(path), path=tmp_path / "a.jpg")


def test_a_plan_is_a_timeline_in_the_trees_order_on_white(tmp_path: Path) -> None:
    stages = "stages={score: {each: cooldown, command: [echo, done]}}"
    composed = compose("demo", ["cooldowns=[{at: [600, 1000], decay: {iterations: 100}}]", stages])
    plan = make_plan(composed.experiment, tmp_path)
    draw_plan(plan, "demo", tmp_path / "pictures" / "plan.svg")
    svg = ET.parse(tmp_path / "pictures" / "plan.svg").getroot()
    texts = [element.text or "" for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    names = [name for name, _ in walk(map(place_of, plan.jobs))]
    assert len(names) == 5 and [text for text in texts if text in names] == names
    assert f"demo: {headline(plan)}" in texts and "iteration" in texts
    background = next(svg.iter("{http://www.w3.org/2000/svg}path"))
    assert background.get("style") == "fill: #ffffff"


def test_a_baseline_is_joined_to_nothing_and_has_a_style_and_its_planned_rate(
    tmp_path: Path, figures: list[Figure]
) -> None:
    own = "baselines=[{decay: {shape: cosine}}]"
    subject = logged(create(compose("demo", [*SIZE, own]), tmp_path, session_id="s"))
    draw(subject, options=Options(smooth=1))
    loss, rate = figures[0].axes
    entries = dict(zip(legend(loss), loss.get_legend().get_lines(), strict=True))
    assert list(entries) == [
        "train demo", "cooldown demo @200", "cooldown demo @400", "baseline base600-cosine",
    ]  # fmt: skip
    looks = {line.get_color() for line in entries.values()}
    assert len(looks) == 4
    drawn = [line for line in lines_of(loss) if line.get_linestyle() == "--"]
    colour = entries["baseline base600-cosine"].get_color()
    (base,) = [line for line in drawn if line.get_color() == colour]
    assert next(iter(base.get_xdata())) == 10  # its own first line, and no point of the training
    (planned,) = [
        line for line in rate.lines if line.get_color() == colour and line.get_linestyle() == ":"
    ]
    ends = (float(planned.get_ydata()[0]), float(planned.get_ydata()[-1]))
    assert ends == pytest.approx((0.0, 0.0), abs=1e-9)
    assert max(map(float, planned.get_ydata())) == pytest.approx(1e-2, rel=0.01)
