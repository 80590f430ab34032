"""Every trap of real streams, on bytes with made-up stamps: no clock, no socket."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import DONE, event, usage_event

from plimsoll.bench.answer import StreamReader, spread
from plimsoll.bench.row import Row
from plimsoll.bench.sse import EventParser


def read(*pieces: tuple[float, bytes], keep_text: bool = False) -> Row:
    row = Row(intended_s=0.0)
    reader = StreamReader(row, keep_text=keep_text)
    for stamp, piece in pieces:
        reader.feed(piece, stamp)
    reader.finish(pieces[-1][0])
    return row


TEXT = b'data: {"a":1}\n\n: comment\n\nevent: error\ndata: two\ndata: lines\n\nid: 7\ndata:[DONE]\n\n'
EVENTS = [(b"", b'{"a":1}'), (b"error", b"two\nlines"), (b"", b"[DONE]")]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_the_same_in_any_pieces_and_with_any_line_ending(size: int, ending: bytes) -> None:
    text = TEXT.replace(b"\n", ending)
    parser = EventParser()
    events = [e for i in range(0, len(text), size) for e in parser.feed(text[i : i + size])]
    assert events == EVENTS
    assert parser.close() == []


@given(
    st.lists(
        st.sampled_from([b"data: a\n", b"data:b\n", b"\n", b": c\n", b"event: e\n", b"data\n", b"id: 1\n", b"x\n"])
    ),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.lists(st.integers(min_value=0, max_value=80)),
)
def test_where_a_stream_is_cut_never_matters(lines: list[bytes], ending: bytes, cuts: list[int]) -> None:
    text = b"".join(lines).replace(b"\n", ending)
    whole, cut = EventParser(), EventParser()
    expected = whole.feed(text) + whole.close()
    places = [0, *sorted(c for c in cuts if c < len(text)), len(text)]
    found = [e for a, b in itertools.pairwise(places) for e in cut.feed(text[a:b])] + cut.close()
    assert found == expected


def test_a_stream_that_forgets_its_last_blank_line_still_gives_its_last_event() -> None:
    parser = EventParser()
    assert parser.feed(b"data: [DONE]") == []
    assert parser.close() == [(b"", b"[DONE]")]


def test_the_empty_role_chunk_is_not_the_first_token() -> None:
    row = read((0.002, event(role=True)), (0.1, event("a")), (0.12, event("b")), (0.12, event(finish="length") + DONE))
    assert row.ttft_s == pytest.approx(0.1)
    assert row.tpot_s == pytest.approx(0.02)


def test_the_finish_and_usage_chunks_are_no_gap_but_the_end() -> None:
    row = read((0.1, event("a")), (0.12, event("b")), (0.5, event(finish="length")), (0.6, usage_event(2)), (0.7, DONE))
    assert row.gaps() == [(pytest.approx(0.02), 1.0)]
    assert row.e2e_s == 0.7
    assert (row.output_tokens, row.prompt_tokens, row.counted_by, row.done_seen) == (2, 20, "usage", True)


def test_several_tokens_in_a_chunk_count_as_several_and_the_first_chunks_are_not_in_the_tpot() -> None:
    pieces = [(0.1 + 0.08 * i, event(" tok" * 4)) for i in range(8)]
    row = read(*pieces, (0.7, event(finish="length") + usage_event(32) + DONE))
    assert (row.chunk_basis, row.output_tokens) == ("characters", 32)
    assert row.tpot_s == pytest.approx(0.02)
    assert all(gap == (pytest.approx(0.02), pytest.approx(4.0)) for gap in row.gaps())


@pytest.mark.parametrize(
    "named",
    [
        lambda n, _: {"choice": {"token_ids": list(range(n))}},
        lambda n, _: {"choice": {"logprobs": {"content": [{"token": "x"}] * n}}},
        lambda n, total: {"usage": {"completion_tokens": total, "prompt_tokens": 9}},
    ],
    ids=["token_ids", "logprobs", "running usage"],
)
def test_a_chunk_that_names_its_tokens_is_believed(named) -> None:
    counts = [1, 3, 2]
    totals = itertools.accumulate(counts)
    pieces = [(i + 1.0, event("text", **named(n, t))) for i, (n, t) in enumerate(zip(counts, totals, strict=True))]
    row = read(*pieces, (4.0, event(finish="stop") + DONE))
    assert (list(row.arrival_tokens), row.chunk_basis) == ([1.0, 3.0, 2.0], "chunk")


def test_reasoning_is_tokens_but_not_the_answer() -> None:
    row = read((0.1, event(thought="hm")), (0.2, event(thought="so")), (0.3, event("yes")), (0.3, event(finish="stop")))
    assert row.ttft_s == 0.1
    assert row.first_answer_s == 0.3
    assert len(row.arrivals_s) == 3


def test_vllms_new_reasoning_field_and_tool_calls_are_tokens() -> None:
    call = {"index": 0, "function": {"name": "f", "arguments": "{}"}}
    row = read(
        (0.1, event(choice={"delta": {"reasoning": "hm"}})),
        (0.2, event(choice={"delta": {"tool_calls": [call]}})),
        (0.3, event(finish="tool_calls") + DONE),
    )
    assert list(row.arrivals_s) == [0.1, 0.2]
    assert row.first_answer_s == 0.2


def test_a_split_event_arrives_with_its_last_byte_and_coalesced_ones_arrive_together() -> None:
    whole = event("a")
    row = read(
        (0.1, whole[:20]),
        (0.2, whole[20:]),
        (0.3, event("b") + event("c") + event("d")),
        (0.4, event(finish="length") + usage_event(4) + DONE),
    )
    assert list(row.arrivals_s) == [0.2, 0.3]
    assert list(row.arrival_tokens) == [1.0, 3.0]
    assert row.tpot_s == pytest.approx(0.1 / 3)


def test_a_usage_chunk_split_over_two_reads_is_not_lost() -> None:
    usage = usage_event(7, prompt=11)
    row = read((0.1, event("abc")), (0.2, event(finish="stop") + usage[:15]), (0.2, usage[15:] + DONE))
    assert (row.output_tokens, row.prompt_tokens) == (7, 11)


def test_a_stall_stays_in_the_gaps() -> None:
    row = read((0.1, event("a")), (5.1, event("b")), (5.12, event("c")), (5.12, event(finish="stop") + DONE))
    assert max(row.gaps())[0] == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([event("a"), event(finish="stop")], None),  # [DONE] missing
        ([event("a"), DONE], None),  # no finish reason
        ([event("a")], "truncated"),
        ([event(role=True), event(finish="stop"), DONE], "empty"),
        ([event("a"), b'data: {"error": {"message": "out of memory"}}\n\n', DONE], "stream_error"),
        ([event("a"), b'event: error\ndata: {"message": "boom"}\n\n'], "stream_error"),
        ([event("a"), b"data: {not json\n\n", DONE], "malformed"),
        ([b": ping\n\n", event("a"), b"\n\n", event(finish="stop"), DONE], None),
    ],
)
def test_how_a_stream_may_end(pieces: list[bytes], error: str | None) -> None:
    row = read(*((i + 1.0, piece) for i, piece in enumerate(pieces)))
    assert row.error == error
    if error is None:
        assert row.ttft_s is not None


def test_completions_text_and_kept_text() -> None:
    piece = b'data: {"choices":[{"text":" hi","finish_reason":null}]}\n\n'
    row = read((0.1, piece), (0.2, piece + DONE), keep_text=True)
    assert row.text == " hi hi"
    assert row.ttft_s == 0.1


@pytest.mark.parametrize(
    ("characters", "total", "finish", "tokens"),
    [
        ([3, 4, 5], None, "stop", [1, 1, 1]),
        ([3, 4, 5], 3, "length", [1, 1, 1]),
        ([3, 4, 5], 4, "stop", [1, 1, 1]),  # the end-of-sequence token has no text
        ([4, 4], 8, "length", [4, 4]),
        ([1, 1, 1, 1], 2, "stop", [0.5] * 4),  # a proxy that cuts words into letters
        ([], 0, "stop", []),
    ],
)
def test_tokens_of_chunks(characters: list[int], total: int | None, finish: str, tokens: list[float]) -> None:
    assert spread(characters, [0] * len(characters), total, finish)[0] == tokens
