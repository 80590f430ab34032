"""HTTP answers as bytes, and errors in OpenAI's form."""

from __future__ import annotations

import http
import math
from typing import Any

import orjson

from plimsoll.errors import GatewayError

STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in http.HTTPStatus
}
JSON = b"application/json"

_CODES = {
    400: "invalid_request", 401: "invalid_api_key", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
    408: "request_timeout", 411: "length_required", 413: "request_too_large", 415: "unsupported_media_type",
    429: "rate_limit_exceeded", 431: "headers_too_large", 500: "internal_error", 501: "not_implemented",
    502: "bad_upstream_answer", 503: "service_unavailable", 504: "upstream_timeout",
}  # fmt: skip


_ANTHROPIC = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip


def status_line(status: int) -> bytes:
    """`HTTP/1.1 200 OK` with its line end; an unregistered status has an empty phrase."""
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def answer(
    status: int, body: bytes, *, content_type: bytes = JSON, headers: bytes = b"", keep_alive: bool = True
) -> bytes:
    """A whole answer of known length; `headers` are complete lines."""
    connection = b"" if keep_alive else b"connection: close\r\n"
    return b"%bcontent-type: %b\r\ncontent-length: %d\r\n%b%b\r\n%b" % (
        status_line(status), content_type, len(body), headers, connection, body,
    )  # fmt: skip


def error_body(error: GatewayError, *, anthropic: bool = False) -> dict[str, Any]:
    """OpenAI's error object: the message holds what happened and what to do. Anthropic's has a type around it."""
    message = f"{error.message} {error.hint}" if error.hint else error.message
    code = "model_not_found" if error.status == 404 and "model" in error.message else _CODES.get(error.status)
    body = {"error": {"message": message, "type": error.kind, "param": None, "code": code}}
    if anthropic:
        body["error"]["type"] = _ANTHROPIC.get(error.status, "api_error")
        return {"type": "error", **body}
    return body


def error_headers(error: GatewayError) -> bytes:
    """Retry-After where waiting helps, and what to authenticate with where a key is missing."""
    lines = b""
    if error.retry_after_s is not None:
        lines += b"retry-after: %d\r\n" % max(1, math.ceil(error.retry_after_s))
    if error.status == 401:
        lines += b"www-authenticate: Bearer\r\n"
    return lines


def error_answer(
    error: GatewayError, *, headers: bytes = b"", keep_alive: bool = True, anthropic: bool = False
) -> bytes:
    """A whole error answer."""
    body = orjson.dumps(error_body(error, anthropic=anthropic))
    return answer(error.status, body, headers=headers + error_headers(error), keep_alive=keep_alive)


def error_event(error: GatewayError, *, anthropic: bool = False) -> bytes:
    """The error as a server-sent event, for a stream that has already begun."""
    name = b"event: error\n" if anthropic else b""
    return b"%bdata: %b\n\n" % (name, orjson.dumps(error_body(error, anthropic=anthropic)))


def wrap_engine_error(status: int, body: bytes) -> bytes:
    """An engine's error body in OpenAI's form; one that already has it is left as it is, byte by byte."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        content = body.decode("utf-8", "replace").strip()
    if isinstance(content, dict):
        error = content.get("error")
        if isinstance(error, dict) and isinstance(error.get("message"), str):
            return body
        message = next((content[key] for key in ("message", "error", "detail") if content.get(key)), content)
    else:
        message = content
    if not isinstance(message, str):
        message = orjson.dumps(message).decode()
    kind = "invalid_request_error" if status < 500 else "server_error"
    return orjson.dumps(
        {"error": {"message": message or f"The engine answered {status} without a reason.", "type": kind,
                   "param": None, "code": _CODES.get(status)}}
    )  # fmt: skip
