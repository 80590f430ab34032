"""Command line: parse, call app, print. No decisions."""
