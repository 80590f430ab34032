"""Anthropic's /v1/messages on an engine that serves only chat completions; one that has the route gets it untouched.

Both ways in full for text, images, tools and thinking; what chat completions cannot say is refused, not dropped.
"""

from __future__ import annotations

import secrets
from typing import Any

import orjson

from plimsoll.errors import GatewayError
from plimsoll.gateway.adapters import Events
from plimsoll.gateway.table import Upstream

_PATH = "/v1/messages"
_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_SAME = ("model", "max_tokens", "temperature", "top_p", "top_k", "stream")


class MessagesAdapter:
    """One request for a message."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._chat = to_chat(content)
        self._events = MessageEvents(content.get("model")) if content.get("stream") is True else None

    @property
    def events(self) -> Events | None:
        """For a stream."""
        return self._events

    def request(self, upstream: Upstream) -> tuple[bytes, bytes]:
        """Path and body for the engine."""
        chat = self._chat if upstream.model is None else {**self._chat, "model": upstream.model}
        return upstream.path_of("/v1/chat/completions"), orjson.dumps(chat)

    def answer(self, body: bytes) -> bytes:
        """A message, from a chat completion."""
        return orjson.dumps(from_chat(orjson.loads(body)))


def adapt_messages(body: bytes, content: dict[str, Any], upstream: Upstream) -> MessagesAdapter | None:
    """What a request for a message needs, if anything; GatewayError 400 for what chat completions cannot say."""
    del body
    return None if upstream.serves(_PATH) else MessagesAdapter(content)


def to_chat(content: dict[str, Any]) -> dict[str, Any]:
    """The body of a chat completion for one of /v1/messages."""
    chat: dict[str, Any] = {name: content[name] for name in _SAME if name in content}
    messages: list[dict[str, Any]] = []
    if system := content.get("system"):
        messages.append({"role": "system", "content": _text(system)})
    given = content.get("messages")
    if not isinstance(given, list) or not given:
        raise _bad("A request needs 'messages'.")
    for message in given:
        messages += _messages(message)
    chat["messages"] = messages
    if content.get("stop_sequences"):
        chat["stop"] = content["stop_sequences"]
    if tools := content.get("tools"):
        chat["tools"] = [_tool(tool) for tool in tools]
    if choice := content.get("tool_choice"):
        chat["tool_choice"] = _tool_choice(choice)
        if choice.get("disable_parallel_tool_use"):
            chat["parallel_tool_calls"] = False
    if user := (content.get("metadata") or {}).get("user_id"):
        chat["user"] = user
    if chat.get("stream"):
        chat["stream_options"] = {"include_usage": True}
    return chat


def from_chat(chat: dict[str, Any]) -> dict[str, Any]:
    """A message, from a chat completion; GatewayError 502 if it holds no choice."""
    choices = chat.get("choices")
    if not choices:
        raise GatewayError("The engine's answer holds no choice.", status=502)
    message = choices[0].get("message") or {}
    blocks: list[dict[str, Any]] = []
    if thinking := message.get("reasoning_content") or message.get("reasoning"):
        blocks.append({"type": "thinking", "thinking": thinking, "signature": ""})
    if message.get("content"):
        blocks.append({"type": "text", "text": message["content"]})
    for call in message.get("tool_calls") or []:
        function = call["function"]
        try:
            given = orjson.loads(function.get("arguments") or "{}")
        except orjson.JSONDecodeError as error:
            raise GatewayError(f"The model called {function.get('name')} with invalid JSON.", status=502) from error
        blocks.append({"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": given})
    stop = _stop(choices[0])
    return {
        "id": f"msg_{chat.get('id') or secrets.token_hex(12)}", "type": "message", "role": "assistant",
        "model": chat.get("model"), "content": blocks, **stop, "usage": _usage(chat.get("usage")),
    }  # fmt: skip


class MessageEvents:
    """One stream: chunks of a chat completion in, a message's events out."""

    def __init__(self, model: object) -> None:
        self._model = model
        self._begun = False
        self._index = -1
        self._open: tuple[str, int] | None = None
        """Kind of the block that is open, and which tool call it is."""
        self._stop: dict[str, Any] = {"stop_reason": "end_turn", "stop_sequence": None}
        self._usage: dict[str, int] = _usage(None)

    def event(self, content: dict[str, Any]) -> bytes:
        """Events for one chunk."""
        out = []
        if not self._begun:
            self._begun = True
            message = {
                "id": f"msg_{content.get('id') or secrets.token_hex(12)}", "type": "message", "role": "assistant",
                "model": content.get("model") or self._model, "content": [], "stop_reason": None,
                "stop_sequence": None, "usage": _usage(content.get("usage")),
            }  # fmt: skip
            out.append(_event("message_start", message=message))
        if content.get("usage"):
            self._usage = _usage(content["usage"])
        if error := content.get("error"):
            out.append(self.error({"error": error}))
        for choice in content.get("choices") or []:
            delta = choice.get("delta") or {}
            if thinking := delta.get("reasoning_content") or delta.get("reasoning"):
                out.append(self._block("thinking", 0, {"type": "thinking", "thinking": "", "signature": ""}))
                out.append(self._delta({"type": "thinking_delta", "thinking": thinking}))
            if delta.get("content"):
                out.append(self._block("text", 0, {"type": "text", "text": ""}))
                out.append(self._delta({"type": "text_delta", "text": delta["content"]}))
            for call in delta.get("tool_calls") or []:
                out.append(self._tool_call(call))
            if choice.get("finish_reason"):
                self._stop = _stop(choice)
        return b"".join(out)

    def end(self) -> bytes:
        """The events that end the message."""
        if not self._begun:
            return self.error({"error": {"message": "The engine's stream held nothing.", "type": "server_error"}})
        return (
            self._close()
            + _event("message_delta", delta=self._stop, usage=self._usage)
            + _event("message_stop")
        )  # fmt: skip

    def error(self, body: dict[str, Any]) -> bytes:
        """The event for an error."""
        error = {"type": "api_error", "message": body["error"].get("message", "")}
        return _event("error", error=error)

    def _tool_call(self, call: dict[str, Any]) -> bytes:
        function = call.get("function") or {}
        block: dict[str, Any] = {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": {}}
        out = self._block("tool_use", call.get("index", 0), block)
        if function.get("arguments"):
            out += self._delta({"type": "input_json_delta", "partial_json": function["arguments"]})
        return out

    def _block(self, kind: str, number: int, block: dict[str, Any]) -> bytes:
        if self._open == (kind, number):
            return b""
        out = self._close()
        self._open = (kind, number)
        self._index += 1
        return out + _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event("content_block_stop", index=self._index)


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


def _stop(choice: dict[str, Any]) -> dict[str, Any]:
    matched = choice.get("stop_reason")  # vLLM's and SGLang's name for the stop string that was met
    if choice.get("finish_reason") == "stop" and isinstance(matched, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": matched}
    return {"stop_reason": _STOP_REASONS.get(choice.get("finish_reason") or "", "end_turn"), "stop_sequence": None}


def _usage(usage: dict[str, Any] | None) -> dict[str, int]:
    given = usage or {}
    cached = (given.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return {
        "input_tokens": (given.get("prompt_tokens") or 0) - cached,
        "cache_read_input_tokens": cached,
        "output_tokens": given.get("completion_tokens") or 0,
    }


def _messages(message: Any) -> list[dict[str, Any]]:
    """One message in the form of chat completions: tool results come out as messages of their own."""
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant", "system"):
        raise _bad("A message needs the role 'user' or 'assistant'.")
    role, content = message["role"], message.get("content")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    results: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for block in content if isinstance(content, list) else []:
        kind = block.get("type")
        if kind == "text":
            parts.append({"type": "text", "text": block.get("text", "")})
        elif kind == "image":
            parts.append({"type": "image_url", "image_url": {"url": _image(block.get("source") or {})}})
        elif kind == "tool_use":
            arguments = orjson.dumps(block.get("input") or {}).decode()
            function = {"name": block.get("name"), "arguments": arguments}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "tool_result":
            text = _text(block.get("content") or "")
            results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text})
        elif kind not in ("thinking", "redacted_thinking"):  # models are not shown their earlier thinking
            raise _bad(f"A content block of type '{kind}' cannot be sent to this engine.")
    own: dict[str, Any] = {"role": role, "content": _joined(parts)}
    if calls:
        own["tool_calls"] = calls
    return [*results, own] if parts or calls else results


def _joined(parts: list[dict[str, Any]]) -> Any:
    """One text as a string, which every chat template takes; else the parts."""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return parts[0]["text"]
    return parts or None


def _image(source: dict[str, Any]) -> str:
    if source.get("type") == "base64":
        return f"data:{source.get('media_type')};base64,{source.get('data')}"
    if source.get("type") == "url":
        return str(source.get("url"))
    raise _bad(f"An image from a source of type '{source.get('type')}' cannot be sent to this engine.")


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or any(block.get("type") != "text" for block in content):
        raise _bad("Here only text can be sent to this engine.")
    return "\n".join(block.get("text", "") for block in content)


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type", "custom") != "custom":
        raise _bad(f"The tool '{tool.get('type')}' is run by Anthropic's servers and is not served here.")
    function = {"name": tool.get("name"), "parameters": tool.get("input_schema") or {}}
    if tool.get("description"):
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _tool_choice(choice: dict[str, Any]) -> Any:
    if choice.get("type") == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return {"auto": "auto", "any": "required", "none": "none"}.get(str(choice.get("type")), "auto")


def _bad(message: str) -> GatewayError:
    return GatewayError(message, status=400, kind="invalid_request_error")
