"""The experiment as a form: what Prefect's UI gets to show, and what comes back."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from prefect.utilities.callables import parameter_schema
from pydantic import Field

from autoexp.config.experiment import Experiment
from autoexp.errors import BadInput
from autoexp.flows.engine.lifecycle import compose_request
from autoexp.flows.publishing import form
from autoexp.flows.publishing.form import ExperimentForm
from autoexp.flows.publishing.run_names import name_of
from autoexp.flows.train import train
from autoexp.model import FrozenModel

FILLED = {
    "project": {"name": "mine"},
    "backend": {"kind": "demo", "args": {"train_iters": 400}},
    "slurm": {"kind": "local"},
    "cooldowns": [{"at": [200], "decay": {"iterations": 50}}],
}


class Hot(FrozenModel):
    kind: Literal["hot"]


class Cold(FrozenModel):
    kind: Literal["cold"]


class Tap(FrozenModel):
    water: Annotated[Hot | Cold, Field(discriminator="kind")]


class Bath(ExperimentForm):
    taps: tuple[Tap, ...] = ()


def test_a_choice_is_offered_as_prefects_form_knows_it_however_deep_it_lies() -> None:
    schema = Bath.model_json_schema()
    assert "anyOf" in schema["$defs"]["Tap"]["properties"]["water"]
    assert "'oneOf'" not in str(schema)


def test_every_parameter_of_a_deployment_is_described() -> None:
    shown = parameter_schema(train.fn).model_dump()
    named = {"config", "site", "overrides", "experiment", "session"}
    assert named == set(shown["properties"])
    assert all(field["description"] for field in shown["properties"].values())
    assert "'oneOf'" not in str(shown)


def test_configurations_and_sites_are_choices_and_any_other_text_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "lab.yaml").write_text("defaults: [default]\n")
    (tmp_path / "slurm" / "site.yaml").write_text("defaults: [base]\n")
    monkeypatch.setenv("AUTOEXP_CONFIGS", str(tmp_path))
    shown = parameter_schema(train.fn).model_dump()["properties"]
    config, site = shown["config"]["anyOf"], shown["site"]["anyOf"]
    assert config[0]["enum"][0] == "lab" and "demo" in config[0]["enum"]
    assert {"site", "lumi", "local"} <= set(site[0]["enum"])
    assert not {"base", "block"} & set(site[0]["enum"])
    assert [part["type"] for part in (*config, *site)] == [*["string"] * 4, "null"]
    assert compose_request("demo", "lumi", (), None).experiment.slurm.kind == "slurm"


@pytest.mark.parametrize(
    ("given", "session", "name"),
    [
        ("able-ibex", None, "train lab"),  # as Prefect's server names runs
        ("lambda-ohniaka-sector", None, "train lab"),  # as its form does
        ("train lab", None, "train lab"),
        ("train lab", "lab-1129-k3fq", "session lab-1129-k3fq"),
        ("session lab-1129-k3fq", "lab-1129-k3fq", "session lab-1129-k3fq"),
        ("ann's night run", None, "ann's night run"),
        ("ann's night run", "lab-1129-k3fq", "ann's night run"),
        ("my-run", "lab-1129-k3fq", "my-run"),
    ],
)
def test_a_run_is_named_by_what_it_begins_then_its_session_and_keeps_a_name_that_is_given(
    given: str, session: str | None, name: str
) -> None:
    assert name_of(given, "autoexp-train", {"config": "configs/lab.yaml"}, session) == name
    assert (
        name_of(given, "autoexp-train", {"experiment": {"project": {"name": "lab"}}}, session)
        == name
    )


def test_a_run_with_a_configuration_that_a_session_keeps_is_named_after_the_session() -> None:
    kept = {"config": "/scratch/sessions/lab-1129-k3fq/config/resolved.yaml"}
    assert name_of(None, "autoexp-evaluate", kept, None) == "evaluate lab-1129-k3fq"
    assert (
        name_of(None, "autoexp-cooldown", {"config": "resolved.yaml"}, None) == "cooldown resolved"
    )


def test_a_filled_in_form_is_the_experiment_and_can_be_composed_again() -> None:
    made = form.composed(FILLED)
    assert made.experiment == Experiment.model_validate(FILLED)
    assert "train_iters: 400" in made.resolved


def test_a_sweep_can_be_filled_in() -> None:
    made = form.composed({**FILLED, "sweep": {"grid": {"backend.args.lr": [1e-3, 2e-3]}}})
    names = [point.experiment.project.name for point in made.points]
    assert [name.rpartition("-")[2] for name in names] == ["lr0.001", "lr0.002"]


def test_a_form_that_cannot_be_is_bad_input_with_one_line_per_problem() -> None:
    wrong = {**FILLED, "cooldowns": [{"at": [200], "every": 5, "decay": {"iterations": 50}}]}
    with pytest.raises(BadInput, match=r"cooldowns\.0: .*exactly one of"):
        form.composed(wrong)


def test_lengths_derived_values_and_repeats_of_a_form_are_worked_out() -> None:
    wanted = {
        **FILLED,
        "backend": {"kind": "demo", "args": {"train_iters": "51.2K", "save_interval": 50}},
        "derived": {"backend.args.hidden_size": "8 * seq_length"},
        "repeats": 2,
        "cooldowns": [],
    }
    for values in (wanted, ExperimentForm.model_validate(wanted)):
        made = form.composed(values)
        assert made.experiment.trainer.train_iters == 200
        found = [point.experiment.backend.model_dump()["args"] for point in made.points]
        assert [(args["hidden_size"], args["run_seed"]) for args in found] == [
            (96, 1234),
            (96, 1235),
        ]


def test_a_derived_value_of_a_form_that_is_none_is_refused() -> None:
    with pytest.raises(BadInput, match=r"derived\.a: `1 / 0`"):
        form.composed({**FILLED, "derived": {"a": "1 / 0"}})
