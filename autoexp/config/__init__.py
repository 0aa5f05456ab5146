"""From YAML to an Experiment: files, sweeps, quantities, validation."""
