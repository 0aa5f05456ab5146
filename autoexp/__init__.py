"""LLM training experiments on SLURM as Prefect flows, a session each."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoexp.api import Handle, compose, open_session, plan, run, sessions
    from autoexp.errors import AutoexpError, BadInput

__version__ = "0.1.0"
__all__ = [
    "AutoexpError",
    "BadInput",
    "Handle",
    "__version__",
    "compose",
    "open_session",
    "plan",
    "run",
    "sessions",
]


def __getattr__(name: str) -> Any:
    """The public functions, imported once one of them is used: compute nodes need none."""
    if name not in __all__:
        raise AttributeError(f"module 'autoexp' has no attribute {name!r}")
    from autoexp import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
