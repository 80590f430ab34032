"""Request bodies: read once, and changed in place where an engine needs something else than the client wrote."""

from __future__ import annotations

import re
from typing import Any

import orjson

from plimsoll.errors import GatewayError

_FORM_MODEL = re.compile(rb'(name="?model"?[^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n)([^\r\n]*)', re.IGNORECASE)
_FORM_STREAM = re.compile(rb'(name="?stream"?[^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n)([^\r\n]*)', re.IGNORECASE)


class Form(dict[str, Any]):
    """What is read of a multipart form: `model` and `stream`."""


def read_body(body: bytes, content_type: bytes) -> dict[str, Any]:
    """The JSON object of a request, or `model` of a multipart form; GatewayError 400 if it is none of these."""
    if content_type.startswith(b"multipart/form-data"):
        model = _FORM_MODEL.search(body)
        stream = _FORM_STREAM.search(body)
        name = model[2].decode("utf-8", "replace") if model else None
        return Form(model=name, stream=bool(stream and stream[2].lower() == b"true"))
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise GatewayError(
            f"The body is not valid JSON: {error}.", status=400, kind="invalid_request_error",
            hint="Send a JSON object with content-type application/json.",
        ) from None  # fmt: skip
    if not isinstance(content, dict):
        raise GatewayError("The body is not a JSON object.", status=400, kind="invalid_request_error")
    return content


def _rename_model(body: bytes, content: dict[str, Any], old: str, new: str) -> bytes:
    """`body` with another model name; all other bytes stay as they are where that is safe.

    It is safe when `"model"` occurs once: with two, one may be nested or a duplicate key, and the body is written anew.
    """
    if body.count(b'"model"') == 1:
        pattern = rb'"model"(\s*):(\s*)' + re.escape(orjson.dumps(old))
        changed, count = re.subn(pattern, lambda m: b'"model"%b:%b%b' % (m[1], m[2], orjson.dumps(new)), body)
        if count == 1:
            return changed
    return orjson.dumps({**content, "model": new})


def set_model(body: bytes, content: dict[str, Any], new: str | None) -> bytes:
    """`body` for an engine that knows its model as `new` (None: as the client wrote it)."""
    old = content.get("model")
    if new is None or new == old:
        return body
    if isinstance(content, Form):
        return _FORM_MODEL.sub(lambda m: m[1] + new.encode(), body, count=1)
    if not isinstance(old, str):
        return orjson.dumps({**content, "model": new})
    return _rename_model(body, content, old, new)


def ask_usage(body: bytes, content: dict[str, Any]) -> bytes:
    """A streaming request that also asks for the token counts at the end."""
    options = content.get("stream_options")
    if options is None and "stream_options" not in content:
        return body.replace(b"{", b'{"stream_options":{"include_usage":true},', 1)
    return orjson.dumps({**content, "stream_options": {**(options or {}), "include_usage": True}})


def wants_usage(content: dict[str, Any]) -> bool:
    """Whether the client itself asked for a stream's token counts; an odd value is left to the engine to refuse."""
    options = content.get("stream_options")
    if options is None:
        return False
    return not isinstance(options, dict) or bool(options.get("include_usage"))


def is_event_stream(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether an answer is server-sent events that can be read as they are."""
    stream = False
    for name, value in headers:
        if name == b"content-type":
            stream = value[:17].lower() == b"text/event-stream"
        elif name == b"content-encoding" and value.lower() != b"identity":
            return False
    return stream
