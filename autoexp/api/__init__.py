"""autoexp from Python: compose, plan and run experiments, and read sessions.

All of it is at hand as `autoexp.compose`, `autoexp.run` and so on; docs/python.md describes it.
"""

from autoexp.api.experiments import compose, open_session, plan, run, sessions
from autoexp.api.handle import Handle
from autoexp.errors import AutoexpError, BadInput

__all__ = [
    "AutoexpError",
    "BadInput",
    "Handle",
    "compose",
    "open_session",
    "plan",
    "run",
    "sessions",
]
