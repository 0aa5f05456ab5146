"""A drill: the demo's training on a cluster, disturbed on purpose, and a table of what held."""
