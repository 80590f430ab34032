"""API keys and their limits: checking only, no clock and no disk of its own.

A key is kept as its SHA-256: it is 32 random bytes, so there is nothing to guess by trying words.
"""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from plimsoll.errors import GatewayError

_DAY_S = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as it is stored; None: no limit."""

    name: str
    digest: bytes
    models: tuple[str, ...] = ()
    """Names or patterns such as `qwen*`; empty: every model."""
    routes: tuple[str, ...] = ()
    """Paths such as `/v1/embeddings`; empty: every route."""
    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    tokens_per_day: int | None = None
    """UTC days."""
    concurrency: int | None = None
    expires_s: float | None = None
    """Unix time."""
    revoked: bool = False


def named_keys(tokens: Iterable[str]) -> tuple[ApiKey, ...]:
    """The keys that the spec names: without limits, called spec-1, spec-2 ..."""
    return tuple(ApiKey(name=f"spec-{number}", digest=digest(token.encode())) for number, token in enumerate(tokens, 1))


def digest(token: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(token).digest()


class Bucket:
    """So much a minute, up to a minute's worth at once; once overdrawn it refuses until it is refilled."""

    __slots__ = ("_at_s", "_limit", "level")

    def __init__(self, per_min: int, now_s: float) -> None:
        self._limit = float(per_min)
        self.level = float(per_min)
        self._at_s = now_s

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until `amount` is there; 0 if it is. More than the whole bucket counts as the whole bucket."""
        self.level = min(self._limit, self.level + (now_s - self._at_s) * self._limit / 60)
        self._at_s = now_s
        return max(0.0, (min(amount, self._limit) - self.level) * 60 / self._limit)

    def take(self, amount: float) -> None:
        """Take `amount`, or give it back if negative."""
        self.level -= amount


class Holder:
    """A key and what it has used."""

    __slots__ = ("_day", "_requests", "_tokens", "_tokens_today", "key", "running")

    def __init__(self, key: ApiKey, *, now_s: float, unix_s: float, tokens_today: int = 0) -> None:
        self.key = key
        self.running = 0
        self._requests = Bucket(key.requests_per_min, now_s) if key.requests_per_min else None
        self._tokens = Bucket(key.tokens_per_min, now_s) if key.tokens_per_min else None
        self._tokens_today = tokens_today
        self._day = unix_s // _DAY_S

    def admit(self, *, model: str, route: str, tokens: int, now_s: float, unix_s: float) -> None:
        """Count a request that will take about `tokens`; GatewayError 403, or 429 with Retry-After, if not."""
        key = self.key
        if key.models and not any(fnmatch.fnmatchcase(model, pattern) for pattern in key.models):
            raise GatewayError(
                f"The key '{key.name}' may not use the model '{model}'.", status=403, kind="permission_error",
                hint=f"It may use {', '.join(key.models)}.",
            )  # fmt: skip
        if key.routes and route not in key.routes:
            raise GatewayError(
                f"The key '{key.name}' may not use {route}.", status=403, kind="permission_error",
                hint=f"It may use {', '.join(key.routes)}.",
            )  # fmt: skip
        if key.concurrency is not None and self.running >= key.concurrency:
            raise _limited(f"{key.concurrency} requests at once", 1.0)
        if self._requests is not None and (wait_s := self._requests.wait_s(1, now_s)):
            raise _limited(f"{key.requests_per_min} requests a minute", wait_s)
        if self._tokens is not None and (wait_s := self._tokens.wait_s(tokens, now_s)):
            raise _limited(f"{key.tokens_per_min} tokens a minute", wait_s)
        if key.tokens_per_day is not None:
            if (day := unix_s // _DAY_S) != self._day:
                self._day, self._tokens_today = day, 0
            if self._tokens_today >= key.tokens_per_day:
                raise _limited(f"{key.tokens_per_day} tokens a day", _DAY_S - unix_s % _DAY_S)
        self.running += 1
        if self._requests is not None:
            self._requests.take(1)
        self._spend(tokens)

    def done(self, *, estimated: int, used: int) -> None:
        """The request is over: the estimate gives way to what was used."""
        self.running -= 1
        self._spend(used - estimated)

    def _spend(self, tokens: int) -> None:
        self._tokens_today += tokens
        if self._tokens is not None:
            self._tokens.take(tokens)


class KeyRing:
    """The keys that are accepted."""

    def __init__(
        self, keys: Iterable[ApiKey], *, now_s: float, unix_s: float, tokens_today: Mapping[str, int] | None = None
    ) -> None:
        today = tokens_today or {}
        self._holders = {
            key.digest: Holder(key, now_s=now_s, unix_s=unix_s, tokens_today=today.get(key.name, 0)) for key in keys
        }

    def find(self, token: bytes, unix_s: float) -> Holder:
        """Whose key it is; GatewayError 401 if nobody's, or revoked or expired."""
        wanted = digest(token)
        holder = self._holders.get(wanted)
        if holder is None or not hmac.compare_digest(holder.key.digest, wanted):
            raise _unauthorized("The API key is missing or wrong.")
        if holder.key.revoked:
            raise _unauthorized(f"The API key '{holder.key.name}' is revoked.")
        if holder.key.expires_s is not None and unix_s >= holder.key.expires_s:
            raise _unauthorized(f"The API key '{holder.key.name}' has expired.")
        return holder

    def take_over(self, old: KeyRing) -> None:
        """Go on counting for the keys that were there before and have not changed."""
        for wanted, holder in old._holders.items():
            new = self._holders.get(wanted)
            if new is not None and new.key == holder.key:
                self._holders[wanted] = holder


def _unauthorized(message: str) -> GatewayError:
    return GatewayError(
        message, status=401, kind="invalid_request_error", hint="Send a valid one as 'Authorization: Bearer KEY'."
    )


def _limited(what: str, wait_s: float) -> GatewayError:
    return GatewayError(
        f"The limit of this key is reached: {what}.", status=429, kind="rate_limit_error",
        hint=f"Try again in {max(1, round(wait_s))} s.", retry_after_s=wait_s,
    )  # fmt: skip
