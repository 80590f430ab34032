"""Bring weights into the form that an engine eats: each conversion streams, is checked, and never overwrites."""
