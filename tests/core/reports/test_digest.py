"""A digest says what happened since then, and nothing of what lies before."""

from datetime import timedelta

import pytest

from autoexp.cli.main import main
from autoexp.model import now
from autoexp.reports.upkeep.digest import digest
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.core.story import StoryOf


def test_a_digest_names_what_runs_what_failed_and_what_it_took(story_of: StoryOf) -> None:
    story = story_of()
    story.job().attempts[0].gpus = 4
    begun = now() - timedelta(hours=3)
    story.look(state="RUNNING", started_at=begun)
    story.log(100)
    story.save(100)
    story.look()
    text = digest([story.session], 3600.0, now())
    assert text.startswith("**autoexp, the last 1 h**\n\n**s1**: stopped\n- nobody watches it")
    assert "- 4.0 GPU hours; goodput" in text
    assert "- 1 checkpoints" in text
    assert "- runs: tiny 100/300, loss 2.9" in text
    story.look(state="FAILED", exit_code=1, ended_at=now())
    assert "- failed: tiny: FAILED (exit code 1)" in digest([story.session], 3600.0, now())


def test_a_session_that_was_over_before_is_left_out(story_of: StoryOf) -> None:
    session = story_of().session
    for job in session.jobs.values():
        session.settle(job, Verdict.FINISHED, "so")
        for attempt in job.attempts:
            attempt.state = "COMPLETED"
    later = now() + timedelta(days=8)
    assert digest([session], 7 * 86400.0, later).endswith("Nothing has happened.")
    assert "**s1**" in digest([session], 9 * 86400.0, later)


def test_markdown_in_a_reason_is_text(story_of: StoryOf) -> None:
    story = story_of()
    story.look(state="FAILED", exit_code=1)
    story.session.settle(story.job(), Verdict.FAILED, "[x](http://y) `*`\n# no")
    text = digest([story.session], 3600.0, now())
    (line,) = [line for line in text.splitlines() if "failed: tiny: " in line]
    assert "\\[x\\](" in line and not any(x.startswith("# no") for x in text.splitlines())


def test_a_time_that_is_none_is_refused(
    story_of: StoryOf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    story = story_of()
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(story.path.parent))
    assert main(["digest", "--since", "a week"]) == 2
    assert "--since a week: not a duration" in capsys.readouterr().err.replace("Value error, ", "")
    assert main(["digest"]) == 0
    assert Session.load(story.path).id in capsys.readouterr().out
