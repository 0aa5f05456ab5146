"""Sick nodes: a check before the trainer, and the shared list of nodes that are avoided."""
