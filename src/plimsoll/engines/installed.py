"""The record beside an engine that was installed: its environment counts once this is there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plimsoll.facts.hardware import Vendor

RECORD = "plimsoll.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What was installed, when and from where."""

    engine: str
    version: str
    vendor: Vendor
    """The kind of device that the build is for."""
    package: str
    module: str
    requirements: tuple[str, ...]
    sources: tuple[str, ...]
    """Indexes and links that were asked; (): the installer's own default."""
    installer: str
    installed: str
    """ISO 8601, UTC."""

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"{self.engine}-{self.version}"

    def to_json(self) -> str:
        """One document."""
        return json.dumps(asdict(self), indent=2) + "\n"


def read_record(environment: Path) -> Record | None:
    """The record of the environment at `environment`; None where nothing was installed to its end."""
    try:
        told: dict[str, Any] = json.loads((environment / RECORD).read_text(encoding="utf-8"))
        told |= {key: tuple(value) for key, value in told.items() if isinstance(value, list)}
        return Record(**told)
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def installed_environments(directory: Path) -> tuple[Path, ...]:
    """Every environment below `directory` that was installed to its end, by name."""
    if not directory.is_dir():
        return ()
    return tuple(path for path in sorted(directory.iterdir()) if read_record(path) is not None)
