"""Lengths in tokens: of a trunk, of a decay, and of branch points, by each backend's batch."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from autoexp.config.compose import compose, points_of
from autoexp.config.experiment import Experiment
from autoexp.dotted import flat, set_value
from autoexp.errors import BadInput
from autoexp.planning.plan import Plan, make_plan
from autoexp.planning.study import plan_study
from autoexp.reports.plan_tree import as_text
from autoexp.session.from_session import Origin, compose_from
from autoexp.session.session import Session
from tests.builders import TINY, create
from tests.core.backends.conformance.command import TRACKED
from tests.core.backends.conformance.huggingface import HUGGINGFACE
from tests.core.backends.conformance.megatron import MEGATRON
from tests.core.backends.conformance.torchtitan import TORCHTITAN

OUT = Path("/out")
LONG = ("demo", ["backend.args.train_iters=512K", "backend.args.global_batch_size=256"])


def experiment_of(
    backend: dict[str, Any], key: str, length: Any, *cooldowns: Any, **settings: Any
) -> Experiment:
    """An experiment whose length is `length`; `a__b=c` sets `backend.a.b`."""
    content: dict[str, Any] = {
        "project": {"name": "p"},
        "backend": deepcopy(backend),
        "slurm": {"kind": "local"},
        "cooldowns": cooldowns,
    }
    set_value(content, f"backend.{key}", length)
    for name, value in settings.items():
        set_value(content, f"backend.{name.replace('__', '.')}", value)
    return Experiment.model_validate(content)


TRAINERS: list[tuple[dict[str, Any], str, dict[str, Any], int]] = [
    ({"kind": "demo", "args": {}}, "args.train_iters", {"args__global_batch_size": 500}, 500),
    (
        MEGATRON.backend,
        "args.train_iters",
        {"args__global_batch_size": 8, "args__seq_length": 64},
        512,
    ),
    (
        TORCHTITAN.backend,
        "args.training.steps",
        {"args__training__local_batch_size": 4, "args__training__seq_len": 128},
        512,
    ),
    (
        HUGGINGFACE.backend,
        "args.max_steps",
        {"args__per_device_train_batch_size": 4, "tokens_per_sample": 128},
        512,
    ),
    (
        TRACKED.backend,
        "args.train_iters",
        {"args__samples_per_iteration": 4, "args__tokens_per_sample": 128},
        512,
    ),
]


def refusal(*overrides: str) -> str:
    with pytest.raises(BadInput) as refused:
        plan_study(compose("demo", overrides), OUT)
    return str(refused.value)


def branches(plan: Plan) -> list[tuple[int, int]]:
    found = [job.branch for job in plan.cooldowns if job.branch is not None]
    return [(branch.iteration, branch.decay_iterations) for branch in found]


# The trunk


@pytest.mark.parametrize(("backend", "key", "settings", "each"), TRAINERS)
def test_a_trunk_in_tokens_has_the_iterations_that_fit_for_every_trainer(
    backend: dict[str, Any], key: str, settings: dict[str, Any], each: int
) -> None:
    experiment = experiment_of(backend, key, "1M", **settings)
    assert experiment.trainer.train_iters == 1_000_000 // each
    assert str(experiment.length) == "1M tokens"


def test_a_length_in_samples_or_iterations_is_one_too() -> None:
    backend, key, settings, _ = TRAINERS[1]
    found = experiment_of(backend, key, "4K samples", **settings)
    assert found.trainer.train_iters == 500
    found = experiment_of(backend, key, "500 iterations", **settings)
    assert found.trainer.train_iters == 500


def test_a_growing_batch_is_counted() -> None:
    backend, key, settings, _ = TRAINERS[1]
    ramp = {"args__rampup_batch_size": (4, 4, 800), "takes_rampup": True}
    found = experiment_of(backend, key, "1M", **settings, **ramp).trainer
    batches = found.batches(1)
    assert batches is not None
    assert found.train_iters == batches.iterations(1_000_000 // 64) > 1_000_000 // 512


def test_processes_count_where_the_batch_is_of_one() -> None:
    backend, key, settings, _ = TRAINERS[3]
    one = experiment_of(backend, key, "1M", **settings)
    four = one.model_dump()
    four["backend"]["args"]["max_steps"] = "1M"
    del four["length"]
    four["slurm"] = {"kind": "slurm", "nodes": 1, "gpus_per_node": 4, "launcher": "torchrun"}
    assert Experiment.model_validate(four).trainer.train_iters == 1_000_000 // (4 * 512)


@pytest.mark.parametrize(
    ("number", "missing", "reason"),
    [
        (4, "args__samples_per_iteration", "does not say how many tokens an iteration takes"),
        (4, "args__tokens_per_sample", "does not say how many tokens a sample has"),
        (3, "tokens_per_sample", "does not say how many tokens a sample has"),
    ],
)
def test_tokens_are_refused_where_the_trainer_does_not_know_its_batch(
    number: int, missing: str, reason: str
) -> None:
    backend, key, settings, _ = TRAINERS[number]
    rest = {name: value for name, value in settings.items() if name != missing}
    with pytest.raises(ValidationError) as refused:
        experiment_of(backend, key, "1M", **rest)
    (found,) = refused.value.errors()
    assert found["loc"] == ("backend", *key.split("."))
    assert reason in found["msg"]


def test_what_is_no_length_is_refused_with_its_key_and_origin() -> None:
    found = refusal("backend.args.train_iters=6G")
    assert "backend.args.train_iters: '6G' is not an amount, such as 6B" in found
    assert "override `backend.args.train_iters=6G`" in found
    found = refusal("backend.args.train_iters='100 tokens'", "backend.args.global_batch_size=256")
    assert "100 tokens are less than one iteration" in found


def test_other_mistakes_beside_a_length_are_named_as_ever() -> None:
    found = refusal("backend.args.train_iters=1M", "backend.args.lr=-1")
    assert "backend.args.lr" in found
    assert "train_iters" not in found


def test_a_length_is_given_as_the_trainers_own() -> None:
    assert "give an amount as the trainer's own length" in refusal("+length=1M")


def test_a_plan_shows_iterations_and_tokens_of_trunk_and_branches() -> None:
    name, overrides = LONG
    composed = compose(name, [*overrides, "cooldowns=[{at: [1000], decay: {tokens: 51200}}]"])
    shown = as_text(plan_study(composed, OUT), composed)
    assert "demo  train  0 → 2000 (512K tokens)" in shown
    assert "1000 → 1200 (307.2K tokens)" in shown


def test_points_of_a_sweep_count_a_length_by_their_own_batch() -> None:
    composed = compose(
        "demo", ["backend.args.train_iters=512K", "backend.args.global_batch_size=128,256"]
    )
    lengths = [point.experiment.trainer.train_iters for point in composed.points]
    assert lengths == [4000, 2000]
    again = points_of(composed.experiment)
    assert [point.experiment.trainer.train_iters for point in again] == lengths
    swept = compose("demo", ["backend.args.train_iters=256K,512K"])
    assert [point.experiment.trainer.train_iters for point in swept.points] == [1000, 2000]


def test_a_session_that_is_run_again_keeps_its_tokens_and_not_its_iterations(
    tmp_path: Path,
) -> None:
    tiny = (*TINY[:1], *TINY[2:], "backend.args.train_iters=76800")
    composed = compose("demo", [*tiny, "backend.args.train_iters=76800 tokens"])
    session = Session.load(create(composed, tmp_path, session_id="s1"))
    assert session.experiment.trainer.train_iters == 300
    double = compose_from(session, Origin("s1"), ["backend.args.global_batch_size=128"])
    assert double.experiment.trainer.train_iters == 600
    other = compose_from(session, Origin("s1"), ["backend.args.train_iters=200"])
    assert other.experiment.trainer.train_iters == 200
    assert other.experiment.length is None


# Branches


def test_branch_points_and_decays_in_tokens() -> None:
    name, overrides = LONG
    cooldowns = "cooldowns=[{at: [102.4K, 204800 tokens], decay: {tokens: 25600}}]"
    assert branches(plan_study(compose(name, [*overrides, cooldowns]), OUT)) == [
        (400, 100),
        (800, 100),
    ]


def test_a_branch_point_every_so_many_tokens() -> None:
    name, overrides = LONG
    found = plan_study(
        compose(name, [*overrides, "cooldowns=[{every: 153.6K, decay: {tokens: 25.6K}}]"]), OUT
    )
    assert branches(found) == [(600, 100), (1200, 100), (1800, 100)]


def test_a_decay_in_tokens_is_counted_by_the_branchs_own_batch_and_can_be_swept() -> None:
    name, overrides = LONG
    cooldown = (
        "cooldowns=[{at: [1000], sweep: {decay.tokens: [25.6K, 51.2K]}, "
        "backend: {args: {global_batch_size: 512}}}]"
    )
    found = plan_study(compose(name, [*overrides, cooldown]), OUT)
    assert branches(found) == [(1000, 50), (1000, 100)]


def test_a_decay_in_tokens_behind_a_growing_batch_is_as_long_as_it_says() -> None:
    backend, key, settings, _ = TRAINERS[1]
    ramp = {"args__rampup_batch_size": (4, 4, 1600), "takes_rampup": True}
    cooldown = {"at": [100], "decay": {"tokens": "51200"}}
    own = experiment_of(backend, key, "1M", cooldown, **settings, **ramp, args__save_interval=100)
    (branch,) = branches(make_plan(own, OUT))
    assert branch == (100, 200)  # of 4 samples of 64 tokens each


@pytest.mark.parametrize(
    ("cooldown", "reason"),
    [
        ("{at: [1000], decay: {tokens: 100}}", "a decay of 100 tokens is less than one iteration"),
        ("{every: 100 tokens, decay: {tokens: 1M}}", "100 tokens are less than one iteration"),
        ("{at: [1000], decay: {tokens: 2B samples}}", "are samples, and no tokens"),
        ("{at: [10Q], decay: {tokens: 2B}}", "'10Q' is not an amount"),
        (
            "{at: [1000], decay: {tokens: 1M, iterations: 10}}",
            "give exactly one of `decay.iterations`, `decay.tokens` and `decay.fraction`",
        ),
    ],
)
def test_a_branch_of_another_length_is_refused(cooldown: str, reason: str) -> None:
    assert reason in refusal(f"cooldowns=[{cooldown}]")


@pytest.mark.parametrize(
    "cooldown",
    [
        {"at": ["10K"], "decay": {"iterations": 10}},
        {"every": "10K", "decay": {"iterations": 10}},
        {"at": [100], "decay": {"tokens": "10K"}},
        {"at": [100], "decay": {"iterations": 10}, "then": [{"decay": {"tokens": "10K"}}]},
    ],
)
def test_tokens_of_a_branch_are_refused_where_the_trainer_does_not_know_its_batch(
    cooldown: dict[str, Any],
) -> None:
    experiment = experiment_of(TRACKED.backend, "args.train_iters", 300, cooldown)
    with pytest.raises(BadInput, match="does not say how many tokens an iteration takes"):
        make_plan(experiment, OUT)


def test_what_a_branch_says_in_tokens_is_read_back_from_its_record() -> None:
    cooldown = {"at": ["10K", 200], "decay": {"tokens": "10K"}}
    backend, key, settings, _ = TRAINERS[0]
    experiment = experiment_of(backend, key, "1M", cooldown, **settings)
    again = Experiment.model_validate(experiment.model_dump(mode="json"))
    assert again == experiment
    assert flat(again.model_dump())["backend.args.train_iters"] == 2000
