"""Batches of requests run to the end."""
