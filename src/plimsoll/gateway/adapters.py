"""What stands between client and engine on the routes that are not passed on as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from plimsoll.gateway.table import Upstream

MALFORMED = (AttributeError, KeyError, IndexError, TypeError, ValueError)
"""What an adapter raises by walking into a body that is not of the form it should be (ValueError: not even JSON)."""


class Events(Protocol):
    """Translates one stream."""

    def event(self, content: dict[str, Any]) -> bytes:
        """Events for the client, from one of the engine's."""
        ...

    def end(self) -> bytes:
        """Events for the client, after the engine's last."""
        ...

    def error(self, body: dict[str, Any]) -> bytes:
        """The event that tells the client of an error, from its body in OpenAI's form."""
        ...


class Adapter(Protocol):
    """Translates one request and its answer."""

    @property
    def events(self) -> Events | None:
        """For the stream that was asked for; None: none was, or the engine's events are what the client expects."""
        ...

    def request(self, upstream: Upstream) -> tuple[bytes, bytes]:
        """Path and body for the engine."""
        ...

    def answer(self, body: bytes) -> bytes:
        """The body for the client, from an engine's answer with status 200; GatewayError if it makes no sense."""
        ...


Adapt = Callable[[bytes, dict[str, Any], Upstream], Adapter | None]
"""From the body, its content and one of the replicas; None: pass it on as it is."""
