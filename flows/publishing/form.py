"""The experiment as a form in Prefect's UI, and from the filled-in form back to an experiment."""

from typing import Any

from pydantic import GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from autoexp.config.compose import Composed, points_of
from autoexp.config.experiment import Experiment
from autoexp.dotted import dump
from autoexp.errors import BadInput
from autoexp.model import problems


class ExperimentForm(Experiment):
    """An experiment filled in by hand: what to train, where, and which cooldowns branch from it."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The schema with `anyOf`, which Prefect's form knows; pydantic writes `oneOf`."""
        found = handler.resolve_ref_schema(handler(schema))
        _offer_choices(found, handler, set())
        return found


def _offer_choices(node: Any, handler: GetJsonSchemaHandler, seen: set[str]) -> None:
    """Turn `oneOf` into `anyOf`, in place, here and in all that it refers to."""
    if isinstance(node, list):
        for inner in node:
            _offer_choices(inner, handler, seen)
    elif isinstance(node, dict):
        if "oneOf" in node:
            node["anyOf"] = node.pop("oneOf")
            node.pop("discriminator", None)
        reference = node.get("$ref")
        if isinstance(reference, str) and reference not in seen:
            seen.add(reference)
            _offer_choices(handler.resolve_ref_schema(node), handler, seen)
        for inner in list(node.values()):
            _offer_choices(inner, handler, seen)


def composed(values: Any) -> Composed:
    """The experiment in a form; raises BadInput with one line per problem."""
    try:
        experiment = Experiment.model_validate(
            values.model_dump() if isinstance(values, Experiment) else values
        )
    except ValidationError as error:
        raise BadInput("\n".join(problems(error))) from error
    text = dump(experiment.model_dump(mode="json"))
    return Composed(experiment, "form", (), text, text, points_of(experiment))
