"""Hugging Face's Trainer, and scripts built on it."""
