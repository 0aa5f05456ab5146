"""A session as a web page of one file."""
