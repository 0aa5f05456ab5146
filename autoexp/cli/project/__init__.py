"""Commands about one's own project: its configurations, and how to begin one."""
