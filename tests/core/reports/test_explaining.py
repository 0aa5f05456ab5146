"""`explain`: what rules did about a job, in sentences."""

from autoexp.reports.explain import explain_job
from tests.core.story import HANG, StoryOf, go_on, say


def test_a_jobs_story_says_event_rule_action_and_what_it_waits_for(
    story_of: StoryOf,
) -> None:
    waits = {"waits": {"substring": "it hangs", "actions": [{"log": {}, "when": [{"elapsed": 9}]}]}}
    story = story_of(log_events=HANG | waits)
    say(story, "it hangs")
    say(story, "it hangs")
    story.look()
    pending = next(a for a in story.session.pending_actions() if a.rule == "waits")
    story.session.change_action(pending, reason="waits 9 s after the event")
    told = "\n".join(explain_job(story.path, "tiny").sentences)
    assert "tiny is RUNNING, attempt 1, at iteration 0 of 300." in told
    assert "tiny attempt 1: hang: it hangs" in told
    assert "rule waits wants to log a message (waits 9 s after the event)" in told
    assert "Rule hang found 2 lines in the log of attempt 1." in told
    go_on(story)
    told = "\n".join(explain_job(story.path, "tiny").sentences)
    assert "rule hang did restart the attempt (attempt 1 restarts)" in told
    assert "tiny attempt 1: continue (restarted: rule hang" in told


def test_a_cooldown_says_what_it_waits_for_and_what_started_it(
    story_of: StoryOf,
) -> None:
    story = story_of()
    told = "\n".join(explain_job(story.path, "tiny-cd100").sentences)
    assert told == "tiny-cd100 is WAITING: waits for checkpoint 100 of tiny."
    story.save(100)
    story.look()
    told = "\n".join(explain_job(story.path, "tiny-cd100").sentences)
    assert "Because checkpoint 100 of tiny is complete: rule start-tiny-cd100 wants to" in told
