"""Nodes that are avoided: at a submission, in the queue, and in the list that sessions share."""
