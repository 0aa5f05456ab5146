"""Any trainer, described in YAML."""
