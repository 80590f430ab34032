"""Where the load goes: an OpenAI-compatible address, its key and the model's name."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from plimsoll.errors import BenchError


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An OpenAI-compatible server; `url` is its base, with or without `/v1`."""

    url: str
    model: str = ""
    """Empty: the first one that `/v1/models` names."""
    api_key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 600.0
    """For one request, from its actual send to its last byte."""
    verify_tls: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A target's URL taken apart, ready to connect to."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    root: str
    """Path without `/v1` at its end: `/tokenize` and `/health` lie here."""
    head: bytes
    """The headers that every request carries, each line ended."""

    def prefix(self, path: str, accept: str) -> bytes:
        """Request line and headers up to the Content-Length's value, for a POST to `root` + `path`."""
        return (
            f"POST {self.root}{path} HTTP/1.1\r\n".encode()
            + self.head
            + f"Accept: {accept}\r\nContent-Type: application/json\r\nContent-Length: ".encode()
        )


def resolve(target: Target) -> Address:
    """Take `target.url` apart; BenchError when it is not an http(s) URL or a header cannot be sent."""
    url = target.url if "://" in target.url else f"http://{target.url}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BenchError(f"{target.url!r} is not an address: {error}", hint="give it as http://host:port/v1") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BenchError(f"{target.url!r} is not an address", hint="give it as http://host:port/v1")
    headers = {"Host": parts.netloc.rpartition("@")[2], "User-Agent": "plimsoll-bench"}
    if target.api_key:
        headers["Authorization"] = f"Bearer {target.api_key}"
    headers |= target.headers
    for name, value in headers.items():
        if not (name + value).isascii() or any(c in name + value for c in "\r\n"):
            raise BenchError(f"the header {name!r} cannot be sent", hint="use printable ASCII on one line")
    tls = None
    if parts.scheme == "https":
        tls = ssl.create_default_context()
        if not target.verify_tls:
            tls.check_hostname = False
            tls.verify_mode = ssl.CERT_NONE
    return Address(
        host=parts.hostname,
        port=port or (443 if tls else 80),
        tls=tls,
        root=parts.path.rstrip("/").removesuffix("/v1"),
        head="".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode(),
    )
