"""Where jobs run, as configured: what is wrong is refused by name before anything is submitted."""

import pytest
from pydantic import ValidationError

from autoexp.config.compose import compose
from autoexp.errors import BadInput
from autoexp.model import COMPOSING
from autoexp.resources.machines import SlurmCluster
from autoexp.resources.sbatch_options import OPTIONS, OURS


def refusal(**settings: object) -> str:
    with pytest.raises(ValidationError) as refused:
        SlurmCluster.model_validate(settings)
    return str(refused.value)


@pytest.mark.parametrize(
    ("name", "near"),
    [("constrain", "constraint"), ("gpus-per-nod", "gpus-per-node"), ("exclusiv", "exclusive")],
)
def test_an_unknown_sbatch_option_is_refused_by_name_with_the_nearest_one(
    name: str, near: str
) -> None:
    told = refusal(options={name: "x"})
    assert f"`{name}` is not an option of sbatch; did you mean `{near}`? One of a plugin" in told


def test_an_option_far_from_any_other_is_refused_without_a_guess() -> None:
    told = refusal(options={"zzzzzzzz": 1})
    assert "`zzzzzzzz` is not an option of sbatch. One of a plugin" in told
    assert "did you mean" not in told


@pytest.mark.parametrize("name", sorted(OURS))
def test_an_option_that_autoexp_sets_is_refused_with_where_to_set_it(name: str) -> None:
    told = refusal(options={name: "x"})
    assert f"`{name}` is set by autoexp ({OURS[name]})" in told
    assert f"`{name.replace('-', '_')}` is set by autoexp" in refusal(
        options={name.replace("-", "_"): "x"}
    )


def test_an_option_is_known_with_dashes_and_with_underscores() -> None:
    cluster = SlurmCluster(options={"gpu_bind": "closest", "gpu-freq": "high"})
    assert cluster.options == {"gpu-bind": "closest", "gpu-freq": "high"}


def test_every_option_of_ours_is_an_option_of_sbatch() -> None:
    assert set(OURS) <= OPTIONS | {"parsable", "wrap", "test-only", "wait"}


def test_a_wrong_option_in_a_configuration_is_bad_input_with_its_path() -> None:
    with pytest.raises(BadInput, match=r"slurm\.options.*`constrain`.*`constraint`"):
        compose("demo", ["slurm=local_cluster", "slurm.options={constrain: gpu}"])


def test_several_nodes_need_a_launcher() -> None:
    assert "launcher" in refusal(nodes=2)
    assert SlurmCluster(nodes=2, gpus_per_node=4, launcher="torchrun").gpus == 8


def test_variables_are_text_whatever_yaml_reads() -> None:
    cluster = SlurmCluster.model_validate({"environment": {"A": 1, "B": 0.5, "C": "x"}})
    assert cluster.environment == {"A": "1", "B": "0.5", "C": "x"}


@pytest.mark.parametrize(
    "settings",
    [
        {"nodes": 0},
        {"gpus_per_node": -1},
        {"scheduler_tick_s": 0},
        {"time_limit_min": 0},
        {"chain": 0},
        {"time_margin": 0.5},
        {"partitoin": "main"},
    ],
)
def test_a_value_out_of_bounds_or_a_misspelt_key_is_refused(settings: dict[str, object]) -> None:
    assert next(iter(settings)) in refusal(**settings)


def test_a_cluster_that_the_shell_chooses_and_no_file_takes_over_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_CLUSTERS", "doduo")
    own = {"kind": "slurm", "account": "a"}
    with pytest.raises(
        ValidationError, match=r"\$SLURM_CLUSTERS chooses a cluster.*clusters: doduo"
    ):
        SlurmCluster.model_validate(own, context=COMPOSING)
    for said in ({"clusters": "other"}, {"clusters": None}, {"options": {"clusters": "other"}}):
        SlurmCluster.model_validate({**own, **said}, context=COMPOSING)
    SlurmCluster.model_validate(own)  # what is recorded is as it was
