"""A session within a flow run: look, decide, act, sleep."""
