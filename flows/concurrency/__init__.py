"""The loop, the session's thread and Prefect: who waits for whom."""
