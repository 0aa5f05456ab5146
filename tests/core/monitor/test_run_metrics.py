"""What a run is worth: validation losses, gradient norms, throughput, and where it starts."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from autoexp.backends.command.backend import CommandBackend
from autoexp.backends.huggingface.backend import HuggingFaceBackend
from autoexp.backends.megatron import formats
from autoexp.backends.protocol import Progress, Validation
from autoexp.backends.torchtitan.backend import TorchtitanBackend
from autoexp.config.compose import compose
from autoexp.demo import checkpoints, trainer
from autoexp.demo import model as language
from autoexp.dotted import setting
from autoexp.operations import arrays
from autoexp.reports import results
from autoexp.reports.status import status_of
from autoexp.rules.events import MetricAlarm
from autoexp.rules.metrics import Before, Expectation, Logged, alarm
from autoexp.rules.rules import MetricRule
from autoexp.session.session import Session
from autoexp.storage import metrics_file
from tests.builders import TINY, create
from tests.core.backends.conformance.command import COMMON
from tests.core.story import Story, StoryOf, of, say

MEGATRON = (
    b" [2026-08-01 10:00:00] iteration      100/    2000 | consumed samples: 25600 | elapsed time "
    b"per iteration (ms): 512.1 | throughput per GPU (TFLOP/s/GPU): 401.5 | learning rate: "
    b"1.0E-02 | global batch size: 256 | lm loss: 2.5E+00 | loss scale: 1.0 | grad norm: 0.731 | "
    b"number of skipped iterations: 0 | number of nan iterations: 0 |"
)
TITAN = (
    b"\x1b[31mstep: 10  \x1b[32mloss:  7.12345  \x1b[38;5;208mgrad_norm:  1.2500  \x1b[33mmemory: "
    b" 1.00GiB(2.00%)  \x1b[34mtps: 12,345  \x1b[36mtflops: 98.70  \x1b[35mmfu: 31.20%\x1b[39m"
)
TITAN_VALID = b"validate step: 10  loss:  6.5000  memory:  1.00GiB(2.00%)  tps: 9,876"


SAVES = {"name": "{iteration}", "must_exist": ["weights"]}


def titan() -> TorchtitanBackend:
    args = {"training": {"steps": 100}, "optimizer": {"lr": 1e-3}, "checkpoint": {"interval": 10}}
    return TorchtitanBackend.model_validate({"args": args})


def hugging(tmp_path: Path) -> HuggingFaceBackend:
    args = {"max_steps": 100, "save_steps": 10, "learning_rate": 1e-3}
    return HuggingFaceBackend.model_validate({"script": str(tmp_path / "x.py"), "args": args})


# Reading


def test_megatrons_line_says_norm_and_throughput() -> None:
    found = formats.progress(MEGATRON)
    assert isinstance(found, Progress)
    assert (found.loss, found.grad_norm, found.tflops) == (2.5, 0.731, 401.5)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b" validation loss at iteration 500 | lm loss value: 2.1E+00 | lm loss PPL: 8.1E+00 | ",
         Validation(500, 2.1)),
        (b" validation-code loss at iteration 500 | lm loss value: 1.5E+00 | lm loss PPL: 4.4 | ",
         Validation(500, 1.5, "code")),
        (b" validation loss at iteration 500 on test set | mtp value: 3.0 | lm loss value: 2.2 | ",
         Validation(500, 2.2, "test")),
        (b" validation loss at iteration 500 | lm loss value: nan | lm loss PPL: nan | ", None),
        (b" a loss at iteration 500 | of something", None),
    ],
)  # fmt: skip
def test_megatrons_validation_is_read_for_each_set(
    line: bytes, expected: Validation | None
) -> None:
    assert formats.validation(line) == expected
    assert formats.progress(line) is None


def test_torchtitans_lines_are_read_and_a_validation_is_no_progress() -> None:
    backend = titan()
    found = backend.progress(TITAN)
    assert isinstance(found, Progress)
    assert (found.iteration, found.grad_norm) == (10, 1.25)
    assert (found.tokens_per_s, found.tflops, found.mfu) == (12345, 98.7, 31.2)
    without = backend.progress(TITAN.partition(b"\x1b[35mmfu")[0])
    assert isinstance(without, Progress)
    assert (without.tflops, without.mfu) == (98.7, None)
    assert backend.validation(TITAN_VALID) == Validation(10, 6.5)
    assert backend.progress(TITAN_VALID) is None


def test_the_trainers_history_has_validations_and_norms(tmp_path: Path) -> None:
    backend, folder = hugging(tmp_path), tmp_path / "save" / "checkpoint-20"
    folder.mkdir(parents=True)
    history = [
        {"step": 10, "loss": 2.0, "grad_norm": 0.5, "learning_rate": 1e-3},
        {"step": 10, "eval_loss": 1.9, "eval_runtime": 3},
        {"step": 20, "eval_code_loss": 1.5},
        {"step": 20, "eval_loss": "nan"},
        {"step": "x", "eval_loss": 1.0},
    ]
    state = {"global_step": 20, "max_steps": 100, "log_history": history}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    scan = backend.checkpoints(tmp_path / "save")
    assert scan.validations == (Validation(10, 1.9), Validation(20, 1.5, "code"))
    assert scan.progress[0].grad_norm == 0.5


def test_a_pattern_of_ones_own_reads_them(tmp_path: Path) -> None:
    content = {
        **COMMON,
        "saves": SAVES,
        "log_line": r"it (?P<iteration>\d+) loss (?P<loss>\S+) norm (?P<grad_norm>\S+)",
        "validation_line": r"valid (?P<set>\w+) at (?P<iteration>\d+): (?P<loss>\S+)",
    }
    backend = CommandBackend.model_validate(content)
    found = backend.progress(b"it 5 loss 2.0 norm 0.5")
    assert isinstance(found, Progress) and found.grad_norm == 0.5
    assert backend.validation(b"valid web at 5: 1.25") == Validation(5, 1.25, "web")
    assert backend.validation(b"valid web at 5: nothing") is None
    assert backend.validation(b"it 5 loss 2.0") is None


@pytest.mark.parametrize(
    ("pattern", "why"),
    [(r"(?P<loss>x)", "no group `(?P<iteration>"), (r"(?P<iteration>x)", "no group `(?P<loss>")],
)
def test_a_pattern_that_lacks_a_group_is_refused(pattern: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        CommandBackend.model_validate({**COMMON, "saves": SAVES, "validation_line": pattern})


# In a session


def test_what_a_run_logs_stands_in_status_export_and_compare(story_of: StoryOf) -> None:
    story = story_of()
    line = MEGATRON.decode().replace("/    2000", "/     300")
    say(story, line)
    say(story, " validation loss at iteration 100 | lm loss value: 2.1E+00 | lm loss PPL: 8.1 | ")
    say(story, " validation-code loss at iteration 100 | lm loss value: 1.5E+00 | lm loss PPL: 4 |")
    story.look()
    session = Session.load(story.path)
    (trunk, *_) = status_of(session).jobs
    assert trunk.validation_losses == {"validation": 2.1, "code": 1.5}
    assert (trunk.grad_norm, trunk.tflops) == (0.731, 401.5)
    row = results.rows([session])[0]
    assert (row["validation_loss"], row["validation.code"], row["grad_norm"]) == (2.1, 1.5, 0.731)
    compared = results.compared([session])[0]
    assert (compared["validation_loss"], compared["tflops"]) == (2.1, 401.5)
    assert "mfu" not in compared  # Megatron prints none
    rows = metrics_file.read_validations(story.path, "tiny")
    assert [(row.iteration, row.loss, row.name) for row in rows] == [
        (100, 1.5, "code"),
        (100, 2.1, "validation"),
    ]
    assert [row.loss for row in metrics_file.read(story.path, "tiny")] == [2.5]


def test_rules_may_name_a_validation_loss_and_a_norm(story_of: StoryOf) -> None:
    rules = {
        "worse": {"loss_above": {"value": 2.0, "of": "validation_loss", "logged": 1}},
        "norms": {"loss_above": {"value": 0.5, "of": "grad_norm", "logged": 1}},
        "losses": {"loss_above": {"value": 9.0, "logged": 1}},
    }
    story = story_of(metric_events=rules)
    say(story, MEGATRON.decode())
    assert [event.rule for event in of(story.look(), MetricAlarm)] == ["norms"]
    say(story, " validation loss at iteration 100 | lm loss value: 2.1E+00 | lm loss PPL: 8.1 | ")
    (event,) = of(story.look(), MetricAlarm)
    assert (event.rule, event.value) == ("worse", 2.1)


@pytest.mark.parametrize("of", ["tokens_per_s", "tflops", "mfu"])
def test_a_drop_of_the_printed_throughput_is_noticed(of: str) -> None:
    rule = MetricRule.model_validate({"throughput_below": {"of": of, "over": 5, "logged": 2}})
    speeds = [100.0] * 5 + [40.0] * 2
    tail = [Logged(n, 2.0, 1e-2, 1.0)._replace(**{of: x}) for n, x in enumerate(speeds)]
    nothing = Expectation(True, lambda _: None, None)
    assert alarm(rule, tail, nothing) is not None
    assert alarm(rule, tail[:5] * 2, nothing) is None


# Continuity

CONTINUITY = MetricRule.model_validate({"continuity": {}})
BEFORE = Before(1000, (1.95, 1.98, 1.92, 1.96, 1.94, 1.95), 1e-2)


def started(*losses: float, before: Before | None = BEFORE, rate: float = 1e-2) -> Any:
    tail = [Logged(1010 + 10 * n, loss, rate, 1.0) for n, loss in enumerate(losses)]
    return alarm(CONTINUITY, tail, Expectation(True, lambda _: None, None, before, 1010))


def test_a_start_far_above_the_losses_before_it_is_an_alarm_that_says_both() -> None:
    found = started(2.61, 2.5, 2.45)
    assert "starts at 2.61, and before iteration 1000 the loss was 1.95 ± 0.03" in found.message


def test_a_start_is_no_alarm_where_it_is_usual_better_or_cannot_be_compared() -> None:
    assert started(1.97, 1.93, 1.95) is None
    assert started(1.2, 1.2, 1.2) is None
    assert started(2.61, 1.97, 1.96) is None  # one of them is noise
    assert started(2.61, 2.5) is None
    assert started(2.61, 2.5, 2.45, 2.4) is None  # it was said, or not, at the third
    assert started(2.61, 2.5, 2.45, rate=2e-2) is None
    assert started(2.61, 2.5, 2.45, before=None) is None
    assert started(2.61, 2.5, 2.45, before=Before(1000, (1.95, 1.96), 1e-2)) is None


def branched(tmp_path: Path, *, submit: bool = True, **cooldown: Any) -> Story:
    rules = {"monitoring.metric_events": {"start": {"continuity": {"over": 5}}}}
    settings = {"cooldowns": [{"at": [100], "decay": {"iterations": 50}, **cooldown}], **rules}
    composed = compose("demo", TINY[:-1], setting(settings))
    story = Story(create(composed, tmp_path / "sessions", session_id="s1"))
    story.submit()
    story.look(state="RUNNING")
    for iteration in range(10, 101, 10):
        story.log(iteration)
    story.look()
    story.session.change_job(story.job("tiny-cd100"), launched=True)
    if submit:
        story.submit("tiny-cd100")
    return story


@pytest.mark.parametrize(
    ("changes", "alarms"), [({}, 1), ({"backend": {"args": {"mix": "code"}}}, 0)]
)
def test_a_branch_is_compared_with_its_parent_unless_it_changes_its_data(
    tmp_path: Path, changes: dict[str, Any], alarms: int
) -> None:
    story = branched(tmp_path, **changes)
    attempt = story.job("tiny-cd100").attempt
    assert attempt is not None and attempt.before is not None
    assert attempt.before.losses[-1] == pytest.approx(2.9)
    with Path(attempt.log).open("a") as file:
        for iteration in (110, 120, 130):
            file.write(
                f" iteration {iteration}/ 150 | learning rate: 9.0E-03 | lm loss: 3.4E+00 |\n"
            )
    found = of(story.look(name="tiny-cd100", state="RUNNING"), MetricAlarm)
    assert len(found) == alarms


def test_a_branch_in_an_array_knows_what_was_before_it_too(tmp_path: Path) -> None:
    story = branched(tmp_path, submit=False)
    array = arrays.begin(story.session, ["tiny-cd100"])
    assert array is not None
    (task,) = array.tasks
    assert task.attempt.before is not None and task.attempt.before.iteration == 100


def test_no_branch_of_the_demo_is_a_false_alarm_in_twenty_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each seed trains a trunk and branches twice: as it should, and with its weights lost."""
    spoken = language.draw_language(1)
    monkeypatch.setattr(language, "draw_language", lambda _seed, _kind="web": spoken)
    monkeypatch.setattr(checkpoints, "sync", lambda _: None)
    size = ("--hidden-size=8", "--embedding-size=4", "--seq-length=2", "--global-batch-size=32")
    wrong = 0
    for seed in range(20):
        save = tmp_path / str(seed)
        trunk = run(*size, f"--seed={seed}", f"--save={save}", "--train-iters=300")
        losses = tuple(loss for _, loss, _ in trunk[-20:])
        before = Before(300, losses, trunk[-1][2])
        decay = ("--lr-decay-style=WSD", "--lr-wsd-decay-iters=40", "--train-iters=340")
        decay = (*decay, "--override-opt_param-scheduler", f"--seed={seed}", *size)
        branch = run(*decay, f"--save={save}", f"--load={save}")
        lost = run(*decay, f"--save={tmp_path / 'lost'}")
        assert alarmed(branch, before) is False, f"seed {seed}"
        wrong += alarmed(lost, before)
    assert wrong == 20


def run(*options: str) -> list[tuple[int, float, float]]:
    """Iteration, loss and rate of each line that the demo's trainer logs."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert trainer.main(["--lr-warmup-iters=20", *options]) == 0
    found = [formats.progress(line.encode()) for line in out.getvalue().splitlines()]
    return [
        (x.iteration, x.loss or 0.0, x.learning_rate or 0.0)
        for x in found
        if isinstance(x, Progress)
    ]


def alarmed(logged: list[tuple[int, float, float]], before: Before) -> bool:
    tail = [Logged(iteration, loss, None, None) for iteration, loss, _ in logged[:3]]
    known = Expectation(True, lambda _: None, None, before, tail[0].iteration)
    return alarm(CONTINUITY, tail, known) is not None
