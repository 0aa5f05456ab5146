"""Branches with settings of their own: what may change, how it is counted, sweeps and chains."""

from pathlib import Path
from typing import Any

import pytest

from autoexp.backends.huggingface.backend import HuggingFaceBackend
from autoexp.backends.protocol import Branch
from autoexp.backends.registry import CommandBackend, DemoBackend, MegatronBackend
from autoexp.backends.torchtitan.backend import TorchtitanBackend
from autoexp.config.compose import compose
from autoexp.config.experiment import Experiment
from autoexp.dotted import flat, setting
from autoexp.errors import BadInput
from autoexp.jobs.spec import JobSpec
from autoexp.planning.plan import Plan, make_plan
from autoexp.planning.study import plan_study
from autoexp.session import from_session
from autoexp.session.from_session import Origin, compose_from
from autoexp.session.session import Session
from tests.builders import TINY, create
from tests.core.backends.conformance.megatron import ARGS, STAND_IN

OUT = Path("/out")
FIFTY = {"iterations": 50}


def demo(*cooldowns: dict[str, Any], **args: Any) -> Plan:
    args = {"train_iters": 1000, "save_interval": 100} | args
    content = {
        "project": {"name": "p"},
        "backend": {"kind": "demo", "args": args},
        "slurm": {"kind": "local", "gpus_per_node": 1},
        "budget": {"seconds_per_iteration": 36.0},
        "cooldowns": cooldowns,
    }
    return make_plan(Experiment.model_validate(content), OUT)


def megatron(*cooldowns: dict[str, Any], **args: Any) -> Plan:
    """A trunk of 10,000 iterations of 8 samples of 64 tokens, saving every 100."""
    content = {
        "project": {"name": "p"},
        "backend": {
            "kind": "megatron",
            "source": str(STAND_IN),
            "args": {**ARGS, "train_iters": 10_000, **args},
        },
        "slurm": {"kind": "local"},
        "cooldowns": cooldowns,
    }
    return make_plan(Experiment.model_validate(content), OUT)


def branch_of(job: JobSpec) -> Branch:
    assert job.branch is not None
    return job.branch


def names(plan: Plan) -> list[str]:
    return [job.name for job in plan.cooldowns]


def option(job: JobSpec, name: str) -> str:
    return job.command[job.command.index(name) + 1]


def refusal(*cooldowns: dict[str, Any], make: Any = demo, **args: Any) -> str:
    with pytest.raises(BadInput) as refused:
        make(*cooldowns, **args)
    return str(refused.value)


# Settings of its own


def test_a_branch_runs_with_its_own_settings_and_the_trunk_with_its() -> None:
    plan = demo({"at": [500], "decay": FIFTY, "backend": {"args": {"mix": "code", "lr": 5e-3}}})
    trunk, branch = plan.jobs
    assert "--mix" not in trunk.command
    assert (option(branch, "--mix"), option(branch, "--lr")) == ("code", "0.005")
    assert branch.changes == {"backend.args.lr": 0.005, "backend.args.mix": "code"}
    assert branch.trainer.planned_rate(branch_of(branch), 500) == 5e-3


def test_a_plan_says_how_a_change_takes_effect_once() -> None:
    plan = demo({"at": [500, 600], "decay": FIFTY, "backend": {"args": {"mix": "code"}}})
    (note,) = plan.notes
    assert note.startswith("cooldowns.0: backend.args.mix: other text")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"args": {"hidden_size": 8}}, "args.hidden_size: a branch cannot change it: the weights"),
        (
            {"args": {"train_iters": 9}},
            "args.train_iters: a branch cannot change it: a branch ends",
        ),
        ({"args": {"seed": 9}}, "args.seed: a branch cannot change it: it gives the language"),
        ({"args": {"nope": 9}}, "backend.args.nope: Extra inputs are not permitted"),
        ({"args": {"lr": -1}}, "backend.args.lr: Input should be greater than 0"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_the_reason(changes: Any, why: str) -> None:
    assert why in refusal({"at": [500], "decay": FIFTY, "backend": changes})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"lr": 1e-5}, "finds the checkpoint's parameter groups"),
        ({"num_layers": 3}, "compares it with the checkpoint's"),
        ({"global_batch_size": 24}, "are no multiple of global_batch_size 24"),
    ],
)
def test_megatron_refuses_what_its_checkpoint_decides(changes: Any, why: str) -> None:
    found = refusal({"at": [500], "decay": FIFTY, "backend": {"args": changes}}, make=megatron)
    assert why in found


def test_megatrons_scheduler_counts_samples_so_its_decay_begins_at_the_branch_point() -> None:
    """500 iterations of 8 samples are 250 of 16: there its WSD decay has to begin."""
    plan = megatron({"at": [500], "decay": FIFTY, "backend": {"args": {"global_batch_size": 16}}})
    branch = plan.cooldowns[0]
    assert option(branch, "--train-iters") == "550"
    assert option(branch, "--lr-decay-iters") == "300"
    assert option(branch, "--lr-wsd-decay-iters") == "50"


BACKENDS = (DemoBackend, MegatronBackend, TorchtitanBackend, CommandBackend, HuggingFaceBackend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_backend_says_of_a_change_is_of_arguments_that_it_has(backend: Any) -> None:
    """Of what has no entry of its own, the entry of the whole says what happens."""
    known = backend.BRANCH_CHANGES
    assert "args" in known
    model = backend.model_fields["args"].annotation
    has = set(model.model_fields)
    if hasattr(model, "also_known"):
        has |= model.also_known()
    assert {key.split(".")[1] for key in known if key.startswith("args.")} <= has
    assert all(change.how for change in known.values() if not change.may)


# Counting


def test_a_larger_batch_is_counted_in_tokens_iterations_and_time() -> None:
    """Half of 500 iterations of 256 tokens: 250, or 125 of 512, each twice as long."""
    same, larger = demo(
        {
            "at": [500],
            "decay": {"fraction": 1 / 3},
            "sweep": {"backend.args.global_batch_size": [256, 512]},
        }
    ).cooldowns
    assert [branch_of(job).decay_iterations for job in (same, larger)] == [250, 125]
    assert same.tokens_at(750) == larger.tokens_at(625) == 750 * 256
    assert [job.planned and job.planned.gpu_hours for job in (same, larger)] == [2.5, 2.5]


def test_a_longer_sequence_is_counted_in_tokens() -> None:
    longer = {"args": {"seq_length": 128, "max_position_embeddings": 128}}
    plan = megatron({"at": [500], "decay": {"fraction": 0.5}, "backend": longer})
    branch = plan.cooldowns[0]
    assert branch_of(branch).decay_iterations == 250
    assert branch.tokens_at(750) == 1000 * 8 * 64


def test_a_total_in_tokens_is_kept_by_a_branch_with_another_batch() -> None:
    plan = demo(
        {
            "budgets": {"totals": ["256K"], "fraction": 0.2},
            "backend": {"args": {"global_batch_size": 128}},
        }
    )
    (branch,) = plan.cooldowns
    assert branch_of(branch).iteration == 800
    assert branch.tokens_at(branch.target_iteration or 0) == 256_000


# Sweeps


def test_a_sweep_inside_a_cooldown_is_a_branch_for_each_combination() -> None:
    plan = demo(
        {
            "at": [500, 600],
            "name": "{mix}-{lr}",
            "decay": FIFTY,
            "sweep": {"backend.args.mix": ["web", "code"], "backend.args.lr": [1e-2, 5e-3]},
        }
    )
    assert names(plan)[:2] == ["p-cd500-web-0.01", "p-cd600-web-0.01"]
    assert len(plan.cooldowns) == 8


def test_choices_by_name_set_several_keys_each() -> None:
    plan = demo(
        {
            "at": [500],
            "name": "mix-{text}",
            "decay": FIFTY,
            "sweep": {
                "text": {
                    "dense": {"backend.args.mix": "math:2,code:1", "backend.args.lr": 5e-3},
                    "plain": {"backend": {"args": {"mix": "web"}}},
                }
            },
        }
    )
    assert names(plan) == ["p-cd500-mix-dense", "p-cd500-mix-plain"]
    assert [option(job, "--mix") for job in plan.cooldowns] == ["math:2,code:1", "web"]


def test_a_decay_is_swept_too_and_named_by_what_differs() -> None:
    plan = demo(
        {"at": [500], "sweep": {"decay.iterations": [50, 100], "decay.shape": ["linear", "cosine"]}}
    )
    assert names(plan)[0] == "p-cd500-iterations50-shapelinear"
    assert [branch_of(job).decay_iterations for job in plan.cooldowns] == [50, 50, 100, 100]


@pytest.mark.parametrize(
    ("cooldown", "why"),
    [
        ({"sweep": {"slurm.nodes": [1]}}, "a branch has keys of `backend.` and `decay.` alone"),
        ({"sweep": {"mix": {"a": {"project.name": 1}}}}, "sweep.mix.a.project.name"),
        ({"sweep": {"backend.args.lr": []}}, "has no value"),
        ({"name": "{mix}"}, "nothing is called `{mix}`; there is: no `sweep`"),
        ({"name": "a b"}, "name"),
        ({"sweep": {"backend.args.lr": [1e-3, 1e-3]}, "name": "x{lr}"}, "two branches one name"),
        ({"sweep": {"decay.iterations": [5]}}, "give exactly one of"),
        ({"then": [{"name": "x"}]}, "give exactly one of `decay.iterations`"),
        ({"sweep": {"decay.shape": ["round"]}}, "decay.shape"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(cooldown: dict[str, Any], why: str) -> None:
    base = {"at": [500], "decay": {"fraction": 0.1}}
    if "decay.iterations" in cooldown.get("sweep", {}):
        base["decay"] = FIFTY | {"fraction": 0.1}
    with pytest.raises((BadInput, ValueError)) as refused:
        demo({**base, **cooldown})
    assert why in str(refused.value)


def test_what_is_written_in_yaml_arrives_in_a_branch() -> None:
    cooldowns = (
        "cooldowns=[{at: [100], decay: {iterations: 50}, backend: {args: {lr: 1e-3}},"
        " sweep: {backend.args.mix: [web, code]}}]"
    )
    composed = compose("demo", [*TINY[:-1], cooldowns])
    plan = plan_study(composed, OUT)
    assert names(plan) == ["tiny-cd100-mixweb", "tiny-cd100-mixcode"]
    assert {option(job, "--lr") for job in plan.cooldowns} == {"0.001"}


# Chains

CHAIN = {
    "at": [500],
    "name": "{mix}",
    "decay": FIFTY,
    "sweep": {"backend.args.mix": ["web", "code"]},
    "then": [
        {
            "decay": {"fraction": 0.5},
            "name": "long",
            "backend": {"args": {"global_batch_size": 512}},
            "then": [{"decay": {"iterations": 10}, "backend": {"args": {"lr": 1e-3}}}],
        }
    ],
}


def test_a_chain_goes_on_from_the_end_of_each_branch_with_what_it_had_changed() -> None:
    plan = demo(CHAIN)
    assert names(plan)[:3] == [
        "p-cd500-web",
        "p-cd500-web-cd550-long",
        "p-cd500-web-cd550-long-cd825",
    ]
    last = plan.cooldowns[5]
    assert last.parent == "p-cd500-code-cd550-long"
    assert (option(last, "--mix"), option(last, "--global-batch-size")) == ("code", "512")
    assert last.changes == {"backend.args.lr": 1e-3}


def test_a_chain_counts_the_tokens_of_all_its_parents() -> None:
    first, second, third = demo(CHAIN).cooldowns[:3]
    assert first.tokens_at(550) == 550 * 256
    assert second.tokens_at(825) == 2 * 550 * 256
    assert third.tokens_at(835) == 2 * 550 * 256 + 10 * 512


def test_a_chain_waits_for_the_last_checkpoint_of_the_branch_before_it() -> None:
    second = demo(CHAIN).cooldowns[1]
    assert second.waits
    assert branch_of(second).iteration == 550


def test_a_chain_that_cannot_be_is_refused_with_the_branch_that_it_follows() -> None:
    chain = {**CHAIN, "then": [{"decay": FIFTY, "backend": {"args": {"seq_length": 24}}}]}
    assert "args.seq_length: a branch cannot change it" in refusal(chain)


def test_each_cooldown_of_a_chain_has_its_stages() -> None:
    stages = {"score": {"each": "cooldown", "command": ["x", "{sibling.cooldown.checkpoint_path}"]}}
    settings = {"cooldowns": [CHAIN | {"at": [100]}], "stages": stages}
    composed = compose("demo", TINY[:-1], setting(settings))
    found = [job.name for job in plan_study(composed, OUT).jobs if "score" in job.name]
    assert len(found) == 6
    assert "tiny-cd100-web-cd150-long-score" in found


# Again


def test_a_branch_with_another_batch_is_repeated_with_what_was_seen_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cooldown = {"at": [100], "decay": {"iterations": 50, "shape": "power", "power": 3, "hold": 0.2}}
    cooldown |= {"backend": {"args": {"global_batch_size": 512}}}
    composed = compose("demo", TINY[:-1], setting({"cooldowns": [cooldown]}))
    session = Session.load(create(composed, tmp_path / "sessions", session_id="s1"))
    found = type("Found", (), {"iteration": 100, "path": tmp_path})
    monkeypatch.setattr(from_session, "_start_of", lambda *_: found)
    (again,) = plan_study(compose_from(session, Origin("s1", "tiny-cd100")), OUT).jobs
    (before,) = [job.spec for job in session.jobs.values() if job.spec.branch]
    assert again.branch == before.branch
    assert branch_of(again).samples == 100 * 256


def test_a_record_of_a_branch_is_read_back_as_it_was(tmp_path: Path) -> None:
    composed = compose("demo", TINY[:-1], setting({"cooldowns": [CHAIN | {"at": [100]}]}))
    session = Session.load(create(composed, tmp_path / "sessions", session_id="s1"))
    assert session.jobs["tiny-cd100-code"].spec.changes == {"backend.args.mix": "code"}
    assert flat(session.experiment.model_dump(mode="json"))["cooldowns"][0]["then"]


# The examples that ship


def test_the_annealing_study_has_mixes_rates_a_chain_and_merges() -> None:
    plan = plan_study(compose("annealing"), OUT)
    kinds = [str(job.kind) for job in plan.jobs]
    assert (kinds.count("cooldown"), kinds.count("merge")) == (8, 2)
    assert {job.changes.get("backend.args.mix") for job in plan.cooldowns} >= {
        "web",
        "code",
        "math",
    }
    assert "anneal-cd1200-chain-cd1300-long" in names(plan)


def test_the_ladder_has_five_sizes_and_four_budgets_that_its_trunks_reach() -> None:
    plan = plan_study(compose("ladder"), OUT)
    ends = {(job.trainer.parameter_count(), job.target_iteration) for job in plan.cooldowns}
    assert len(ends) == len(plan.cooldowns) == 20
    assert len({parameters for parameters, _ in ends}) == 5
    assert not plan.notes
