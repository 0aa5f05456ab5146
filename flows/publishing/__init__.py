"""What Prefect shows of a session."""
