"""What conditions are looked at with."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from autoexp.rules.condition_checks import Facts, JobFacts

NOW = datetime(2026, 1, 1, 12, 30, tzinfo=UTC)


def facts(directory: Path, **changes: Any) -> Facts:
    known: dict[str, Any] = {
        "now": NOW,
        "asked_at": NOW - timedelta(seconds=60),
        "acted_at": NOW - timedelta(seconds=30),
        "values": {"rank": "7", "details": "remote process exited", "place": "here"},
        "attempts": 3,
        "attempts_without_progress": 1,
        "jobs": {"a": JobFacts("RUNNING", None), "b": JobFacts("COMPLETED", "finished")},
        "directory": directory,
        "commands": lambda command: {"true": True, "false": False}.get(command.run[0]),
    }
    return Facts(**known | changes)
