"""API keys of the gateway and what was used with them; and the key that Plimsoll's own commands come with."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from plimsoll.app.settings import Settings
from plimsoll.errors import LaunchError
from plimsoll.gateway.keys import ApiKey
from plimsoll.gateway.store import Store, Usage

_OWN = "own.key"


def own_key(state_dir: Path) -> str:
    """The key that `chat`, `bench` and `up` itself come with: readable by this user alone, made when first needed."""
    path = state_dir / _OWN
    try:
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(f"sk-plimsoll-{secrets.token_urlsafe(32)}")
    except FileExistsError:
        pass
    except OSError as problem:
        raise LaunchError(
            f"cannot write {path}: {problem.strerror}", hint="check the folder's owner and room"
        ) from problem
    return path.read_text()


def create_key(settings: Settings, name: str, limits: Mapping[str, object]) -> str:
    """A new key; only its hash is kept, so this is the one time that it can be read. GatewayError if taken."""
    store = _store(settings)
    try:
        return store.create_key(name, **limits)
    finally:
        store.close()


def revoke_key(settings: Settings, name: str) -> None:
    """Refuse a key from now on, within a second also where a gateway runs. GatewayError if there is none."""
    store = _store(settings)
    try:
        store.revoke_key(name)
    finally:
        store.close()


def list_keys(settings: Settings) -> tuple[ApiKey, ...]:
    """All keys, revoked ones too."""
    store = _store(settings)
    try:
        return store.keys()
    finally:
        store.close()


def used(settings: Settings, *, last_s: float | None) -> tuple[Usage, ...]:
    """What each key used of each model, since ever or in the last so many seconds (whole hours)."""
    store = _store(settings)
    try:
        return store.usage(since_s=0.0 if last_s is None else time.time() - last_s)
    finally:
        store.close()


def _store(settings: Settings) -> Store:
    return Store(settings.state_dir / "gateway.db")
