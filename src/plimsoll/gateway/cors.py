"""What a browser needs to hear before a page of another origin may call the gateway."""

from __future__ import annotations

from collections.abc import Mapping


def allowed(origins: tuple[str, ...], headers: Mapping[bytes, bytes]) -> bytes:
    """Header lines for an answer to this request's origin; empty if its pages may not call."""
    origin = headers.get(b"origin", b"")
    if not origin or ("*" not in origins and origin.decode("latin-1") not in origins):
        return b"vary: origin\r\n"
    shown = b"*" if "*" in origins else origin
    return b"access-control-allow-origin: %b\r\naccess-control-expose-headers: x-request-id\r\nvary: origin\r\n" % shown


def preflight(cors: bytes, headers: Mapping[bytes, bytes], *, keep_alive: bool) -> bytes:
    """The answer to the question that a browser asks first."""
    wanted = headers.get(b"access-control-request-headers", b"authorization, content-type")
    return (
        b"HTTP/1.1 204 No Content\r\n%baccess-control-allow-methods: GET, POST\r\naccess-control-allow-headers: %b\r\n"
        b"access-control-max-age: 600\r\n%b\r\n" % (cors, wanted, b"" if keep_alive else b"connection: close\r\n")
    )
