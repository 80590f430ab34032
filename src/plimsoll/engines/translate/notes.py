"""What became of each part of an old launch: the result of a translation and its notes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from plimsoll.errors import SpecError
from plimsoll.spec.deployment import Deployment, GatewaySpec, Spec

Fate = Literal["renamed", "removed", "default", "void", "moved", "changed", "refused"]
"""renamed: it has another name today; removed: it is gone without a successor; default: it is on anyway; void: it
never did anything here; moved: plimsoll does it itself; changed: its meaning or value changed; refused: it cannot be
had, the reason is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What became of one flag, variable or line."""

    what: str
    fate: Fate
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """Old launches as deployments, with what was changed on the way."""

    deployments: tuple[Deployment, ...]
    gateway: GatewaySpec
    notes: tuple[Note, ...]
    nodes: int = 1
    """Machines that the old launch spanned."""

    def spec(self) -> Spec:
        """The spec; SpecError where the old launch names no model."""
        if not self.deployments:
            why = next((note.why for note in self.notes if note.fate == "refused"), "it names no model")
            raise SpecError(f"nothing to serve: {why}", hint="Name the model: plimsoll import --model MODEL FILE")
        return Spec(models=self.deployments, gateway=self.gateway)
