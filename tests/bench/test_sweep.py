"""Sweeps, and what a server may refuse."""

import asyncio
import contextlib
import itertools

import pytest
from scripted import answer, paced, serving

from plimsoll.bench.load import Load
from plimsoll.bench.measure import Level
from plimsoll.bench.report import HEADER, level_json, table_lines
from plimsoll.bench.sweep import sweep
from plimsoll.bench.target import Target
from plimsoll.errors import BenchError


def run(respond, levels=(1, 4), *, model: str = "m", **load) -> tuple[tuple[Level, ...], list]:
    async def main():
        async with serving(respond) as (url, seen):
            target = Target(url=url, model=model, api_key="key")
            return await sweep(target, levels, load=Load(**{"output_tokens": 5} | load)), seen

    return asyncio.run(main())


def chat(path: str, body) -> list:
    if path.endswith("/models"):
        return answer(200, {"data": [{"id": "found"}]})
    return paced(body["max_tokens"], ttft_s=0.02, itl_s=0.005)


def test_a_sweep_measures_each_level() -> None:
    levels, seen = run(chat)
    assert [level.summary.requests for level in levels] == [4, 8]
    for level in levels:
        s = level.summary
        assert s.errors == {}
        assert s.concurrency == pytest.approx(level.concurrency, rel=0.1)
        assert s.output_tokens == 5 * s.requests
        assert s.ttft_s.p50 == pytest.approx(0.02, abs=0.01)
        assert s.tpot_s.p50 == pytest.approx(0.005, abs=0.003)
        assert s.tokens_per_s == pytest.approx(level.concurrency * 5 / 0.041, rel=0.3)
    _, body, headers = seen[-1]
    assert headers["authorization"] == "Bearer key"
    assert body["ignore_eos"] is True
    assert len({body["messages"][0]["content"] for _, body, _ in seen[2:]}) == 12


def test_the_model_is_asked_for_when_it_is_not_named() -> None:
    levels, seen = run(chat, (1,), model="", requests=1)
    assert levels[0].model == "found"
    assert seen[-1][1]["model"] == "found"


def test_warm_up_is_kept_but_not_counted() -> None:
    [level], _ = run(chat, (2,), warmup=2, requests=4)
    phases = [row.phase for row in level.run.rows]
    assert phases.count("warmup") >= 4
    assert level.summary.requests == phases.count("measured") == 4


def test_a_timed_level_ends_on_time() -> None:
    [level], _ = run(chat, (2,), seconds=0.3)
    assert level.summary.window_s == pytest.approx(0.3, abs=0.1)
    assert level.summary.requests >= 8
    [level], _ = run(chat, (2,), seconds=10.0, requests=3)
    assert level.summary.requests == 3


@pytest.mark.parametrize("field", ["ignore_eos", "stream_options", "max_tokens"])
def test_a_field_that_the_server_refuses_is_given_up_and_said(field: str) -> None:
    def respond(path: str, body):
        if field in body:
            return answer(400, {"error": {"message": f"Unrecognized request argument: {field}"}})
        return paced(4, usage="stream_options" in body)

    [level], seen = run(respond, (1,), requests=2)
    assert level.summary.failed == 0
    assert any(field in note for note in level.notes)
    assert ("max_completion_tokens" in seen[-1][1]) == (field == "max_tokens")


def test_fewer_requests_than_workers_is_not_the_load_that_was_asked_for() -> None:
    [level], _ = run(chat, (8,), requests=3)
    assert level.summary.requests == 3
    assert any("8 were asked for" in fault for fault in level.summary.invalid)


def test_failures_are_counted_and_averaged_into_nothing() -> None:
    count = itertools.count()

    def respond(path: str, body):
        return answer(500, {"error": "boom"}) if next(count) % 2 else chat(path, body)

    [level], _ = run(respond, (1,), requests=6)
    assert level.summary.errors == {"http_500": 3}
    assert level.summary.ttft_s.count == 3
    assert level_json(level)["failed_by_kind"] == {"http_500": 3}
    assert "3 of 6 requests failed: 3 http_500 (boom)" in "\n".join(table_lines([level]))


def test_a_table_line_per_level_under_the_header() -> None:
    levels, _ = run(chat)
    lines = table_lines(levels)
    assert all(name in lines[0] for name in HEADER)
    assert [line.split()[0] for line in lines[1:3]] == ["1", "4"]
    assert "ms" in lines[1]


def test_embeddings_and_rerank_have_no_tokens_but_times() -> None:
    levels, seen = run(lambda *_: answer(200, {"data": [1], "usage": {"prompt_tokens": 9}}), (2,), route="embeddings")
    assert levels[0].summary.e2e_s.count == 4
    assert levels[0].summary.prompt_tokens == 36
    assert table_lines(levels)[0].split("  ")[1:] == ["requests/s", "prompt tokens/s", "e2e p50", "e2e p99", "failed"]
    levels, seen = run(lambda *_: answer(200, {"results": [1]}), (2,), route="rerank")
    assert levels[0].summary.errors == {}
    assert len(seen[-1][1]["documents"]) == 4


@pytest.mark.parametrize(
    ("respond", "words"),
    [
        (lambda *_: answer(401, {"error": {"message": "bad key"}}), "bad key"),
        (lambda *_: answer(404, {"detail": "Not Found"}), "Not Found"),
        (lambda *_: answer(400, {"error": "context too long"}), "context too long"),
    ],
)
def test_a_server_that_takes_nothing_is_one_error_with_its_own_words(respond, words: str) -> None:
    with pytest.raises(BenchError, match=words) as error:
        run(respond)
    assert error.value.hint


def test_a_server_that_is_not_there_is_one_error(unused_tcp_port: int) -> None:
    with pytest.raises(BenchError, match="cannot connect"):
        asyncio.run(sweep(Target(url=f"http://127.0.0.1:{unused_tcp_port}", model="m"), (1,), load=Load()))


def test_a_server_that_dies_ends_the_sweep_and_its_last_requests_are_failures() -> None:
    async def main() -> list[Level]:
        alive = itertools.count()
        seen: list[Level] = []
        async with contextlib.AsyncExitStack() as stack:

            def respond(path: str, body):
                if next(alive) < 12:
                    return chat(path, body)
                dying.append(asyncio.create_task(stack.aclose()))
                return [(0.0, None)]

            dying: list[asyncio.Task] = []
            url, _ = await stack.enter_async_context(serving(respond))
            load = Load(output_tokens=2)
            with pytest.raises(BenchError, match="cannot connect"):
                await sweep(Target(url=url, model="m"), (2, 8), load=load, on_level=seen.append)
            await asyncio.gather(*dying)
        return seen

    assert [level.concurrency for level in asyncio.run(main())] == [2]


@pytest.mark.parametrize("levels", [(), (0,), (1, -1)])
def test_levels_must_be_positive(levels) -> None:
    with pytest.raises(BenchError):
        asyncio.run(sweep(Target(url="http://127.0.0.1:1", model="m"), levels, load=Load()))
