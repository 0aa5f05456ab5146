"""What was taken from a session's files, kept beside them: derived, and never trusted over them."""
