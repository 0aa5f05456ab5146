"""Indexes of a session: derived, and never trusted over its files."""
