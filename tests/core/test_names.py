"""Names at their bounds: refused when a session is planned, or every file of it can be written."""

import string
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from autoexp.config.compose import Composed, compose
from autoexp.config.experiment import Experiment
from autoexp.errors import BadInput
from autoexp.monitor.decide import Asked, Rule, RuleBook, decide, implied
from autoexp.names import LONGEST_ID, LONGEST_KEY, check_id
from autoexp.planning.study import plan_study
from autoexp.rules.actions import Log
from autoexp.rules.events import (
    CheckpointComplete,
    Event,
    JobReady,
    LoggingStopped,
    LogMatched,
    MetricAlarm,
    Published,
    StateChanged,
)
from autoexp.rules.rules import OnReady
from autoexp.schedulers.slurm.parsing import SQUEUE_FORMAT
from autoexp.session.meta import new_id
from autoexp.session.session import Session
from autoexp.storage import atomic
from tests.builders import create

LETTERS = string.ascii_letters + string.digits


def name_of(longest: int, alphabet: str = f"{LETTERS}._-é") -> st.SearchStrategy[str]:
    """At the bound and around it, and short ones."""
    sizes = st.sampled_from([1, 2, longest // 2, longest - 1, longest, longest + 1])
    return sizes.flatmap(lambda n: st.text(st.sampled_from(alphabet), min_size=n, max_size=n))


def plain(longest: int) -> st.SearchStrategy[str]:
    """Mostly ones that are accepted by themselves."""
    sizes = st.sampled_from([*(1, longest // 2, longest - 1, *[longest] * 5, longest + 1)])
    return sizes.map(lambda n: ("ab1._-" * n)[:n])


def experiment(whole: Experiment, names: dict[str, str], point: int) -> Experiment:
    content = whole.model_dump()
    content["project"]["name"] = names["project"]
    content["backend"]["args"] |= {"train_iters": point, "save_interval": point}
    decay = {"iterations": 50}
    content["cooldowns"] = [{"at": [point], "decay": decay, "name": names["cooldown"]}]
    content["stages"] = {
        names["stage"]: {"command": ["x"], "each": "cooldown"},
        names["training"]: {"train": {"backend.args.seed": 2}},
    }
    content["monitoring"]["log_events"] = {names["rule"]: {"substring": "ab", "every": True}}
    return Experiment.model_validate(content)


NAMES = st.fixed_dictionaries(
    {
        "project": plain(60) | plain(60) | name_of(60),
        "cooldown": plain(40) | plain(40) | name_of(40),
        "stage": plain(20).map(lambda x: f"s{len(x) * '0'}"[: len(x)]),
        "training": plain(20).map(lambda x: f"t{len(x) * '0'}"[: len(x)]),
        "rule": plain(40).map(lambda x: x.replace(".", "-")),
    }
)


def events_of(job: str, rule: str) -> list[Event]:
    far = 10**15
    of_log: dict[str, Any] = {"job": job, "attempt": 9999, "rule": rule, "generation": 99}
    return [
        LogMatched(**of_log, offset=far, line="x", every=True),
        LogMatched(**of_log, offset=far + 1, line="x", every=True),
        MetricAlarm(job=job, attempt=9999, rule=rule, iteration=far, value=None, message="x"),
        LoggingStopped(**of_log, offset=far, quiet_s=1),
        StateChanged(job=job, attempt=9999, position=99, old="RUNNING", new="OUT_OF_MEMORY"),
        CheckpointComplete(job=job, iteration=far, path="/x", generation=99),
        JobReady(job=job, retries=99),
        Published(job=job, name="p" * 60, action="x"),
    ]


class Anything(OnReady):
    """Fires on every event."""

    def fires(self, event: Event, name: str) -> bool:
        del event, name
        return True


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    names=NAMES,
    session=st.none() | plain(LONGEST_ID) | st.sampled_from(["s", "s" * 40, "é"]),
    point=st.sampled_from([100, 10**9, 10**18, 10**40]),
)
def test_every_name_that_is_accepted_gives_files_that_can_be_written(
    composed: Composed, names: dict[str, str], session: str | None, point: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "sessions"
        try:
            changed = experiment(composed.experiment, names, point)
            path = create(composed._replace(experiment=changed), root, session_id=session)
        except (ValidationError, BadInput):
            assert not list(root.glob("*")) if root.exists() else True
            return
        held = Session.load(path)
        (implied_rule, *_) = implied(held.plan.jobs)
        longest = max(held.jobs, key=len)
        for rule in (names["rule"], implied_rule.name):
            everything = Rule(rule, Anything(job=""), (Asked(Log()), Asked(Log(message="x"))))
            for event in events_of(longest, names["rule"]):
                for action in decide(event, [everything]):
                    held.save_action(action)
        assert RuleBook(held.experiment.monitoring, held.plan.jobs)
        # Different jobs, rules, places and events are different actions.
        assert Session.load(path).actions.keys() == held.actions.keys()
        for job in held.jobs.values():
            job.launched = True
            attempt = held.begin_attempt(job)
            assert attempt is not None and len(attempt.key) <= LONGEST_KEY - len("999")
            (path / "attempts" / attempt.key).mkdir()
            held.log_progress(job, ["1,2\n"])
        for file in path.rglob("*"):
            assert len(file.name.encode()) <= atomic.LONGEST_NAME, file.name


def test_squeue_is_asked_for_the_whole_of_the_longest_key() -> None:
    assert f"Name:.{LONGEST_KEY}|" in SQUEUE_FORMAT


@pytest.mark.parametrize("project", ["p", "p" * 60, "p" * 160])
def test_an_id_that_is_made_is_an_id(project: str) -> None:
    check_id(new_id(project))


LONG = "a" * 61


@pytest.mark.parametrize(
    ("override", "bound"),
    [
        (f"project.name={LONG}", "project.name: .* at most 60 characters"),
        (
            f"cooldowns=[{{at: [200], decay: {{iterations: 5}}, name: {LONG}}}]",
            "cooldowns.0.name: .* at most 40 characters",
        ),
        (f"stages={{{LONG}: {{command: [x]}}}}", "at most 20 characters"),
        (f"monitoring.log_events.{LONG}.substring=ab", "at most 40 characters"),
    ],
)
def test_a_name_that_is_too_long_is_refused_with_the_bound(override: str, bound: str) -> None:
    with pytest.raises(BadInput, match=bound):
        compose("demo", [override])


LONGER = (
    "stages.t0000000000000000000.train={backend.args.lr: 0.02, "
    "cooldowns: [{at: [10000000000000000000000000000000000000000000000000], decay: {iterations: 5}"
    ", name: cccccccccccccccccccccccccccccccccccccccc}]}",
    "backend.args.save_interval=10000000000000000000000000000000000000000000000000",
    "backend.args.train_iters=10000000000000000000000000000000000000000000000000",
    "cooldowns=[]",
)


def test_a_family_of_names_is_refused_as_a_whole_and_nothing_is_made(tmp_path: Path) -> None:
    name, branch, stage = "p" * 60, "c" * 40, "s" * 20
    words = [
        f"project.name={name}",
        f"cooldowns=[{{at: [200], decay: {{iterations: 5}}, name: {branch}}}]",
        f"stages={{{stage}: {{command: [x], each: cooldown}}}}",
    ]
    found = compose("demo", words)
    whole = f"{name}-cd200-{branch}-{stage}"
    assert plan_study(found, Path("/out")).jobs[-1].name == whole
    with pytest.raises(BadInput, match=rf"{whole}: .* 128 characters, and 107 are the most"):
        create(found, tmp_path / "root", session_id="s" * 80)
    assert not (tmp_path / "root").exists()
    assert len(Session.load(create(found, tmp_path / "root", session_id="s" * 59)).jobs) == 3
    with pytest.raises(BadInput, match=r"and 160 are the most"):
        plan_study(compose("demo", [*words, f"stages.{stage}.each=null", *LONGER]), Path("/out"))
