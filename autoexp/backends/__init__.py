"""Backends: each knows one trainer."""
