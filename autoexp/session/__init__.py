"""The session on disk: a directory that survives any kill."""
