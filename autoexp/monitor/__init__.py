"""Look and decide: what happened to each job, and what follows from it."""
