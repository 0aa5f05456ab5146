"""What looks like a secret, which is never written down."""

import os
import re
from typing import Annotated, Any

from pydantic import BeforeValidator

_ANYWHERE = re.compile("TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
# `TOKENIZER_TYPE` and `NUM_KEY_VALUE_HEADS` are none; what ends so is.
_NAMED_SO = re.compile(
    r"(^|[_-])(TOKEN|KEY|APIKEY|PAT)S?$|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE
)
# `NAME=value` in a line of a file, for whatever the name ends in.
_ASSIGNMENT = re.compile(
    r"(?i)([\w.-]*(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL)[\w.-]*[\"']?\s*[:=]\s*)\S.*"
)

_SHORTEST = 8  # characters of a secret; a shorter text is found anywhere


def may_be_stored(name: str) -> bool:
    """Whether a variable of the environment may be recorded, by its name: none that matches."""
    return _ANYWHERE.search(name) is None


def looks_secret(name: str) -> bool:
    """Whether what a user writes under this name would be a secret."""
    return _NAMED_SO.search(name) is not None


def held_in(value: str) -> str | None:
    """The variable with a secret's name whose content is a part of `value`, if any."""
    for name, secret in os.environ.items():
        if looks_secret(name) and len(secret) >= _SHORTEST and secret in value:
            return name
    return None


def without_secrets(text: str) -> str:
    """The text with what is assigned to secret names left out."""
    return "\n".join(_ASSIGNMENT.sub(r"\1[left out]", line) for line in text.split("\n"))


def _variables(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    for name in value:
        if looks_secret(str(name)):
            raise ValueError(
                f"`{name}` looks like a secret, and a configuration is written down: leave it "
                "out and export it instead, since jobs inherit your environment"
            )
        if value[name] is None:
            raise ValueError(f'`{name}` has no value: write "" for an empty one')
    # What comes as a number, as from a form, is text in an environment.
    return {name: str(x).lower() if isinstance(x, bool) else str(x) for name, x in value.items()}


Variables = Annotated[dict[str, str], BeforeValidator(_variables)]
"""Variables of an environment; secrets are refused, numbers become text."""
