"""Detects text that looks like a secret, which is never stored."""

import os
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BeforeValidator

_ANYWHERE = re.compile("TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL|JWT", re.IGNORECASE)
# ``TOKENIZER_TYPE` and `NUM_KEY_VALUE_HEADS` are not secrets; names that end this way are.
_NAMED_SO = re.compile(
    r"(^|[_-])(TOKEN|KEY|APIKEY|PAT|JWT)S?$|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE
)
# All of these read a text once, however long its words are: what may be repeated begins where no
# such character stands before it, and gives nothing back. Of diffs a line may be a whole picture.
# `NAME=value` in a line of a file, for whatever is in the name.
_ASSIGNMENT = re.compile(r"(?<![\w.-])([\w.-]++)[\"']?+\s*+[:=]\s*+(?=\S)")

# `scheme://user:password@host`, and `?access_token=value`.
_URL_PASSWORD = re.compile(r"(?<=[\w+.-])(://[^\s/:@]*+:)[^\s/@]++(?=@)")
_URL_PARAMETER = re.compile(r"(?i)([?&]([\w.-]+)=)([^\s&#]+)")
# Text with the shape of a secret, whatever its name: a JSON web token, as SLURM's REST
# interface takes, the tokens of Hugging Face, GitHub, GitLab and AWS, and private keys.
_SHAPED_SO = re.compile(
    r"(?<![\w-])eyJ[\w-]{10,}+\.[\w-]+(?:\.[\w-]*)?|\bhf_[A-Za-z0-9]{30,}|\bgh[opsru]_[A-Za-z0-9]{30,}"
    r"|\bgithub_pat_\w{30,}|\bglpat-[\w-]{20,}|\bAKIA[A-Z0-9]{16}\b"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
# `--api-key value`, `--api-key=value`, `API_KEY=value`: whoever looks at the processes reads them.
_FLAG = re.compile(r"(?:^|\s)--?([A-Za-z][\w-]*)(?:=|\s+)(?=\S)([^\s-]\S*)")
_FLAG_ALONE = re.compile(r"--?([A-Za-z][\w-]*)")
_SET = re.compile(r"(?:^|[\s;])([A-Z][A-Z0-9_]*)=(\S+)")
# A number, a variable that is filled in where the command runs, a placeholder, or another option.
_NO_SECRET = re.compile(r"[\d.,eE+-]+$|[\"']?[${]|--?[A-Za-z]")

# No environment holds the first, and Apptainer's shell none of them.
_UNSAFE = re.compile("[\x00\x80\x81]")
_SHORTEST = 8  # characters of a secret; a shorter text is found anywhere


def may_be_stored(name: str) -> bool:
    """True if a variable of the environment may be recorded, judged by its name."""
    return _ANYWHERE.search(name) is None


def looks_secret(name: str) -> bool:
    """True if a value under this name would be a secret."""
    return _NAMED_SO.search(name) is not None


def held_in(value: str) -> str | None:
    """The environment variable with a secret name whose content is a part of `value`, if any."""
    for name, secret in os.environ.items():
        if looks_secret(name) and len(secret) >= _SHORTEST and secret in value:
            return name
    return None


def found_in(value: str) -> str | None:
    """Describe the secret in a text of a configuration; None if there is none."""
    if (name := held_in(value)) is not None:
        return f"holds the value of ${name}"
    if _SHAPED_SO.search(value):
        return "holds what looks like a token or a key"
    if _URL_PASSWORD.search(value):
        return "holds a URL with a password"
    for match in _URL_PARAMETER.finditer(value):
        if looks_secret(match[2]) and not _NO_SECRET.match(match[3]):
            return f"holds a URL with `{match[2]}`"
    for match in (*_FLAG.finditer(value), *_SET.finditer(value)):
        if looks_secret(match[1]) and not _NO_SECRET.match(match[2]):
            return f"gives a command `{match[1]}`, which looks like a secret"
    return None


def found_in_words(words: Sequence[object]) -> str | None:
    """The same for a command line: an option's value is the next word."""
    for word, value in pairwise(words):
        if isinstance(word, str) and isinstance(value, str):
            flag = _FLAG_ALONE.fullmatch(word)
            if flag and looks_secret(flag[1]) and not _NO_SECRET.match(value):
                return f"gives a command `{word}`, which looks like a secret"
    return None


def without_secrets(text: str) -> str:
    """The text without values of secret names and passwords in URLs."""
    text = _URL_PASSWORD.sub(r"\1[left out]", _SHAPED_SO.sub("[left out]", text))
    for name, secret in os.environ.items():
        if looks_secret(name) and len(secret) >= _SHORTEST:
            text = text.replace(secret, "[left out]")
    return "\n".join(map(_without_value, text.split("\n")))


def _without_value(line: str) -> str:
    for found in _ASSIGNMENT.finditer(line):
        if not may_be_stored(found[1]):
            return f"{line[: found.end()]}[left out]"
    return line


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
        if _UNSAFE.search(str(value[name])):
            raise ValueError(
                f"`{name}` holds U+0000, U+0080 or U+0081, which reach no process: leave it out"
            )
        if "\r\n" in str(value[name]):  # Apptainer's own shell drops the first of the two
            raise ValueError(
                f"`{name}` has a carriage return before a newline, which does not arrive in an "
                "image: write the newline alone"
            )
    # A number, as from a form, is text in an environment.
    return {name: str(x).lower() if isinstance(x, bool) else str(x) for name, x in value.items()}


Variables = Annotated[dict[str, str], BeforeValidator(_variables)]
"""Variables of an environment; secrets are refused, numbers become text."""
