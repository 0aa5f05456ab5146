"""Trackers as written: `tracking: {wandb: {project: mylab}, tensorboard: runs}`."""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from autoexp.dotted import set_value
from autoexp.errors import BadInput
from autoexp.model import FrozenModel, first_problem
from autoexp.rules.durations import Duration


class Wandb(FrozenModel):
    """Weights & Biases; the key is `WANDB_API_KEY`, or what `wandb login` has stored."""

    project: str | None = Field(None, description="its project; by default `project.name`")
    entity: str | None = Field(None, description="user or team; by default that of the key")
    mode: Literal["online", "offline"] = Field(
        "online", description="offline: directories for `wandb sync`, where there is no internet"
    )


class Mlflow(FrozenModel):
    """An MLflow server; keys are `MLFLOW_TRACKING_TOKEN`, or `…_USERNAME` and `…_PASSWORD`."""

    uri: str | None = Field(None, description="its address; by default `MLFLOW_TRACKING_URI`")
    experiment: str | None = Field(None, description="its experiment; by default `project.name`")


class Tracking(FrozenModel):
    """Where the monitor sends the curves of all jobs."""

    wandb: Wandb | None = Field(None, description="Weights & Biases; `{}` for all defaults")
    mlflow: Mlflow | None = Field(None, description="an MLflow server; `{}` for all defaults")
    tensorboard: str | None = Field(
        None, description="a directory for event files, `SESSION/JOB` below it"
    )
    every: Duration = Field(
        120.0, description="the least time between two passes; one has only what is new"
    )

    @model_validator(mode="after")
    def _names_a_tracker(self) -> Self:
        if not any(True for _ in self._packages()):
            raise ValueError("give a tracker: `wandb`, `mlflow` or `tensorboard`")
        return self

    def _packages(self) -> Iterator[tuple[str, str]]:
        """Each tracker, and the package that it needs."""
        for name, package in (
            ("wandb", "wandb"),
            ("mlflow", "mlflow"),
            ("tensorboard", "tensorboardX"),
        ):
            if getattr(self, name) is not None:
                yield name, package

    def refuse_missing(self) -> None:
        """Raise BadInput for a tracker whose package is not installed."""
        for name, package in self._packages():
            if find_spec(package) is None:
                raise BadInput(
                    f"tracking.{name} needs {package}, which is not installed: "
                    f"pip install 'autoexp[{name}]'"
                )


def chosen(own: Tracking | None, words: Sequence[str]) -> Tracking | None:
    """A session's trackers with some settings changed, `mlflow.uri=URL`; raises BadInput."""
    if not words:
        return own
    values: dict[str, Any] = {} if own is None else own.model_dump(exclude_none=True)
    for word in words:
        key, is_set, text = word.partition("=")
        if not is_set:
            raise BadInput(f"{word}: write a tracker's setting as KEY=VALUE, `tensorboard=runs`")
        try:
            set_value(values, key, yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise BadInput(f"{word}: {text!r} is no value") from error
    try:
        return Tracking.model_validate(values)
    except ValidationError as error:
        raise BadInput(f"tracking: {first_problem(error)}") from error
