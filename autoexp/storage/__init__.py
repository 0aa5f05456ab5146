"""Files that survive a kill: atomic writes, locks, claims, the lease."""
