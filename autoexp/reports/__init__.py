"""Reports on a session: status, results, curves, tables, exports."""
