"""The pure core of autoexp: models, rules, plans, parsing and the session on disk; no Prefect."""

__version__ = "0.1.0"
