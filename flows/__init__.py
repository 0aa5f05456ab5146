"""The session flow, its subflows, and the command line."""
