"""Benchmark cases: a module for each group of figures."""
