"""Sends the curves of a session to trackers: W&B, MLflow, TensorBoard."""
