"""Reading logs and matching their lines."""
