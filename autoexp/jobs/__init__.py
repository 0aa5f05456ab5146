"""Jobs: what is to run, what is recorded of it, what it may cost, how it ended."""
