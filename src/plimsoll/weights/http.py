"""HTTP for large files: redirects, proxies, certificates and credentials as pip, curl and the hubs understand them.

On http.client, because it can read a body straight into a buffer: a weight file is gigabytes, and copying it through
an iterator of `bytes` costs more CPU than everything else together (benchmarks/weights.py has the figures).
"""

from __future__ import annotations

import http.client
import netrc
import os
import socket
import ssl
import urllib.request
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit, urlunsplit

import certifi

from plimsoll.errors import WeightError

_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 10
_SAFE = "%/:=&~+!$,;'@()*"
CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def tls_context(*, cafile: str | None = None, environ: Mapping[str, str] = os.environ) -> ssl.SSLContext:
    """Trusts `cafile`, else the file an environment variable names, else the system's store and certifi's."""
    named = cafile or next((environ[name] for name in CERTIFICATE_VARIABLES if environ.get(name)), None)
    if named is None:
        context = ssl.create_default_context()
        context.load_verify_locations(certifi.where())
        return context
    path = Path(named)
    if not path.exists():
        raise WeightError(f"the certificate file {path} does not exist", hint="check SSL_CERT_FILE, PIP_CERT")
    if path.is_dir():
        return ssl.create_default_context(capath=str(path))
    try:
        return ssl.create_default_context(cafile=str(path))
    except ssl.SSLError:
        raise WeightError(f"{path} holds no certificate", hint="it must be a PEM file") from None


@dataclass(slots=True)
class Response:
    """An open answer: `url` is where it came from after redirects; the body is read with `readinto` or `read`."""

    url: str
    status: int
    headers: http.client.HTTPMessage
    body: http.client.HTTPResponse
    connection: http.client.HTTPConnection

    def readinto(self, buffer: memoryview) -> int:
        """Bytes read into `buffer`; fewer than it holds only at the end of the body."""
        return self.body.readinto(buffer)

    def read(self, limit: int) -> bytes:
        """The whole body; WeightError if it is longer than `limit` bytes."""
        data = self.body.read(limit + 1)
        if len(data) > limit:
            raise WeightError(f"{shown(self.url)} answered with more than {limit} bytes", source=shown(self.url))
        return data

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else cut it."""
        if not self.body.isclosed():
            self.connection.close()
            self.body.close()  # a connection that the server ends with the body is the body's, not the connection's


@dataclass(slots=True)
class Session:
    """Connections kept open for reuse. Not for sharing: one session per thread, made with `twin`.

    `headers` go to every host, `bearer` (host to token) and credentials in URLs or ~/.netrc to their own host only.
    """

    timeout_s: float = 30.0
    tls: ssl.SSLContext | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    bearer: Mapping[str, str] = field(default_factory=dict)
    _idle: dict[tuple[str, str], http.client.HTTPConnection] = field(default_factory=dict)
    _socket: socket.socket | None = None

    def twin(self) -> Session:
        """A session with the same settings and connections of its own."""
        return Session(timeout_s=self.timeout_s, tls=self.tls, headers=self.headers, bearer=self.bearer)

    def open(self, url: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Response:
        """Answer to a request, after redirects, whatever its status; OSError or HTTPException if the line fails."""
        for _ in range(_MAX_REDIRECTS):
            response = self._request(url, method, dict(headers or {}))
            target = response.headers.get("Location")
            if response.status not in _REDIRECTS or not target:
                return response
            response.body.read(1 << 16)
            response.close()
            url = urljoin(url, target)
        raise WeightError(f"{shown(url)} redirects without end", source=shown(url))

    def close(self) -> None:
        """Close every connection."""
        for connection in self._idle.values():
            connection.close()
        self._idle.clear()

    def abort(self) -> None:
        """Cut the exchange that another thread is waiting in; it gets an OSError, or the end of the body."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _request(self, url: str, method: str, extra: dict[str, str]) -> Response:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise WeightError(f"cannot fetch from {shown(url)}: not an http or https address")
        headers = {"User-Agent": "plimsoll", "Accept-Encoding": "identity", **self.headers, **extra}
        credentials = self._credentials(parts)
        if credentials:
            headers["Authorization"] = credentials
        path, query = quote(parts.path or "/", safe=_SAFE), quote(parts.query, safe=_SAFE + "?")
        target = urlunsplit(("", "", path, query, ""))
        proxy = _proxy_for(parts)
        if proxy and parts.scheme == "http":
            target = urlunsplit((parts.scheme, _host_port(parts), path, query, ""))
            headers.update(_proxy_headers(proxy))
        key = (parts.scheme, _host_port(parts))
        kept = self._idle.pop(key, None)
        if kept is not None:
            try:
                return self._exchange(kept, key, url, method, target, headers)
            except (http.client.HTTPException, OSError):
                kept.close()  # the server had closed the idle connection: not a failure, ask on a fresh one
        return self._exchange(self._connect(parts, proxy), key, url, method, target, headers)

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        key: tuple[str, str],
        url: str,
        method: str,
        target: str,
        headers: dict[str, str],
    ) -> Response:
        try:
            connection.request(method, target, headers=headers)
            self._socket = connection.sock
            body = connection.getresponse()
        except BaseException:
            connection.close()
            raise
        self._idle[key] = connection
        return Response(url, body.status, body.headers, body, connection)

    def _connect(self, parts: SplitResult, proxy: SplitResult | None) -> http.client.HTTPConnection:
        host, port = (proxy.hostname, proxy.port or 80) if proxy else (parts.hostname, parts.port)
        if parts.scheme == "http":
            return http.client.HTTPConnection(str(host), port, timeout=self.timeout_s)
        if self.tls is None:
            self.tls = tls_context()
        connection = http.client.HTTPSConnection(str(host), port, timeout=self.timeout_s, context=self.tls)
        if proxy:
            connection.set_tunnel(str(parts.hostname), parts.port or 443, headers=_proxy_headers(proxy))
        return connection

    def _credentials(self, parts: SplitResult) -> str | None:
        if parts.username is not None:
            return _basic(parts)
        host = str(parts.hostname)
        if host in self.bearer:
            return f"Bearer {self.bearer[host]}"
        path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
        try:
            found = netrc.netrc(path).hosts.get(host)
        except (OSError, netrc.NetrcParseError):
            return None
        return "Basic " + b64encode(f"{found[0]}:{found[2]}".encode()).decode() if found else None


def shown(url: str) -> str:
    """`url` without password and query, for messages: signed addresses carry secrets in both."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, _host_port(parts) if parts.hostname else "", parts.path, "", ""))


def _host_port(parts: SplitResult) -> str:
    host = str(parts.hostname)
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{parts.port}" if parts.port else host


def _proxy_for(parts: SplitResult) -> SplitResult | None:
    if urllib.request.proxy_bypass(str(parts.hostname)):
        return None
    proxies = urllib.request.getproxies_environment()
    address = proxies.get(parts.scheme) or proxies.get("all")
    if not address:
        return None
    proxy = urlsplit(address if "://" in address else f"http://{address}")
    if proxy.scheme != "http":
        raise WeightError(
            f"proxies of the kind {proxy.scheme}:// are not supported", hint="set an http:// proxy in HTTPS_PROXY"
        )
    return proxy


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    return {"Proxy-Authorization": _basic(proxy)} if proxy.username is not None else {}


def _basic(parts: SplitResult) -> str:
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return "Basic " + b64encode(pair.encode()).decode()
