"""Where Plimsoll keeps things and what the environment says; resolved once, passed explicitly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Directories of one user. PLIMSOLL_HOME puts them all under one; else the XDG directories are used."""

    state_dir: Path
    """SQLite file and logs."""
    store_dir: Path
    """Weights."""
    engines_dir: Path
    """Python environments that `plimsoll engines install` made."""

    @staticmethod
    def resolve(environment: Mapping[str, str]) -> Settings:
        """Settings for this environment; nothing is created yet."""
        home = Path(environment.get("HOME", "/"))
        if root := environment.get("PLIMSOLL_HOME"):
            base = Path(root).expanduser().absolute()
            return Settings(state_dir=base / "state", store_dir=base / "models", engines_dir=base / "engines")
        state = Path(environment.get("XDG_STATE_HOME") or home / ".local" / "state")
        cache = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
        data = Path(environment.get("XDG_DATA_HOME") or home / ".local" / "share")
        return Settings(
            state_dir=state / "plimsoll",
            store_dir=cache / "plimsoll" / "models",
            engines_dir=data / "plimsoll" / "engines",
        )
