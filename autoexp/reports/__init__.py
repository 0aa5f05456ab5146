"""What a session looks like: status, results, curves, tables, exports."""
