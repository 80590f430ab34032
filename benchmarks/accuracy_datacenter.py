"""`python -m benchmarks.accuracy datacenter FILE.csv`: see `benchmarks.accuracy_speed`."""

from __future__ import annotations

from benchmarks import accuracy_speed


def main(arguments: list[str]) -> int:
    """Print the accuracy over a file of the silicon benchmark."""
    return accuracy_speed.main(arguments, silicon=True)
