"""Engines: one file each, data and adapter together. Renders commands and reads logs; starts nothing."""
