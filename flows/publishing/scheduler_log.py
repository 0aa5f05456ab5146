"""Forwards warnings of the scheduler's code to the flow run's log, where people read them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SCHEDULERS = "autoexp.schedulers"


class _Forward(logging.Handler):
    """Passes warnings to another logger, under which they belong to a flow run."""

    def __init__(self, log: "logging.Logger | Any") -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.log(record.levelno, "%s", record.getMessage())


@contextmanager
def forwarded(log: "logging.Logger | Any") -> Iterator[None]:
    """Send warnings of schedulers to a flow run's log, and nowhere else: each is logged once."""
    schedulers, handler = logging.getLogger(_SCHEDULERS), _Forward(log)
    schedulers.addHandler(handler)
    schedulers.propagate = False
    try:
        yield
    finally:
        schedulers.removeHandler(handler)
        schedulers.propagate = True
