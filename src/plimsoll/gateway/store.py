"""Keys and usage on disk: one SQLite file that the gateway writes in batches and the command line reads and changes."""

from __future__ import annotations

import json
import pathlib
import secrets
import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from plimsoll.errors import GatewayError
from plimsoll.gateway.keys import ApiKey, digest

_SCHEMA = """
CREATE TABLE IF NOT EXISTS gateway_keys (
    name TEXT PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    limits TEXT NOT NULL,
    created_s REAL NOT NULL,
    revoked_s REAL
) STRICT;
CREATE TABLE IF NOT EXISTS gateway_usage (
    hour INTEGER NOT NULL,
    key TEXT NOT NULL,
    model TEXT NOT NULL,
    requests INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    estimated_tokens INTEGER NOT NULL,
    PRIMARY KEY (hour, key, model)
) STRICT, WITHOUT ROWID;
"""
_ADD = """
INSERT INTO gateway_usage VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET requests = requests + excluded.requests, failed = failed + excluded.failed,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens, output_tokens = output_tokens + excluded.output_tokens,
    estimated_tokens = estimated_tokens + excluded.estimated_tokens
"""
_TUPLES = ("models", "routes")
_NUMBERS = ("requests_per_min", "tokens_per_min", "tokens_per_day", "concurrency", "expires_s")
_HOUR_S = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one key used of one model."""

    key: str
    model: str
    requests: int = 0
    failed: int = 0
    """Of the requests: those that ended with an error or were left by the client."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    """As the engines reported them."""
    estimated_tokens: int = 0
    """Output counted by events, of answers that an engine did not count."""


class Store:
    """One SQLite file. Every method is one transaction; use it from one thread at a time."""

    def __init__(self, path: pathlib.Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise GatewayError(
                f"The gateway's records {path} cannot be opened: {error}.",
                hint="Check the folder's owner and free space.",
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def version(self) -> int:
        """Changes when another process has written."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def create_key(self, name: str, **limits: object) -> str:
        """Make a key and return it: only its hash is kept.

        `limits` are fields of ApiKey; GatewayError if `name` is taken.
        """
        unknown = set(limits) - {*_TUPLES, *_NUMBERS}
        if unknown:
            raise GatewayError(f"A key has no limit called {', '.join(sorted(unknown))}.")
        token = f"sk-plimsoll-{secrets.token_urlsafe(32)}"
        kept = {name: value for name, value in limits.items() if value is not None and value != ()}
        try:
            self._db.execute(
                "INSERT INTO gateway_keys VALUES (?, ?, ?, ?, NULL)",
                (name, digest(token.encode()), json.dumps(kept), time.time()),
            )
        except sqlite3.IntegrityError as error:
            raise GatewayError(
                f"There is, or was, a key called '{name}'.", hint="Choose another name: usage is kept under it."
            ) from error
        return token

    def revoke_key(self, name: str) -> None:
        """Refuse a key from now on; GatewayError if there is none of that name."""
        done = self._db.execute(
            "UPDATE gateway_keys SET revoked_s = ? WHERE name = ? AND revoked_s IS NULL", (time.time(), name)
        )
        if not done.rowcount:
            raise GatewayError(f"There is no key called '{name}' that could be revoked.")

    def keys(self) -> tuple[ApiKey, ...]:
        """All keys, revoked ones too."""
        rows = self._db.execute("SELECT name, digest, limits, revoked_s FROM gateway_keys ORDER BY created_s")
        return tuple(_key(*row) for row in rows)

    def add_usage(self, usages: Iterable[Usage], unix_s: float) -> None:
        """Add to the hour of `unix_s`."""
        hour = int(unix_s // _HOUR_S)
        rows = [
            (hour, u.key, u.model, u.requests, u.failed, u.prompt_tokens, u.output_tokens, u.estimated_tokens)
            for u in usages
        ]
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany(_ADD, rows)
        except sqlite3.Error:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def usage(self, *, since_s: float = 0.0) -> tuple[Usage, ...]:
        """Sums by key and model over the hours from the one of `since_s` (Unix time) on."""
        rows = self._db.execute(
            "SELECT key, model, sum(requests), sum(failed),"
            " sum(prompt_tokens), sum(output_tokens), sum(estimated_tokens)"
            " FROM gateway_usage WHERE hour >= ? GROUP BY key, model ORDER BY key, model",
            (int(since_s // _HOUR_S),),
        )
        return tuple(
            Usage(
                key=key, model=model, requests=requests, failed=failed, prompt_tokens=prompt, output_tokens=output,
                estimated_tokens=estimated,
            )
            for key, model, requests, failed, prompt, output, estimated in rows
        )  # fmt: skip

    def tokens_today(self, unix_s: float) -> Mapping[str, int]:
        """Tokens by key of the UTC day of `unix_s`."""
        day_s = unix_s // 86400 * 86400
        today: dict[str, int] = {}
        for used in self.usage(since_s=day_s):
            tokens = used.prompt_tokens + used.output_tokens + used.estimated_tokens
            today[used.key] = today.get(used.key, 0) + tokens
        return today


def _key(name: str, kept: bytes, limits: str, revoked_s: float | None) -> ApiKey:
    fields = json.loads(limits)
    for field in _TUPLES:
        if field in fields:
            fields[field] = tuple(fields[field])
    return ApiKey(name=name, digest=kept, revoked=revoked_s is not None, **fields)
