"""Benchmarks: what the monitor costs, measured (see docs/performance.md)."""
