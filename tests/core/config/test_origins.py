"""Where each value comes from, and what editors are told of configurations."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from autoexp.config.compose import compose
from autoexp.config.experiment import json_schema
from autoexp.config.validation import annotated
from autoexp.dotted import parsed
from autoexp.errors import BadInput
from autoexp.storage.places import SHIPPED

FILES = sorted(
    file for file in SHIPPED.rglob("*.yaml") if not file.read_text().startswith("# @package")
)


def origin(location: str, *overrides: str) -> str:
    composed = compose("demo", overrides)
    assert composed.origins is not None
    return composed.origins.of(location.split("."))


@pytest.mark.parametrize(
    ("location", "overrides", "expected"),
    [
        ("backend.args.lr", [], "backend/demo.yaml, line 6"),
        ("backend.args.lr", ["backend.args.lr=1"], "override `backend.args.lr=1`"),
        ("backend.args.lr", ["backend.args={lr: 1}"], "override `backend.args={lr: 1}`"),
        ("slurm.launcher", ["slurm=lumi"], "slurm/lumi.yaml, line 29, chosen by `slurm=lumi`"),
        ("slurm.kind", ["slurm=lumi"], "slurm/base.yaml, line 6, chosen by `slurm=lumi`"),
        ("slurm.nodes", ["slurm=lumi", "slurm.nodes=2"], "override `slurm.nodes=2`"),
        ("cooldowns", [], "demo.yaml, line 11"),
    ],
)
def test_the_origin_of_a_value_is_its_file_and_line_or_the_override(
    location: str, overrides: list[str], expected: str
) -> None:
    assert origin(location, *overrides).removeprefix(f"{SHIPPED.resolve()}/") == expected


def test_a_message_names_the_override_that_chose_the_file_of_a_wrong_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "mine.yaml").write_text("kind: slurm\nnodes: -1\n")
    monkeypatch.setenv("AUTOEXP_CONFIGS", str(tmp_path))
    with pytest.raises(BadInput, match=r"mine\.yaml, line 2, chosen by `slurm=mine`"):
        compose("demo", ["slurm=mine"])


def test_what_is_shown_of_a_configuration_is_yaml_that_says_the_same() -> None:
    described = "project.description='" + "many words, and more of them " * 9 + "'"
    composed = compose("study", ["sweep=demo", "slurm=lumi", described])
    assert composed.origins is not None
    values = parsed(composed.resolved)
    shown = annotated(values, composed.origins, {("project", "name")})
    assert yaml.safe_load(shown) == yaml.safe_load(composed.resolved)
    assert "# default" in shown.splitlines()[1]
    assert "many words" in shown.rpartition("# override")[2]


def test_text_that_looks_like_an_interpolation_is_shown_as_it_is() -> None:
    composed = compose("demo", [r"project.description='\${x}'"])
    assert parsed(composed.resolved)["project"]["description"] == "${x}"


@cache
def validator_of(group: str | None) -> Draft7Validator:
    validator = Draft7Validator(json_schema(group))
    validator.check_schema(validator.schema)
    return validator


def problems(content: Any, group: str | None) -> Iterator[str]:
    for error in validator_of(group).iter_errors(content):
        yield from [error.message, *(inner.message for inner in error.context or ())]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SHIPPED)))
def test_every_configuration_is_valid_by_the_schema_of_its_group(file: Path) -> None:
    group = file.relative_to(SHIPPED).parent.name or None
    assert list(problems(yaml.safe_load(file.read_text()), group)) == []


@pytest.mark.parametrize(
    ("content", "group", "named"),
    [
        ({"cooldown": []}, None, "cooldown"),
        ({"monitoring": {"file_tik_s": 1}}, None, "file_tik_s"),
        ({"kind": "slurm", "node": 1}, "slurm", "node"),
        ({"kind": "demo", "args": {"lr": [1]}}, "backend", "[1]"),
    ],
)
def test_a_misspelt_key_is_found_by_the_schema(
    content: dict[str, Any], group: str | None, named: str
) -> None:
    assert any(named in said for said in problems(content, group))


def test_references_in_a_schema_lead_somewhere() -> None:
    schema = json_schema("backend")
    text = json.dumps(schema)
    assert "#/$defs/" not in text
    for part in text.split('"$ref": "')[1:]:
        assert part.partition('"')[0].removeprefix("#/definitions/") in schema["definitions"]
