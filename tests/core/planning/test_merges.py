"""Merges of checkpoints: which ones, with which weights, and what cannot be merged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoexp.backends.demo import DemoBackend
from autoexp.backends.torchtitan.backend import TorchtitanBackend
from autoexp.config.compose import compose
from autoexp.config.experiment import Experiment
from autoexp.demo import merge as merger
from autoexp.dotted import setting
from autoexp.errors import BadInput
from autoexp.planning.merges import weights_of
from autoexp.planning.plan import Plan, make_plan
from autoexp.planning.study import plan_study
from autoexp.states import Kind
from tests.builders import TINY

OUT = Path("/out")


def planned(*merges: dict[str, Any], slurm: Any = None, **backend: Any) -> Plan:
    content = {
        "project": {"name": "p"},
        "backend": {"kind": "demo", "args": {"train_iters": 1000, "save_interval": 100}, **backend},
        "slurm": slurm or {"kind": "local", "gpus_per_node": 4},
        "merges": merges,
    }
    return make_plan(Experiment.model_validate(content), OUT)


def refusal(*merges: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(BadInput) as refused:
        planned(*merges, **changes)
    return str(refused.value)


# Weights


@pytest.mark.parametrize("shape", ["minus_sqrt", "equal", "linear", "cosine", "exponential"])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_weights_add_up_to_one_and_none_is_negative(shape: str, count: int) -> None:
    weights = weights_of(shape, count)
    assert len(weights) == count
    assert sum(weights) == pytest.approx(1)
    assert min(weights) > 0


@pytest.mark.parametrize("shape", ["minus_sqrt", "linear"])
def test_a_merge_scales_each_step_as_the_decay_would_have(shape: str) -> None:
    """A checkpoint is the sum of the steps before it: so each step has the weights behind it."""
    count = 5
    weights = weights_of(shape, count)
    steps = [sum(weights[step + 1 :]) for step in range(count - 1)]
    curve = {"linear": lambda x: 1 - x, "minus_sqrt": lambda x: 1 - x**0.5}[shape]
    assert steps == pytest.approx([curve((step + 0.5) / 4) for step in range(4)])


# Plans


def test_a_merge_is_a_job_on_one_node_without_gpus_that_starts_at_its_last_checkpoint() -> None:
    slurm = {"kind": "slurm", "nodes": 8, "gpus_per_node": 4, "launcher": "srun"}
    job = planned({"at": [1000], "last": 300, "slurm": {"partition": "cpu"}}, slurm=slurm).jobs[-1]
    assert (job.kind, job.name, job.parent, job.starts_at) == (Kind.MERGE, "p-merge1000", "p", 1000)
    assert (job.machine.gpus, job.configured_limit_min) == (0, 120)
    assert getattr(job.machine, "partition", None) == "cpu"
    assert job.merge is not None
    assert job.merge.iterations == (700, 800, 900, 1000)


def test_the_last_checkpoint_is_one_that_is_saved_and_the_plan_says_so() -> None:
    plan = planned({"at": [950], "last": 300})
    assert plan.jobs[-1].name == "p-merge900"
    assert plan.notes == ("merges.0: 950: the last checkpoint is 900 (save_interval 100)",)


def test_a_merger_of_ones_own_is_given_checkpoints_and_weights_as_words() -> None:
    merger = ["merge.py", "{checkpoints}", "--by", "{weights}", "--to={output}", "{output}"]
    job = planned({"at": [200], "last": 100, "shape": "equal"}, merger=merger).jobs[-1]
    first, last = (f"/out/p-merge200/inputs/{at}" for at in (100, 200))
    assert job.command == (
        *("merge.py", first, last, "--by", "0.5", "0.5"),
        *("--to=/out/p-merge200/merged", "/out/p-merge200/merged"),
    )
    assert job.scores is None


def test_a_merge_is_evaluated_like_a_cooldown() -> None:
    command = ["x", "{sibling.cooldown.checkpoint_path}", "{sibling.cooldown.checkpoint_iteration}"]
    stages = {"score": {"each": "cooldown", "command": command}}
    settings = {"merges": [{"at": [300], "last": 200}], "stages": stages}
    jobs = {job.name: job for job in plan_study(compose("demo", TINY, setting(settings)), OUT).jobs}
    score = jobs["tiny-merge300-score"]
    assert score.command == ("x", "/out/tiny-merge300/merged", "300")
    assert [awaited.job for awaited in score.awaits] == ["tiny-merge300"]
    assert score.parent == "tiny-merge300"


@pytest.mark.parametrize(
    ("merge", "why"),
    [
        ({"at": [1100], "last": 300}, "beyond the trunk's target of 1000 iterations"),
        ({"at": [500], "last": 50}, "no second checkpoint within the last 50"),
        ({"at": [100], "last": 300}, "no second checkpoint"),
        ({"at": [500], "last": 300, "slurm": {"kind": "local"}}, "merges.0.slurm.kind: belongs to"),
        ({"at": [500], "last": 300, "slurm": {"nope": 1}}, "merges.0.slurm.nope"),
    ],
)
def test_a_merge_that_cannot_be_is_refused(merge: dict[str, Any], why: str) -> None:
    assert why in refusal(merge)


def test_two_merges_of_one_name_are_refused() -> None:
    merge = {"at": [500], "last": 300}
    assert "give it a `name`" in refusal(merge, {**merge, "shape": "equal"})


def test_a_trainer_without_a_merger_is_refused_with_the_key() -> None:
    args = {"training": {"steps": 100}, "optimizer": {"lr": 1e-3}, "checkpoint": {"interval": 10}}
    backend = TorchtitanBackend.model_validate({"args": args})
    content: dict[str, Any] = {"project": {"name": "p"}, "slurm": {"kind": "local"}}
    content |= {"backend": backend.model_dump(), "merges": [{"at": [50], "last": 20}]}
    with pytest.raises(BadInput, match=r"torchtitan has no merger; give `backend.merger`"):
        make_plan(Experiment.model_validate(content), OUT)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["m", "{output}"], "`{checkpoints}` has to be a word"),
        (["m", "{checkpoints}"], "`{output}` has to be a word"),
        (["m", "{checkpoints}", "{output}", "{nope}"], "nothing here is called `{nope}`"),
    ],
)
def test_a_merger_that_lacks_a_word_is_refused(words: list[str], why: str) -> None:
    with pytest.raises(ValueError, match="merger") as refused:
        DemoBackend.model_validate({"merger": words})
    assert why in str(refused.value)


# The demo's merger


def checkpoint(folder: Path, value: float, shape: tuple[int, ...] = (2,)) -> Path:
    folder.mkdir(parents=True)
    np.savez(folder / "model.npz", a=np.full(shape, value, np.float32))
    (folder / "metadata.json").write_text(json.dumps({"iteration": 7, "args": {}}))
    return folder


def test_the_demos_merger_writes_the_weighted_sum(tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path / str(n), n) for n in (1, 2, 4)]
    merger.merge(paths, [0.5, 0.25, 0.25], tmp_path / "merged")
    with np.load(tmp_path / "merged" / "model.npz") as shard:
        assert shard["a"].tolist() == [2.0, 2.0]
    metadata = json.loads((tmp_path / "merged" / "metadata.json").read_text())
    assert metadata["iteration"] == 7
    assert [weight for _, weight in metadata["merged"]] == [0.5, 0.25, 0.25]


def test_the_demos_merger_refuses_models_of_other_shapes(tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path / "1", 1), checkpoint(tmp_path / "2", 1, (3,))]
    with pytest.raises(SystemExit, match="a has another shape"):
        merger.merge(paths, [0.5, 0.5], tmp_path / "merged")


@pytest.mark.parametrize(
    ("weights", "why"), [(["0.5"], "1 weights for 2 checkpoints"), (["1", "1"], "add up to 2")]
)
def test_weights_that_do_not_fit_are_refused(
    weights: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        merger.main(["a", "b", "--weights", *weights, "--output", "c"])
    assert why in capsys.readouterr().err
