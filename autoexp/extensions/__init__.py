"""What installed packages add: their entry points, and what their classes derive from."""
