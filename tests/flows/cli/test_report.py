"""`autoexp report`, and its page in a real browser."""

from pathlib import Path

import pytest

from autoexp.config.compose import compose
from autoexp.session.session import Session
from tests.builders import TINY, create
from tests.flows.commands import autoexp
from tests.slurm.browser import CHROMIUM, open_page


@pytest.fixture
def session(tmp_path: Path) -> Session:
    path = create(compose("demo", TINY), tmp_path / "sessions", session_id="s1")
    session = Session.load(path)
    trunk, first, _ = session.jobs.values()
    session.log_progress(trunk, (f"{i},{3 - i / 100},1e-2,0.1\n" for i in range(10, 301, 10)))
    session.change_job(trunk, iteration=300, reason="<img src=x onerror=document.title='bad'>")
    session.log_progress(first, (f"{i},{3 - i / 50},1e-3,0.1\n" for i in range(110, 151, 10)))
    session.change_job(first, iteration=150)
    return session


def test_a_report_is_written_where_one_says_or_into_the_session(
    session: Session, tmp_path: Path
) -> None:
    own, given = session.path / "report.html", tmp_path / "x.html"
    for options, file in (([], own), (["-o", str(given)], given)):
        answer = autoexp("report", "s1", *options, root=session.path.parent)
        assert (answer.returncode, answer.stdout) == (0, f"{file}\n"), answer.stderr
        assert file.read_text().startswith("<!doctype html>")


@pytest.mark.skipif(CHROMIUM is None, reason="no browser here")
def test_a_browser_draws_the_curves_of_a_report(session: Session, tmp_path: Path) -> None:
    autoexp("report", "s1", "-o", str(tmp_path / "page.html"), root=session.path.parent)
    page = open_page(f"file://{tmp_path}/page.html", tmp_path / "page.png", width=400)
    assert page.count("<canvas") == 2
    legend = page.partition('id="legend"')[2].partition("</section>")[0]
    assert "<span>tiny</span>" in legend and "<span>@100</span>" in legend
    # What scripts have made is escaped, too.
    assert "<title>s1 · autoexp</title>" in page and "<img src=x" not in page
