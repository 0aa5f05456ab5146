"""Checks of a machine before anything is submitted, and a job that reports from its nodes."""
