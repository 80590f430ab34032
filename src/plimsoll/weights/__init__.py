"""Fetch, verify and convert weights."""
