"""OpenAI's /v1/responses, without memory of earlier ones, on an engine that serves only chat completions."""

from __future__ import annotations

import secrets
import time
from typing import Any

import orjson

from plimsoll.errors import GatewayError
from plimsoll.gateway.adapters import Events
from plimsoll.gateway.table import Upstream

_PATH = "/v1/responses"
_SAME = ("model", "temperature", "top_p", "stream", "user", "parallel_tool_calls", "top_logprobs")
_NOT_HERE = {
    "previous_response_id": "Send the whole conversation in 'input': nothing is kept here.",
    "conversation": "Send the whole conversation in 'input': nothing is kept here.",
    "background": "Ask without it, and keep the connection open.",
    "prompt": "Send the text of the prompt in 'instructions' and 'input'.",
}


class ResponsesAdapter:
    """One request for a response."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content
        self._chat = to_chat(content)
        self._events = ResponseEvents(content) if content.get("stream") is True else None

    @property
    def events(self) -> Events | None:
        """For a stream."""
        return self._events

    def request(self, upstream: Upstream) -> tuple[bytes, bytes]:
        """Path and body for the engine."""
        chat = self._chat if upstream.model is None else {**self._chat, "model": upstream.model}
        return upstream.path_of("/v1/chat/completions"), orjson.dumps(chat)

    def answer(self, body: bytes) -> bytes:
        """A response, from a chat completion; GatewayError 502 if it holds no choice."""
        chat = orjson.loads(body)
        if not chat.get("choices"):
            raise GatewayError("The engine's answer holds no choice.", status=502)
        choice = chat["choices"][0]
        message = choice.get("message") or {}
        output = []
        if thinking := message.get("reasoning_content") or message.get("reasoning"):
            output.append(_reasoning(_id("rs"), thinking))
        if message.get("content"):
            output.append(_message(_id("msg"), message["content"]))
        for call in message.get("tool_calls") or []:
            function = call["function"]
            output.append(_call(_id("fc"), call.get("id"), function.get("name"), function.get("arguments") or ""))
        made = _response(self._content, _id("resp"), chat.get("model"))
        return orjson.dumps(_finished(made, output, choice.get("finish_reason"), chat.get("usage")))


def adapt_responses(body: bytes, content: dict[str, Any], upstream: Upstream) -> ResponsesAdapter | None:
    """What a request for a response needs, if anything; GatewayError 400 for what chat completions cannot say."""
    del body
    return None if upstream.serves(_PATH) else ResponsesAdapter(content)


def to_chat(content: dict[str, Any]) -> dict[str, Any]:
    """The body of a chat completion for one of /v1/responses."""
    for name, hint in _NOT_HERE.items():
        if content.get(name):
            raise _bad(f"'{name}' is not served here.", hint)
    chat: dict[str, Any] = {name: content[name] for name in _SAME if content.get(name) is not None}
    messages: list[dict[str, Any]] = []
    if content.get("instructions"):
        messages.append({"role": "system", "content": content["instructions"]})
    given = content.get("input")
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    else:
        for item in given if isinstance(given, list) else []:
            _add(messages, item)
    if not messages:
        raise _bad("A request needs 'input'.")
    chat["messages"] = messages
    if content.get("max_output_tokens") is not None:
        chat["max_completion_tokens"] = content["max_output_tokens"]
    if effort := (content.get("reasoning") or {}).get("effort"):
        chat["reasoning_effort"] = effort
    if wanted := (content.get("text") or {}).get("format"):
        chat["response_format"] = _format(wanted)
    if tools := content.get("tools"):
        chat["tools"] = [_tool(tool) for tool in tools]
    if choice := content.get("tool_choice"):
        named = isinstance(choice, dict)
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}} if named else choice
    if chat.get("stream"):
        chat["stream_options"] = {"include_usage": True}
    return chat


class ResponseEvents:
    """One stream: chunks of a chat completion in, a response's events out."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content
        self._response: dict[str, Any] = {}
        self._number = -1
        self._output: list[dict[str, Any]] = []
        self._open: tuple[str, int] | None = None
        """Kind of the item that is open, and which tool call it is."""
        self._text = ""
        self._finish: str | None = None
        self._usage: dict[str, Any] | None = None

    def event(self, content: dict[str, Any]) -> bytes:
        """Events for one chunk."""
        out = []
        if not self._response:
            self._response = _response(self._content, _id("resp"), content.get("model"))
            out.append(self._event("response.created", response=self._response))
            out.append(self._event("response.in_progress", response=self._response))
        self._usage = content.get("usage") or self._usage
        if error := content.get("error"):
            out.append(self.error({"error": error}))
        for choice in content.get("choices") or []:
            delta = choice.get("delta") or {}
            if thinking := delta.get("reasoning_content") or delta.get("reasoning"):
                out.append(self._item("reasoning", 0, _reasoning(_id("rs"), "")))
                out.append(self._piece("response.reasoning_text.delta", thinking, content_index=0))
            if delta.get("content"):
                out.append(self._item("message", 0, _message(_id("msg"), "")))
                out.append(self._piece("response.output_text.delta", delta["content"], content_index=0, logprobs=[]))
            for call in delta.get("tool_calls") or []:
                function = call.get("function") or {}
                item = _call(_id("fc"), call.get("id"), function.get("name"), "")
                out.append(self._item("function_call", call.get("index", 0), item))
                if function.get("arguments"):
                    out.append(self._piece("response.function_call_arguments.delta", function["arguments"]))
            self._finish = choice.get("finish_reason") or self._finish
        return b"".join(out)

    def end(self) -> bytes:
        """The events that end the response."""
        if not self._response:
            return self.error({"error": {"message": "The engine's stream held nothing.", "code": "server_error"}})
        out = self._close()
        done = _finished(self._response, self._output, self._finish, self._usage)
        return out + self._event(f"response.{done['status']}", response=done)

    def error(self, body: dict[str, Any]) -> bytes:
        """The event for an error."""
        error = body["error"]
        return self._event("error", code=error.get("code"), message=error.get("message", ""), param=None)

    def _item(self, kind: str, number: int, item: dict[str, Any]) -> bytes:
        if self._open == (kind, number):
            return b""
        out = self._close()
        self._open = (kind, number)
        self._text = ""
        self._output.append(item)
        shown = {**item, "status": "in_progress", **({"content": []} if "content" in item else {})}
        out += self._event("response.output_item.added", output_index=len(self._output) - 1, item=shown)
        if kind == "message":
            out += self._event("response.content_part.added", **self._where(content_index=0), part=item["content"][0])
        return out

    def _piece(self, kind: str, text: str, **more: Any) -> bytes:
        self._text += text
        return self._event(kind, **self._where(**more), delta=text)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        kind, _ = self._open
        self._open = None
        item = self._output[-1]
        if kind == "function_call":
            item["arguments"] = self._text
            out = self._event("response.function_call_arguments.done", **self._where(), arguments=self._text)
        else:
            part = item["content"][0]
            part["text"] = self._text
            where = self._where(content_index=0)
            if kind == "message":
                out = self._event("response.output_text.done", **where, text=self._text, logprobs=[])
                out += self._event("response.content_part.done", **where, part=part)
            else:
                out = self._event("response.reasoning_text.done", **where, text=self._text)
        return out + self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)

    def _where(self, **more: Any) -> dict[str, Any]:
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1, **more}

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        data = orjson.dumps({"type": kind, "sequence_number": self._number, **fields})
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


def _response(content: dict[str, Any], name: str, model: Any) -> dict[str, Any]:
    """A response that is in progress."""
    asked = {
        key: content.get(key)
        for key in ("instructions", "max_output_tokens", "metadata", "temperature", "top_p", "reasoning", "user")
    }
    return {
        "id": name, "object": "response", "created_at": int(time.time()), "status": "in_progress", "error": None,
        "incomplete_details": None, "model": model or content.get("model"), "output": [], "usage": None,
        "parallel_tool_calls": content.get("parallel_tool_calls", True), "previous_response_id": None, "store": False,
        "text": content.get("text") or {"format": {"type": "text"}}, "tool_choice": content.get("tool_choice", "auto"),
        "tools": content.get("tools") or [], "truncation": "disabled", **asked,
    }  # fmt: skip


def _finished(
    made: dict[str, Any], output: list[dict[str, Any]], finish: str | None, usage: dict[str, Any] | None
) -> dict[str, Any]:
    cut = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(finish or "")
    given = usage or {}
    prompt, made_tokens = given.get("prompt_tokens") or 0, given.get("completion_tokens") or 0
    counts = {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": (given.get("prompt_tokens_details") or {}).get("cached_tokens") or 0},
        "output_tokens": made_tokens,
        "output_tokens_details": {
            "reasoning_tokens": (given.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
        },
        "total_tokens": prompt + made_tokens,
    }
    return {
        **made, "status": "incomplete" if cut else "completed", "output": output, "usage": counts if usage else None,
        "incomplete_details": {"reason": cut} if cut else None,
    }  # fmt: skip


def _message(name: str, text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"id": name, "type": "message", "role": "assistant", "status": "completed", "content": [part]}


def _reasoning(name: str, text: str) -> dict[str, Any]:
    return {"id": name, "type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}


def _call(name: str, call_id: Any, function: Any, arguments: str) -> dict[str, Any]:
    return {
        "id": name, "type": "function_call", "status": "completed", "call_id": call_id, "name": function,
        "arguments": arguments,
    }  # fmt: skip


def _id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"


def _add(messages: list[dict[str, Any]], item: Any) -> None:
    """One item of `input`, as a message of its own or a tool call of the message before."""
    if not isinstance(item, dict):
        raise _bad("An item of 'input' is not an object.")
    kind = item.get("type", "message")
    if kind == "message":
        role = {"developer": "system"}.get(item.get("role", ""), item.get("role"))
        messages.append({"role": role, "content": _content(item.get("content"))})
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments") or "{}"}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        if messages and messages[-1]["role"] == "assistant":
            messages[-1].setdefault("tool_calls", []).append(call)
        else:
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    elif kind == "function_call_output":
        output = item.get("output")
        text = output if isinstance(output, str) else orjson.dumps(output).decode()
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
    elif kind != "reasoning":  # models are not shown their earlier thinking
        raise _bad(f"An item of type '{kind}' cannot be sent to this engine.")


def _content(content: Any) -> Any:
    if isinstance(content, str):
        return content
    parts: list[dict[str, Any]] = []
    for part in content if isinstance(content, list) else []:
        kind = part.get("type")
        if kind in ("input_text", "output_text", "text", "refusal"):
            parts.append({"type": "text", "text": part.get("text") or part.get("refusal") or ""})
        elif kind == "input_image" and part.get("image_url"):
            parts.append({"type": "image_url", "image_url": {"url": part["image_url"]}})
        else:
            raise _bad(f"A content part of type '{kind}' cannot be sent to this engine.")
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _format(wanted: dict[str, Any]) -> dict[str, Any]:
    if wanted.get("type") != "json_schema":
        return {"type": wanted.get("type")}
    schema = {key: wanted[key] for key in ("name", "schema", "strict", "description") if key in wanted}
    return {"type": "json_schema", "json_schema": schema}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise _bad(f"The tool '{tool.get('type')}' is run by OpenAI's servers and is not served here.")
    function = {key: tool[key] for key in ("name", "description", "parameters", "strict") if tool.get(key) is not None}
    return {"type": "function", "function": function}


def _bad(message: str, hint: str | None = None) -> GatewayError:
    return GatewayError(message, status=400, kind="invalid_request_error", hint=hint)
