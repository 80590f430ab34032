"""docs/cli.md is what the code says."""

from __future__ import annotations

from pathlib import Path

from plimsoll.cli.reference import reference

DOCS = Path(__file__).parents[2] / "docs"


def test_the_reference_is_current() -> None:
    assert (DOCS / "cli.md").read_text() == reference(), "python -m plimsoll.cli.reference > docs/cli.md"
