"""From an Experiment to a Plan: pure."""
