"""A trainer to play with, which needs NumPy alone."""
