"""Limits and times of the gateway, and what it tells of every request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from plimsoll.units import KIB, MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a gateway allows; times in seconds, sizes in bytes."""

    api_keys: tuple[str, ...] = ()
    """Empty and no key store: nobody is asked for a key, and only a loopback address may be used."""
    body_bytes: int = 64 * MIB
    header_bytes: int = 32 * KIB
    header_count: int = 128
    buffered_bytes: int = MIB
    """An answer that is not a stream is held back up to this size, so that it can be retried when its upstream dies."""
    queue: int = 1024
    """Requests that may wait for one model."""
    queue_wait_s: float = 120.0
    header_wait_s: float = 20.0
    """For a request's head and body to make progress."""
    keep_alive_s: float = 75.0
    write_wait_s: float = 120.0
    """For a client that does not read its answer."""
    connect_wait_s: float = 5.0
    first_byte_wait_s: float = 1800.0
    """Until an upstream begins its answer: a long prompt on a slow machine is normal."""
    between_bytes_wait_s: float = 300.0
    retries: int = 1
    """Further attempts while nothing has been sent to the client."""
    drain_s: float = 10.0
    cors_origins: tuple[str, ...] = ()
    """Web pages that may call it from a browser, such as https://chat.example; `*`: any."""
    tls_cert: str | None = None
    """A PEM file with the certificate and its chain; with `tls_key`, the gateway speaks HTTPS only."""
    tls_key: str | None = None


class Record(NamedTuple):
    """One request, after its end. Times are seconds on the monotonic clock, durations seconds."""

    request_id: str
    client: str
    """Address that the request came from."""
    route: str
    model: str
    upstream: str
    key: str
    status: int
    """499: the client left first."""
    stream: bool
    prompt_tokens: int
    output_tokens: int
    exact: bool
    """Whether the engine reported the token counts; otherwise output is the number of events and prompt is 0."""
    queued_s: float
    first_byte_s: float
    """From arrival to the first byte of the answer; 0 if there was none."""
    duration_s: float
    error: str
    """Empty, or what went wrong."""


Observer = Callable[[Record], None]
