"""What a session of weeks looks like: its checkpoints, its hours, its days."""
