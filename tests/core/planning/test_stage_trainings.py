"""A training behind another: planned with its cooldowns, released with what it begins from."""

from pathlib import Path
from typing import Any

import pytest

from autoexp.config.compose import compose
from autoexp.dotted import setting
from autoexp.errors import BadInput
from autoexp.jobs.spec import JobSpec
from autoexp.planning.study import plan_study
from autoexp.session.from_session import Origin, compose_from
from autoexp.session.session import Session
from autoexp.states import Kind, Verdict
from tests.builders import TINY, create
from tests.core.planning.stages import OUT, ask, finish, jobs, refusal, releases, started
from tests.core.story import Story
from tests.killing import KilledAt

BEGIN = "backend.args.pretrained_checkpoint"
DECAY = {"iterations": 20}
FINETUNE: dict[str, Any] = {
    "train": {
        BEGIN: "{sibling.stable.checkpoint_path}",
        "backend.args.train_iters": 120,
        "backend.args.lr": 0.002,
        "backend.args.save_interval": 60,
        "cooldowns": [{"at": [60], "decay": DECAY}],
    }
}


def argument(spec: JobSpec, flag: str) -> str:
    return spec.command[spec.command.index(flag) + 1]


def test_a_training_behind_another_is_planned_with_its_own_settings_and_cooldowns() -> None:
    found = jobs({"finetune": FINETUNE}, "budget.seconds_per_iteration=1", "cooldowns=[]")
    assert list(found) == ["tiny", "tiny-finetune", "tiny-finetune-cd60"]
    finetune, cooldown = found["tiny-finetune"], found["tiny-finetune-cd60"]
    assert (finetune.kind, cooldown.kind) == (Kind.TRAIN, Kind.COOLDOWN)
    assert (finetune.parent, cooldown.parent) == ("tiny", "tiny-finetune")
    assert [str(awaited) for awaited in finetune.awaits] == ["tiny"]
    assert (finetune.target_iteration, cooldown.target_iteration) == (120, 80)
    assert argument(finetune, "--lr") == argument(cooldown, "--lr") == "0.002"
    assert argument(finetune, "--save") == "/out/tiny-finetune/checkpoints"
    assert argument(finetune, "--pretrained-checkpoint") == "{sibling.stable.checkpoint_path}"
    assert argument(found["tiny"], "--lr") == "0.01"


def test_its_cost_is_part_of_the_plans() -> None:
    composed = compose("demo", [*TINY, "cooldowns=[]"], setting({"stages": {"more": FINETUNE}}))
    cost = plan_study(composed, OUT).cost
    assert cost is not None
    assert cost.iterations == 300 + 120 + 20
    assert cost.models == 0  # nothing here would be the same from scratch


def test_every_cooldown_and_every_point_can_have_a_training_behind_it() -> None:
    tune = {
        "each": "cooldown",
        "train": {BEGIN: "{sibling.cooldown.checkpoint_path}", "backend.args.train_iters": 60},
    }
    score = {"each": "cooldown", "command": ["x", "{sibling.tune.checkpoint_path}"]}
    report = {"each": "cooldown", "command": ["y", "{sibling.score.output_dir}"]}
    stages = {"tune": tune, "score": score, "report": report}
    found = jobs(stages, "backend.args.lr=1e-2,2e-2")
    assert len(found) == 2 * (1 + 2 + 2 * 3)
    job = found["tiny-lr0.02-cd200-tune"]
    assert (job.parent, argument(job, "--lr")) == ("tiny-lr0.02-cd200", "0.02")
    assert job.settings == {"backend.args.lr": 0.02}
    assert [str(awaited) for awaited in found["tiny-lr0.02-cd200-report"].awaits] == [
        "tiny-lr0.02-cd200-score"
    ]
    # What is about the second training stands below it.
    assert found["tiny-lr0.02-cd200-score"].parent == "tiny-lr0.02-cd200-tune"
    assert found["tiny-lr0.02-cd200-report"].parent == "tiny-lr0.02-cd200-tune"


def test_its_settings_can_be_overridden_and_swept_on_the_command_line() -> None:
    tune = "stages.tune.train.backend.args"
    composed = compose("finetune", [f"{tune}.lr=1e-3,3e-3", f"{tune}.seed=7"])
    found = {job.name: job for job in plan_study(composed, OUT).jobs}
    job = found["finetune-lr0.003-cd1000-tune"]
    assert (argument(job, "--lr"), argument(job, "--seed")) == ("0.003", "7")
    assert argument(found["finetune-lr0.003-cd1000"], "--lr") == "0.01"


def test_it_can_be_of_another_trainer() -> None:
    own = {
        "kind": "command",
        "command": ["t", "{{save_dir}}", "{sibling.stable.name}"],
        "saves": {"name": "step-{{iteration}}", "renamed": True},
        "log_line": r"step (?P<iteration>\d+)",
        "args": {"train_iters": 50, "save_interval": 10},
    }
    found = jobs({"other": {"train": {"backend": own}}})["tiny-other"]
    assert found.command == ("t", "/out/tiny-other/checkpoints", "tiny")


def test_a_stage_can_follow_a_cooldown_of_the_second_training() -> None:
    command = ["x", "{sibling.finetune-cd60.output_dir}", "{sibling.stable.name}"]
    found = jobs({"last": {"command": command}, "finetune": FINETUNE})
    assert found["tiny-last"].command == ("x", "/out/tiny-finetune-cd60", "tiny")
    assert found["tiny-last"].parent == "tiny-finetune-cd60"
    # The first training has finished when the second one's cooldown has.
    assert [str(awaited) for awaited in found["tiny-last"].awaits] == ["tiny-finetune-cd60"]
    assert list(found)[-1] == "tiny-last"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": {"backend.args.lrr": 1}}, "backend.args.lrr: no such key; did you mean `lr`?"),
        ({"train": {"backend.args.lr": "{sibling.stable.nmae}"}}, "did you mean"),
        (
            {"train": {"backend.args.train_iters": "{sibling.stable.checkpoint_path}"}},
            "is not an amount",
        ),
        ({"train": {"monitoring.file_tick_s": 1}}, "belongs to the session"),
        ({"train": {"project.name": "x"}}, "belongs to the session"),
        ({"train": {"slurm.nodes": 2}}, "set it in `stages.a.slurm`"),
        ({"train": {"stages.b.minutes": 1}}, "belongs to the first training"),
        (
            {"train": {"budget.measured_in": "{sibling.stable.checkpoint_path}"}},
            "only the backend can use it",
        ),
        ({"command": ["x"]}, "exactly one of `command` and `train`"),
        ({"minutes": 3}, "minutes: only for a command, and this is a training"),
        (
            {"train": {"cooldowns": [{"at": [5000], "decay": DECAY}]}},
            "stages.a: cooldowns.0: 5000: beyond the trunk's target of 300 iterations",
        ),
    ],
)
def test_a_training_that_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    message = refusal({"a": {**FINETUNE, **changes}})
    assert said in message
    assert "stages.a" in message


def test_a_cooldown_that_the_second_training_does_not_have_is_refused() -> None:
    last = {"command": ["x", "{sibling.finetune-cd61.output_dir}"]}
    message = refusal({"finetune": FINETUNE, "last": last})
    assert "stages.last: there is no sibling `finetune-cd61`; there are: " in message
    assert "finetune-cd60" in message


# In a session


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """The first training runs, below a path that looks like a template."""
    composed = compose("demo", [*TINY, "cooldowns=[]"], setting({"stages": {"finetune": FINETUNE}}))
    root = tmp_path / "{job.name}" / "$(touch x)"
    story = Story(create(composed, root, session_id="s1"))
    story.submit()
    return story


def test_it_is_released_with_the_newest_checkpoint_and_its_cooldown_with_the_same(
    story: Story,
) -> None:
    story.save(200)
    story.look(state="RUNNING")
    assert started(story) == []
    story.save(300)
    finish(story, "tiny")
    assert started(story) == ["tiny-finetune"]
    story.submit("tiny-finetune")
    story.save(60, name="tiny-finetune")
    story.look(name="tiny-finetune", state="RUNNING")
    assert started(story) == ["tiny-finetune-cd60"]

    begun = str(story.folder(300))
    for name in ("tiny-finetune", "tiny-finetune-cd60"):
        spec = Session.load(story.path).jobs[name].spec
        assert argument(spec, "--pretrained-checkpoint") == begun
        assert spec.backend.model_dump()["args"]["pretrained_checkpoint"] == begun
    assert argument(story.job("tiny-finetune-cd60").spec, "--lr-wsd-decay-iters") == "20"


def test_a_release_that_is_killed_at_any_step_fills_the_training_once(
    story: Story, tmp_path: Path, killed_at: KilledAt
) -> None:
    story.save(300)
    finish(story, "tiny")
    for again in releases(story, tmp_path, killed_at):
        finetune = again.job("tiny-finetune")
        assert finetune.launched
        assert argument(finetune.spec, "--pretrained-checkpoint") == str(story.folder(300))


def test_when_the_first_training_fails_all_of_it_is_cancelled_and_run_again_with_it(
    story: Story,
) -> None:
    story.look(state="FAILED", exit_code=3)
    story.look()
    story.look()
    reasons = [story.job(name).reason for name in ("tiny-finetune", "tiny-finetune-cd60")]
    assert reasons[0] == "cancelled: tiny failed (FAILED (exit code 3))"
    assert str(reasons[1]).startswith("never started: tiny-finetune failed without a complete")
    assert ask(story, "tiny") == ["ann: retries tiny, tiny-finetune, tiny-finetune-cd60"]
    assert {job.verdict for job in story.session.jobs.values()} == {None}


def test_a_cooldown_can_branch_from_the_second_training_later(story: Story) -> None:
    story.save(300)
    finish(story, "tiny")
    started(story)
    story.submit("tiny-finetune")
    story.save(120, name="tiny-finetune")
    finish(story, "tiny-finetune")
    assert story.job("tiny-finetune").verdict is Verdict.FINISHED

    overrides = ["cooldowns=[{decay: {iterations: 30}}]"]
    again = compose_from(story.session, Origin("s1", "tiny-finetune", 120), overrides)
    (cooldown,) = plan_study(again, OUT).jobs
    assert argument(cooldown, "--lr") == "0.002"
    assert argument(cooldown, "--pretrained-checkpoint") == str(story.folder(300))
    with pytest.raises(BadInput, match="no complete checkpoint"):
        compose_from(story.session, Origin("s1", "tiny-finetune", 60), overrides)
