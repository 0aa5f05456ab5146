"""Concurrency of a session flow: the loop, the session's thread, writes to Prefect."""
