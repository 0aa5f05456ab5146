"""The experiment as a form in Prefect's UI, and from the filled-in form back to an experiment."""

from typing import Annotated, Any

from pydantic import GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from autoexp.config import search_path
from autoexp.config.compose import Composed, points_of
from autoexp.config.experiment import Experiment
from autoexp.config.values.derived import results_of, with_results
from autoexp.config.values.lengths import as_written
from autoexp.dotted import dump
from autoexp.errors import BadInput
from autoexp.model import problems

_BEGUN_FROM = {"base", "block"}  # files that others begin from, and one that needs a name


class _Names:
    """A text that a form offers as a choice: of the names that there are, or any other text."""

    def __init__(self, group: str = "") -> None:
        self._group = group

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        found = handler(schema)
        names = [name for name in search_path.available(self._group) if name not in _BEGUN_FROM]
        known = {"type": "string", "title": "one of these", "enum": names}
        others = [part for part in found.get("anyOf", ()) if part.get("type") != "string"]
        return {"anyOf": [known, {"type": "string", "title": "another"}, *others]}


ConfigName = Annotated[str, _Names()]
SiteName = Annotated[str | None, _Names("slurm")]


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
    given = as_written(values.model_dump()) if isinstance(values, Experiment) else values
    if isinstance(given, dict):
        given = with_results(given, results_of(given))
    try:
        experiment = Experiment.model_validate(given)
    except ValidationError as error:
        raise BadInput("\n".join(problems(error))) from error
    text = dump(experiment.model_dump(mode="json"))
    return Composed(experiment, "form", (), text, text, points_of(experiment))
