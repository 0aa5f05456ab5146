"""Artifacts, events, tags and forms of a session in Prefect."""
