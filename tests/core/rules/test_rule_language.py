"""The language of rules: what is wrong is said when the configuration is read, in one message."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoexp.config.compose import compose
from autoexp.config.experiment import Experiment
from autoexp.dotted import setting
from autoexp.errors import BadInput
from autoexp.monitor.decide import RuleBook, decide
from autoexp.monitor.template_values import values_of
from autoexp.rules.event_values import typed
from autoexp.rules.events import (
    BudgetPassed,
    CheckpointComplete,
    Event,
    LogMatched,
    Published,
    StateChanged,
    TrunksFinished,
)
from autoexp.session.session import Session
from autoexp.templates import fill, names_in
from tests.builders import create

LOG = [{"log": {}}]


def rules(**kinds: Any) -> Experiment:
    return compose("demo", (), setting({f"monitoring.{k}": v for k, v in kinds.items()})).experiment


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"log_events": {"r": {"patern": "x"}}}, "did you mean `pattern`"),
        ({"log_events": {"r": {}}}, "exactly one of `pattern` and `substring`"),
        ({"log_events": {"r": {"pattern": r"(a)\1"}}}, "references to groups"),
        ({"log_events": {"r": {"pattern": "("}}}, "is not a regular expression"),
        ({"log_events": {"r": {"substring": "xy", "actions": [{"restrat": {}}]}}}, "`restart`"),
        ({"log_events": {"r": {"substring": "xy", "actions": [{}]}}}, "exactly one action"),
        (
            {"log_events": {"r": {"substring": "xy", "actions": [{"log": {}, "fail": {}}]}}},
            "exactly one action",
        ),
        (
            {"log_events": {"r": {"substring": "xy", "actions": [{"log": {"message": "{rnk}"}}]}}},
            "nothing here is called `{rnk}`",
        ),
        (
            {
                "log_events": {
                    "r": {"pattern": "(?P<rank>.)", "actions": [{"log": {"message": "{rnk}"}}]}
                }
            },
            "did you mean `{rank}`",
        ),
        (
            {"log_events": {"r": {"substring": "xy", "actions": [{"log": {"message": "{"}}]}}},
            "a single `{`",
        ),
        (
            {
                "log_events": {
                    "r": {
                        "substring": "xy",
                        "actions": [{"log": {}, "when": [{"file_exists": "{checkpoint_path}"}]}],
                    }
                }
            },
            "nothing here is called `{checkpoint_path}`",
        ),
        ({"state_events": {"r": {"verdict": "failed", "actions": [{"restart": {}}]}}}, "is final"),
        ({"state_events": {"r": {"actions": LOG}}}, "exactly one of `to` and `verdict`"),
        ({"checkpoint_events": {"r": {"at": [1], "every": 2}}}, "give one of"),
        ({"checkpoint_events": {"r": {"shares": [0.5], "actions": LOG}}}, "cooldowns alone"),
        ({"metric_events": {"r": {"actions": LOG}}}, "exactly one of `not_a_number`"),
        ({"metric_events": {"r": {"spike": {"times": 1}}}}, "greater than 1"),
        ({"session_events": {"r": {"trunks_finished": True, "actions": [{"fail": {}}]}}}, "no job"),
        (
            {"log_events": {"r": {"substring": "xy"}}, "metric_events": {"r": {"spike": {}}}},
            "two rules are called `r`",
        ),
        ({"log_events": {"a rule": {"substring": "xy"}}}, "should match pattern"),
        ({"inactivity_events": {"r": {"after": "soon"}}}, "not a duration"),
        (
            {"state_events": {"r": {"to": ["FAILED"], "actions": [{"launch": {"name": "x"}}]}}},
            "exactly one of `cooldown`, `command` and `config`",
        ),
    ],
)
def test_a_mistake_is_named_when_the_configuration_is_read(
    kinds: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput) as error:
        rules(**kinds)
    assert message in str(error.value)
    kind, named = next(iter(kinds.items()))
    place = f"monitoring.{kind}.{next(iter(named))}"
    assert place in str(error.value) or "two rules" in message


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ({"launch": {"config": "demo", "name": "x", "set": {"slurm.nodes": 2}}}, "slurm.nodes"),
        ({"launch": {"config": "nowhere", "name": "x"}}, "no such configuration"),
        ({"launch": {"config": "demo", "name": "x y"}}, "project.name"),
        ({"launch": {"config": "demo", "name": "x", "choose": {"slurm": "mars"}}}, "mars"),
        ({"restart": {"backend": {"args": {"lrr": 1}}}}, "backend.args.lrr"),
    ],
)
def test_what_a_rule_could_not_launch_or_restart_is_refused_with_the_session(
    tmp_path: Path, action: dict[str, Any], message: str
) -> None:
    changes = {"monitoring.log_events": {"r": {"substring": "xy", "actions": [action]}}}
    with pytest.raises(BadInput, match="rule r: ") as error:
        create(compose("demo", (), setting(changes)), tmp_path)
    assert message in str(error.value)


def test_a_preset_that_extends_another_keeps_its_rules_changes_one_and_switches_one_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = tmp_path / "monitoring"
    group.mkdir()
    (group / "mine.yaml").write_text(
        "defaults: [production, _self_]\n"
        "log_events:\n"
        "  communication: null\n"
        "  cuda_error: {severity: warning}\n"
        "  mine: {substring: no heartbeat}\n"
    )
    monkeypatch.setenv("AUTOEXP_CONFIGS", str(tmp_path))
    old = compose("demo", ["monitoring=production"]).experiment.monitoring.log_events
    new = compose("demo", ["monitoring=mine"]).experiment.monitoring.log_events
    assert set(new) == {*old, "mine"}
    changed, before = new["cuda_error"], old["cuda_error"]
    assert changed is not None and before is not None and new["communication"] is None
    assert (changed.severity, changed.actions) == ("warning", before.actions)


def test_a_session_reads_its_rules_back_as_they_were(tmp_path: Path) -> None:
    composed = compose("demo", ["monitoring=megatron_cooldown_multi"])
    path = create(composed, tmp_path)
    assert Session.load(path).experiment == composed.experiment


# Which event fires which rule


def state(old: str, new: str, job: str = "demo") -> StateChanged:
    return StateChanged(job=job, attempt=1, position=1, old=old, new=new)


def checkpoint(iteration: int, job: str = "demo", *, last: bool = False) -> CheckpointComplete:
    return CheckpointComplete(job=job, iteration=iteration, path="/c", last=last)


@pytest.mark.parametrize(
    ("kind", "rule", "fires", "misses"),
    [
        ("state_events", {"to": ["FAILED"]}, state("RUNNING", "FAILED"), state("FAILED", "X")),
        (
            "state_events",
            {"to": ["RUNNING"], "was": ["SUSPENDED"]},
            state("SUSPENDED", "RUNNING"),
            state("PENDING", "RUNNING"),
        ),
        (
            "state_events",
            {"to": ["FAILED"], "jobs": ["cooldown"]},
            state("RUNNING", "FAILED", "demo-cd1000"),
            state("RUNNING", "FAILED"),
        ),
        ("checkpoint_events", {}, checkpoint(200), checkpoint(200, "demo-cd1000")),
        ("checkpoint_events", {"at": [200, 400]}, checkpoint(400), checkpoint(600)),
        ("checkpoint_events", {"every": 400}, checkpoint(800), checkpoint(600)),
        ("checkpoint_events", {"range": [400, 600]}, checkpoint(600), checkpoint(800)),
        ("checkpoint_events", {"last": True}, checkpoint(2000, last=True), checkpoint(2000)),
        ("session_events", {"trunks_finished": True}, TrunksFinished(trunks=1), checkpoint(1)),
        (
            "session_events",
            {"gpu_hours_above": 5},
            BudgetPassed(rule="r", gpu_hours=6),
            BudgetPassed(rule="other", gpu_hours=6),
        ),
        (
            "session_events",
            {"published": "x"},
            Published(job="demo", name="x", action="a"),
            Published(job="demo", name="y", action="a"),
        ),
    ],
)
def test_a_rule_fires_on_its_event_and_on_no_other(
    tmp_path: Path, kind: str, rule: dict[str, Any], fires: Event, misses: Event
) -> None:
    composed = compose("demo", (), setting({f"monitoring.{kind}": {"r": {**rule, "actions": LOG}}}))
    session = Session.load(create(composed, tmp_path))
    book = RuleBook(composed.experiment.monitoring, [j.spec for j in session.jobs.values()])
    (action,) = decide(fires, [rule for rule in book.of(fires) if rule.name == "r"])
    assert (action.rule, action.event) == ("r", fires)
    assert "r" not in {rule.name for rule in book.of(misses)}


# Templates


@given(st.text(), st.text())
def test_a_value_goes_in_as_it_is_and_is_not_read_again(before: str, value: str) -> None:
    escaped = before.replace("{", "{{").replace("}", "}}")
    assert fill(f"{escaped}{{x}}{{x}}", {"x": value, value: "wrong"}) == before + value + value


def test_the_names_of_a_text_are_found_and_doubled_braces_are_braces() -> None:
    assert list(names_in("{a} {{b}} {c.d}")) == ["a", "c.d"]
    assert fill("{{{a}}}", {"a": "x"}) == "{x}"


@pytest.mark.parametrize(
    ("text", "value"), [("7", 7), ("07", "07"), ("2.5", 2.5), ("2.50", "2.50"), ("1e3", "1e3")]
)
def test_a_captured_value_is_a_number_only_where_that_loses_nothing(
    text: str, value: str | int | float
) -> None:
    assert typed(text) == value
    assert str(typed(text)) == text


def test_a_value_of_a_log_cannot_take_the_place_of_another_name(session_path: Path) -> None:
    event = LogMatched(
        job="tiny",
        attempt=1,
        rule="r",
        generation=0,
        offset=0,
        line="x",
        values={"rank": "{job.name}; rm -rf /"},
    )
    values = values_of(event, "r", Session.load(session_path))
    assert fill("{rank} of {job.name}", values) == "{job.name}; rm -rf / of tiny"
