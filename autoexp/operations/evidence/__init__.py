"""Evidence of a hang, collected before its attempt is ended."""
