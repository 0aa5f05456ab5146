"""SOCKS proxies of the environment: hidden from Prefect's client, and passed on to jobs.

Prefect's client cannot be made at all while a variable names a SOCKS proxy and the package socksio
is missing, whatever server it is for.
"""

import os
from importlib import util

_VARIABLES = ("all_proxy", "http_proxy", "https_proxy")
_hidden: dict[str, str] = {}


def is_in_the_way() -> bool:
    """True if a variable names a SOCKS proxy, and the package for it is missing."""
    return bool(_found()) and util.find_spec("socksio") is None


def hide() -> None:
    """Hide SOCKS proxies from this process; jobs that it starts still get the variables."""
    for name in _found():
        _hidden[name] = os.environ.pop(name)


def environment() -> dict[str, str]:
    """The original environment of this process, for jobs and their submission."""
    return {**_hidden, **os.environ}


def hidden() -> dict[str, str]:
    """The variables that are hidden from this process."""
    return dict(_hidden)


def _found() -> list[str]:
    return [
        name
        for name, value in os.environ.items()
        if name.lower() in _VARIABLES and value.strip().lower().startswith("socks")
    ]
