"""Repeats of equal settings: their names, their seeds, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from autoexp.config.compose import Composed, compose, points_of
from autoexp.config.values.repeats import settings_of_repeat, without_repeat
from autoexp.errors import BadInput
from autoexp.planning.study import plan_study, subset
from autoexp.session.from_session import Origin, compose_from
from autoexp.session.session import Session
from tests.builders import TINY, create
from tests.core.backends.conformance.command import TRACKED
from tests.core.backends.conformance.huggingface import HUGGINGFACE
from tests.core.backends.conformance.megatron import MEGATRON
from tests.core.backends.conformance.torchtitan import TORCHTITAN

OUT = Path("/out")


def names(of: Composed) -> list[str]:
    return [point.experiment.project.name for point in of.points]


def seeds(of: Composed) -> list[Any]:
    return [point.experiment.backend.model_dump()["args"]["run_seed"] for point in of.points]


def refusal(*overrides: str) -> str:
    with pytest.raises(BadInput) as refused:
        compose("demo", overrides)
    return str(refused.value)


def test_repeats_have_names_seeds_and_cooldowns_of_their_own() -> None:
    found = compose("demo", ["repeats=3"])
    assert names(found) == ["demo-r1", "demo-r2", "demo-r3"]
    assert seeds(found) == [1234, 1235, 1236]
    plan = plan_study(found, OUT)
    assert len(plan.cooldowns) == 6
    assert plan.jobs[3].settings == {"repeat": 2, "backend.args.run_seed": 1235}
    place = plan.jobs[3].command.index("--run-seed")
    assert plan.jobs[3].command[place + 1] == "1235"
    assert found.experiment.project.name == "demo"


def test_each_point_of_a_sweep_is_repeated_and_has_its_number() -> None:
    found = compose("demo", ["repeats=2", "backend.args.lr=1e-2,2e-2", "backend.args.run_seed=7"])
    expected = ["demo-lr0.01-r1", "demo-lr0.01-r2", "demo-lr0.02-r1", "demo-lr0.02-r2"]
    assert names(found) == expected
    assert seeds(found) == [7, 8, 7, 8]
    assert names(subset(found, "2-3")) == expected[1:3]


def test_one_repeat_is_the_run_itself() -> None:
    assert compose("demo", ["repeats=1"]).points == ()


@pytest.mark.parametrize(
    ("backend", "settings"),
    [
        (MEGATRON.backend, {"repeat": 2, "backend.args.seed": 1235}),
        (TORCHTITAN.backend, {"repeat": 2, "backend.args.debug.seed": 1235}),
        (HUGGINGFACE.backend, {"repeat": 2, "backend.args.seed": 1235}),
        (TRACKED.backend, {"repeat": 2}),
        ({"kind": "command", "args": {"seed": 5}}, {"repeat": 2, "backend.args.seed": 6}),
        ({"kind": "demo", "args": {"seed": 5}}, {"repeat": 2, "backend.args.run_seed": 6}),
    ],
)
def test_seeds_differ_where_the_trainer_has_one(
    backend: dict[str, Any], settings: dict[str, Any]
) -> None:
    assert settings_of_repeat({"backend": backend}, 2) == settings
    assert without_repeat({"backend.args.lr": 1, **settings}, backend) == {"backend.args.lr": 1}


def test_a_trainer_without_a_seed_is_repeated_as_it_is_and_the_plan_says_so(
    tmp_path: Path,
) -> None:
    words = ["backend=nanogpt", f"backend.source={tmp_path}", "backend.args.train_iters=1000"]
    more = ["backend.args.config=x.py", "backend.args.save_interval=100", "cooldowns=[]"]
    found = compose("default", ["project.name=p", "repeats=2", *words, *more])
    assert names(found) == ["p-r1", "p-r2"]
    assert [point.settings for point in found.points] == [{"repeat": 1}, {"repeat": 2}]
    assert any(note.startswith("repeats: the backend has no seed") for note in _notes(found))
    assert not any("seed" in note for note in _notes(compose("demo", ["repeats=2"])))


def _notes(of: Composed) -> tuple[str, ...]:
    return plan_study(of, OUT).notes


def test_repeats_come_again_with_a_session(tmp_path: Path) -> None:
    own = compose("demo", [*TINY, "repeats=2"])
    session = Session.load(create(own, tmp_path, session_id="s1"))
    assert sorted(job for job in session.jobs if "cd" not in job) == ["tiny-r1", "tiny-r2"]
    assert names(compose_from(session, Origin("s1"))) == ["tiny-r1", "tiny-r2"]
    assert compose_from(session, Origin("s1"), ["repeats=1"]).points == ()
    alone = compose_from(session, Origin("s1", "tiny-r2"))
    assert (alone.points, alone.experiment.backend.model_dump()["args"]["run_seed"]) == ((), 1235)
    assert [point.settings for point in points_of(own.experiment)] == [
        point.settings for point in own.points
    ]


def test_what_cannot_be_repeated_is_refused() -> None:
    found = refusal("repeats=2", "backend.args.run_seed=1,2")
    assert "repeats: the sweep, or `derived`, sets backend.args.run_seed" in found
    found = refusal("repeats=2", "+derived.backend.args.run_seed=3")
    assert "repeats: the sweep, or `derived`, sets backend.args.run_seed" in found
    assert "repeats: belongs to the session" in refusal("repeats=2,3")
    assert "repeats" in refusal("repeats=0")
    assert "repeats" in refusal("repeats=many")
    assert "less than or equal to 1000" in refusal("repeats=1001")
    found = refusal("repeats=2", "backend.args.run_seed=many")
    assert "backend.args.run_seed is 'many', and no number" in found
