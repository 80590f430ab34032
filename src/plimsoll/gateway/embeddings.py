"""Embeddings where client and engine differ: inputs as token ids, and vectors in base64."""

from __future__ import annotations

import array
import base64
import sys
from typing import Any

import orjson

from plimsoll.errors import GatewayError
from plimsoll.gateway.bodies import set_model
from plimsoll.gateway.table import Upstream

_PATHS = ("/v1/embeddings", "/embeddings")


class Base64Adapter:
    """A request that wants base64; engines that answer with numbers all the same are packed here."""

    events = None

    def __init__(self, body: bytes, content: dict[str, Any]) -> None:
        self._body = body
        self._content = content

    def request(self, upstream: Upstream) -> tuple[bytes, bytes]:
        """Path and body for the engine: as the client wrote it."""
        return upstream.path_of(*_PATHS), set_model(self._body, self._content, upstream.model)

    def answer(self, body: bytes) -> bytes:
        """The engine's answer, its vectors as base64 of little-endian float32."""
        content = orjson.loads(body)
        rows = content.get("data") if isinstance(content, dict) else None
        if not isinstance(rows, list) or all(isinstance(row.get("embedding"), str) for row in rows):
            return body
        for row in rows:
            if isinstance(row.get("embedding"), list):
                row["embedding"] = pack(row["embedding"])
        return orjson.dumps(content)


def pack(vector: list[float]) -> str:
    """Base64 of little-endian float32, as OpenAI's clients read it."""
    numbers = array.array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


def adapt_embeddings(body: bytes, content: dict[str, Any], upstream: Upstream) -> Base64Adapter | None:
    """What a request for embeddings needs, if anything; GatewayError 400 for token ids that the model does not know."""
    if not upstream.token_ids:
        _refuse_token_ids(content)
    return Base64Adapter(body, content) if content.get("encoding_format") == "base64" else None


def _refuse_token_ids(content: dict[str, Any]) -> None:
    """GatewayError 400 for token ids: they come from OpenAI's vocabulary, and mean other words in this model's."""
    given = content.get("input")
    if isinstance(given, list) and given and isinstance(given[0], int | list):
        raise GatewayError(
            "'input' holds token ids, which mean other words in this model's vocabulary.",
            status=400,
            kind="invalid_request_error",
            hint="Send text (LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False)), "
            "or allow token ids for the model if your ids are its own.",
        )
