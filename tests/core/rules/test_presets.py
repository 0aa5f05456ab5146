"""Every rule of every preset: a recorded line or state that fires it, a near miss that does not."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from autoexp.config.compose import compose
from autoexp.config.experiment import Experiment
from autoexp.jobs.record import Attempt, JobRecord
from autoexp.jobs.spec import JobSpec
from autoexp.logs import matcher
from autoexp.logs.tail import LookBudget
from autoexp.model import now
from autoexp.monitor.decide import RuleBook, decide
from autoexp.monitor.job_watch import JobWatch
from autoexp.planning.plan import make_plan
from autoexp.planning.rule_checks import validate_rules
from autoexp.rules.actions import ConditionalAction, Fail
from autoexp.rules.condition_checks import Answer, check_all
from autoexp.rules.events import (
    AttemptJudged,
    CheckpointComplete,
    Event,
    StateChanged,
    TrunksFinished,
)
from autoexp.rules.metrics import Before
from autoexp.rules.rules import InactivityRule, LogRule, MetricRule, RuleBase
from autoexp.rules.ruleset import named
from autoexp.states import Kind, Verdict
from tests.core.rules.facts import facts
from tests.sources import ROOT

DATA = ROOT / "tests" / "data" / "rules"
PRESETS = sorted(path.stem for path in (ROOT / "configs" / "monitoring").glob("*.yaml"))
SIZE = (
    "backend.args.train_iters=200",
    "backend.args.save_interval=50",
    "cooldowns=[{at: [100], name: own, decay: {iterations: 50}}]",
)


@functools.cache
def experiment_with(preset: str) -> Experiment:
    return compose("demo", [f"monitoring={preset}", *SIZE]).experiment


def rules_of(preset: str) -> dict[str, RuleBase]:
    return dict(named(experiment_with(preset).monitoring))


@functools.cache
def jobs_of(preset: str) -> Sequence[JobSpec]:
    return make_plan(experiment_with(preset), Path("/out")).jobs


@functools.cache
def book_of(preset: str, engine: type) -> RuleBook:
    """The rules of a preset, whose patterns an engine compiles once for all jobs."""
    assert engine is matcher.best_engine()
    return RuleBook(experiment_with(preset).monitoring, jobs_of(preset))


RULES = [(preset, name) for preset in PRESETS for name in rules_of(preset)]


def test_production_restarts_no_job_that_died_of_an_exception_before_its_first_iteration(
    tmp_path: Path,
) -> None:
    (restart,) = rules_of("production")["crash"].actions
    once = facts(tmp_path, attempts=1, attempts_without_progress=0)
    assert check_all(restart.when, once).answer is Answer.HOLDS
    at_start = once._replace(start_exception=lambda: "ImportError: torch")
    assert check_all(restart.when, at_start).answer is Answer.NEVER


def gives_up(preset: str, rule: str) -> list[ConditionalAction]:
    """The actions of a rule that fail a job after attempts without progress."""
    actions = [each for each in rules_of(preset)[rule].actions if isinstance(each.action, Fail)]
    return [each for each in actions if "max_attempts_without_progress" in str(each.when)]


@pytest.mark.parametrize(("preset", "rule"), [each for each in RULES if gives_up(*each)])
def test_a_rule_that_gives_up_says_its_cause_before_the_sessions_own_limit_ends_the_job(
    preset: str, rule: str, tmp_path: Path
) -> None:
    most = experiment_with(preset).monitoring.max_attempts_without_progress
    last = facts(tmp_path, attempts=most, attempts_without_progress=most - 1)
    answers = [check_all(each.when, last).answer for each in gives_up(preset, rule)]
    assert Answer.HOLDS in answers


@pytest.mark.parametrize("rule", ["communication", "nccl_timeout", "nccl_error", "process_group"])
def test_what_a_launcher_mends_within_the_attempt_is_left_to_it(rule: str, tmp_path: Path) -> None:
    (restart,) = rules_of("production")[rule].actions
    once = facts(tmp_path, attempts=1, attempts_without_progress=0)
    answers = [
        check_all(restart.when, once._replace(values={"job.launcher_restarts": times})).answer
        for times in ("0", "3")
    ]
    assert answers == [Answer.HOLDS, Answer.NEVER]


@pytest.mark.parametrize(
    ("container", "ran_s", "without", "answer"),
    [
        ("apptainer", "3", 2, Answer.HOLDS),
        ("none", "3", 0, Answer.NEVER),
        ("apptainer", "400", 0, Answer.NEVER),
        ("apptainer", "", 0, Answer.NEVER),
        ("apptainer", "3", 3, Answer.NEVER),
    ],
)
def test_exit_code_255_in_the_first_minute_of_a_container_is_tried_again_with_a_bound(
    container: str, ran_s: str, without: int, answer: Answer, tmp_path: Path
) -> None:
    (restart,) = rules_of("container")["container_exit"].actions
    known = {"job.container": container, "job.ran_s": ran_s}
    seen = facts(tmp_path, values=known, attempts=1, attempts_without_progress=without)
    assert check_all(restart.when, seen).answer is answer


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_can_do_what_it_says(preset: str) -> None:
    experiment = experiment_with(preset)
    validate_rules(experiment)
    assert make_plan(experiment, Path("/out")).jobs


@pytest.mark.parametrize(("preset", "rule"), RULES)
def test_a_rule_fires_on_what_was_recorded_and_not_on_a_near_miss(
    preset: str, rule: str, engine: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr("autoexp.monitor.job_watch.time.monotonic", lambda: next(clock))
    recorded = DATA / f"{rule}.txt"
    assert recorded.exists(), f"record a line that fires {rule} and one that does not: {recorded}"
    fires, _, misses = recorded.read_text().partition("# does not fire\n")
    fires = fires.removeprefix("# fires\n")
    assert fires.strip() and misses.strip()
    assert fired(preset, rule, fires, tmp_path / "fires")
    assert not fired(preset, rule, misses, tmp_path / "misses")


@pytest.mark.parametrize(
    "line",
    [
        "Detected 1 oom-kill event(s) in StepId=5189.0 cgroup. Some of your processes",
        "Detected 1 oom-kill event(s) in step 5189.0 cgroup. Some of your processes",
        "Detected 3 oom_kill events in StepId=5189.0. Some of the step tasks have been OOM Killed.",
        "Detected 1 oom_kill event in StepId=5189.0. Some of the step tasks have been OOM Killed.",
    ],
)
def test_every_release_of_slurm_says_in_its_own_words_that_memory_ran_out(
    line: str, tmp_path: Path
) -> None:
    rule = rules_of("production")["host_out_of_memory"]
    assert isinstance(rule, LogRule) and rule.pattern is not None
    found = re.search(rule.pattern, f"slurmstepd: error: {line}")
    assert found is not None and found["step"] == "5189.0"
    assert fired("production", "host_out_of_memory", line, tmp_path / "job.log")


def test_no_recorded_line_is_of_a_rule_that_is_gone() -> None:
    assert {path.stem for path in DATA.iterdir()} == {rule for _, rule in RULES}


@pytest.mark.parametrize("preset", ["megatron_cooldown_single", "megatron_cooldown_multi"])
def test_a_cooldown_preset_keeps_every_rule_of_production(preset: str) -> None:
    extended, own = rules_of("production"), rules_of(preset)
    assert {name: own[name] for name in extended} == extended


def test_the_single_preset_implies_its_cooldown_from_the_monitoring_alone() -> None:
    words = ["project=demo", "backend=demo", "monitoring=megatron_cooldown_single"]
    size = ["backend.args.train_iters=200", "backend.args.save_interval=100"]
    plan = make_plan(compose(None, [*words, *size]).experiment, Path("/out"))
    (cooldown,) = plan.cooldowns
    assert cooldown.branch is not None
    assert (cooldown.branch.iteration, cooldown.branch.target) == (100, 200)


def test_the_multi_preset_has_two_cooldowns_and_an_evaluation_alone() -> None:
    composed = compose(
        None, ["monitoring=megatron_cooldown_multi", "backend.args.train_iters=1000"]
    )
    plan = make_plan(composed.experiment, Path("/out"))
    branches = [(job.branch.iteration, job.branch.shape) for job in plan.cooldowns if job.branch]
    assert branches == [(400, "minus_sqrt"), (800, "linear")]
    last = CheckpointComplete(job="demo", iteration=1000, path="/c", last=True)
    book = RuleBook(composed.experiment.monitoring, plan.jobs)
    assert [action.action.kind for action in decide(last, book.of(last))] == ["launch"]


def fired(preset: str, rule: str, recorded: str, log: Path) -> bool:
    """Whether the rule acts on the recorded lines or events, or starts a cooldown."""
    experiment = experiment_with(preset)
    jobs = jobs_of(preset)
    book = book_of(preset, matcher.best_engine())
    on = dict(named(experiment.monitoring))[rule]
    kind = Kind.COOLDOWN if on.jobs and "train" not in on.jobs else Kind.TRAIN
    spec = next(job for job in jobs if job.kind is kind)
    attempt = Attempt(number=1, key="k", name="k", log=str(log), state="RUNNING", intended_at=now())
    attempt.before = Before(100, (2.40, 2.41, 2.39, 2.42, 2.38, 2.40), 1e-2)
    job, watch = JobRecord(spec=spec, attempts=[attempt], launched=True), JobWatch()
    seen: list[Event]
    if isinstance(on, LogRule | MetricRule):
        log.write_text(recorded)
        budget = LookBudget.of_one_log()
        seen = list(watch.read_log(job, attempt, book.watched(spec), budget, final=True))
    elif isinstance(on, InactivityRule):
        seconds = int(recorded.removeprefix("quiet "))
        watched = book.watched(spec)
        looks = (watch.count_quiet_time(job, attempt, watched) for _ in range(seconds + 1))
        seen = [event for look in looks for event in look]
    else:
        seen = [played(line) for line in recorded.splitlines()]
    starts = {f"start-{job.name}" for job in jobs if is_from(rule, job)}
    return any(r.then and r.name in {rule, *starts} for event in seen for r in book.of(event))


def is_from(rule: str, job: JobSpec) -> bool:
    """Whether a cooldown was planned by a checkpoint rule of the presets."""
    suffix = rule.removeprefix("cooldown").replace("_", "-")
    planned = job.branch is not None and not job.name.endswith("-own")
    return planned and rule.startswith("cooldown") and job.name.endswith(suffix)


def played(line: str) -> Event:
    """An event as it is written down in the data."""
    if match := re.fullmatch(r"(\w+) -> (\w+)(?: \(exit code (\d+)\))?", line):
        code = None if match[3] is None else int(match[3])
        old, new = match[1], match[2]
        return StateChanged(job="demo", attempt=1, position=1, old=old, new=new, exit_code=code)
    if match := re.fullmatch(r"(last )?checkpoint (\d+) of (\w+)", line):
        job = "demo" if match[3] == "train" else "demo-cd100-own"
        iteration, last = int(match[2]), match[1] is not None
        return CheckpointComplete(job=job, iteration=iteration, path="/c", last=last)
    if match := re.fullmatch(r"verdict (\w+)", line):
        verdict = Verdict(match[1])
        return AttemptJudged(
            job="demo", attempt=1, verdict=verdict, state="COMPLETED", iteration=1, reason="r"
        )
    assert line == "trunks finished", line
    return TrunksFinished(trunks=1)
