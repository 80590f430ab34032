"""Where a number comes from; every number that Plimsoll shows carries one of these."""

from __future__ import annotations

from typing import Literal

Basis = Literal["measured", "derived", "assumed"]
"""measured: read off the real thing; derived: computed from facts by a stated law; assumed: a default we chose."""
