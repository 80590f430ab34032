"""The OpenVINO server's requests and texts, and what its adapter reads of its log."""

from __future__ import annotations

from typing import Any

import pytest
from engine_kit import argv_of
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.engines.openai_http import ApiError
from plimsoll.engines.openvino import OpenVino
from plimsoll.engines.openvino_requests import Text, parse_ask
from plimsoll.engines.serve_openvino import parser

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}
LOG = """serve_openvino: openvino-genai 2026.4.1.0-3408-ab01d1771e4
serve_openvino: loaded in 14.20 s
serve_openvino: model 0.2500 GiB resident
serve_openvino: cache 0.1250 GiB, 256 blocks
serve_openvino: 8 sequences of 1024 tokens"""


def test_what_is_asked_is_taken_over() -> None:
    ask = parse_ask({**CHAT, "max_completion_tokens": 5, "stop": "END", "temperature": 0, "stream": True}, "chat")

    assert ask.messages == ({"role": "user", "content": "hi"},)
    assert (ask.max_tokens, ask.stop, ask.temperature, ask.stream, ask.object) == (
        5, ("END",), 0.0, True, "chat.completion.chunk",
    )  # fmt: skip
    assert parse_ask({"prompt": [1, 2]}, "completion").prompt == (1, 2)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": "1"}, "top_p"),
        ({"n": 2}, "n"),
        ({"stop": [""]}, "stop"),
        ({"seed": -1}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"tools": [{}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_name(more: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse_ask({**CHAT, **more}, "chat")

    assert (refused.value.status, refused.value.body["error"]["param"]) == (400, param)


@given(st.text("abx", max_size=30), st.lists(st.text("abx", min_size=1, max_size=3), max_size=3))
def test_a_text_grown_letter_by_letter_ends_before_its_first_stop(whole: str, stops: list[str]) -> None:
    text = Text(tuple(stops))
    given_out = ""
    for end in range(1, len(whole) + 1):
        given_out += text.grow(whole[:end], last=end == len(whole))
        if text.stopped:
            break

    firsts = [at + len(stop) for stop in stops if (at := whole.find(stop)) >= 0]
    assert text.stopped == bool(firsts)
    assert whole.startswith(given_out)
    assert not any(stop in given_out for stop in stops)
    if not firsts:
        assert given_out == whole


def test_half_a_character_waits_for_its_other_half() -> None:
    text = Text(())
    assert text.grow("caf\ufffd", last=False) == "caf"
    assert text.grow("café", last=False) == "é"


def test_the_log_is_read_and_the_command_line_is_the_servers_own() -> None:
    seen = OpenVino().read_log(LOG.splitlines())

    assert seen.version == "2026.4.1.0"
    assert seen.quantities == {
        "load_s": 14.2, "weights_bytes": 2**28, "kv_cache_bytes": 2**27, "kv_blocks": 256, "sequences": 8,
        "context_tokens": 1024,
    }  # fmt: skip
    argv = argv_of(OpenVino(command=("serve",)), vendor="cpu", sequences=4, context_tokens=100)
    args = parser().parse_args(argv[1:])
    assert (args.max_num_seqs, args.max_context, args.num_kv_blocks) == (4, 100, 16)
