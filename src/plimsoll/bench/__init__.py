"""Measure: load generator, records."""
