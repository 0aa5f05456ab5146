"""Deployments, automations and servers."""
