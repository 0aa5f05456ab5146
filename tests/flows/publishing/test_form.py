"""The experiment as a form: what Prefect's UI gets to show, and what comes back."""

from typing import Annotated, Literal

import pytest
from prefect.utilities.callables import parameter_schema
from pydantic import Field

from autoexp.config.experiment import Experiment
from autoexp.errors import BadInput
from autoexp.flows.publishing import form
from autoexp.flows.publishing.form import ExperimentForm
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
    assert {"config", "overrides", "experiment", "session"} == set(shown["properties"])
    assert all(field["description"] for field in shown["properties"].values())
    assert "'oneOf'" not in str(shown)


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
