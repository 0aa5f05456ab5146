"""Commands that look after a session for weeks."""
