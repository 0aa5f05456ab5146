"""The flows: entry points of deployments, and what runs them."""
