"""Names of flow runs: what is run, then its session, unless a person has given one."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import PurePath
from typing import Any

from autoexp import sinks

_FLOWS = "autoexp-"
_SESSION = "session "
# What the form in Prefect's UI fills in: `theta3-carinae-vector`.
_OF_THE_FORM = re.compile(
    "(alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|omicron|pi|rho|sigma|"
    r"tau|upsilon|phi|chi|psi|omega)[0-9]*(-[a-z]+)+"
)


def name_of(
    given: str | None, flow: str | None, parameters: Mapping[str, Any], session: str | None
) -> str:
    """A flow run's name: the one that a person gave, else its session's, else what it begins.

    `given` is the name that it has, and `session` the session that it has made, if any.
    """
    begins = _beginning(flow or "", parameters)
    is_ours = given is None or given == begins or given.startswith(_SESSION)
    if given is not None and not is_ours and not is_generated(given):
        return given
    named = session or parameters.get("session")
    return f"{_SESSION}{named}" if named else begins


def _beginning(flow: str, parameters: Mapping[str, Any]) -> str:
    """`train mylab`, before anything is composed."""
    experiment = parameters.get("experiment")
    project = getattr(experiment, "project", None)
    if isinstance(experiment, Mapping):
        project = experiment.get("project")
    own = project.get("name") if isinstance(project, Mapping) else getattr(project, "name", None)
    name = (
        own if isinstance(own, str) else _config_name(PurePath(str(parameters.get("config") or "")))
    )
    return sinks.title(f"{flow.removeprefix(_FLOWS)} {name}")


def _config_name(path: PurePath) -> str:
    """A configuration's name; the session's of one that a session keeps."""
    is_kept = path.parts[-2:] == ("config", "resolved.yaml") and len(path.parts) > 2
    return path.parts[-3] if is_kept else path.stem


def is_generated(name: str) -> bool:
    """True for a name that Prefect has made up: `able-ibex`, or what its form fills in."""
    if _OF_THE_FORM.fullmatch(name):
        return True
    try:
        adjectives, nouns = _words()
    except (ImportError, LookupError, TypeError):  # another version of coolname
        return re.fullmatch("[a-z]+-[a-z]+", name) is not None
    return any(
        name[:at] in adjectives and name[at + 1 :] in nouns
        for at, letter in enumerate(name)
        if letter == "-"
    )


@cache
def _words() -> tuple[frozenset[str], frozenset[str]]:
    """The words of which Prefect makes names of runs, by coolname: two of them."""
    from coolname.data import config

    parts: Mapping[str, Any] = config

    def of(name: str) -> set[str]:
        part = parts[name]
        return set(part.get("words", ())).union(*map(of, part.get("lists", ())))

    first, second = parts["an"]["lists"]
    return frozenset(of(first)), frozenset(of(second))
