"""Paths of sessions and configurations; standard library alone, for fast shell completion."""

import os
from pathlib import Path

SHIPPED = Path(__file__).resolve().parents[1] / "configs"
"""The configurations that come with autoexp."""


def sessions_root() -> Path:
    """`$AUTOEXP_SESSIONS`, else `sessions/` in the working directory."""
    return Path(os.environ.get("AUTOEXP_SESSIONS", "sessions")).absolute()


def own_configs() -> Path:
    """`$AUTOEXP_CONFIGS`, else `configs/` in the working directory, which need not be there."""
    return Path(os.environ.get("AUTOEXP_CONFIGS") or "configs")
