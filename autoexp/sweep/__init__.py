"""Sweeps: many settings of one experiment. See docs/sweeps.md for the language."""
