"""Open loops, sessions, data files, several processes, and how their rows are judged."""

import asyncio
import itertools
import json
import multiprocessing
import statistics
import threading
from array import array
from dataclasses import replace

import made
import pytest
from scripted import answer, paced, serving

from plimsoll.bench.datasets import read_dataset
from plimsoll.bench.load import Load
from plimsoll.bench.measure import Level, measure
from plimsoll.bench.pace import Arrivals, Closed, Replay, replay
from plimsoll.bench.report import level_json, table_lines
from plimsoll.bench.row import Row
from plimsoll.bench.summary import Slo, summarise
from plimsoll.bench.sweep import find_edge
from plimsoll.bench.target import Target
from plimsoll.errors import BenchError


def run(respond, *paces, options=None, tokenize=None, **load) -> tuple[tuple[Level, ...], list]:
    async def main():
        kwargs = {"tokenize": tokenize} if tokenize else {}
        async with serving(respond, **kwargs) as (url, seen):
            sent = Load(**{"output_tokens": 3, "seed": 1} | load)
            return await measure(Target(url=url, model="m"), paces, load=sent, **(options or {})), seen

    return asyncio.run(main())


def chat(path: str, body) -> list:
    return paced(body["max_tokens"], ttft_s=0.01, itl_s=0.005)


def counted_words(body) -> list:
    """A tokenizer of one token per word, but two for long ones."""
    words = body.get("prompt", body.get("content", "")).split()
    return answer(200, {"tokens": [0] * sum(1 if len(word) < 7 else 2 for word in words)})


def first(iterator, count: int) -> list[float]:
    return list(itertools.islice(iterator, count))


@pytest.mark.parametrize(
    ("pattern", "low", "high"), [("constant", 0.0, 1e-9), ("poisson", 0.9, 1.1), ("bursty", 1.7, 2.3)]
)
def test_arrivals_have_their_rate_and_their_spread(pattern, low: float, high: float) -> None:
    at = first(Arrivals(rate_per_s=10.0, pattern=pattern).offsets(seed=7), 5000)
    gaps = [b - a for a, b in itertools.pairwise(at)]
    assert statistics.mean(gaps) == pytest.approx(0.1, rel=0.06)
    assert low <= statistics.pstdev(gaps) / statistics.mean(gaps) <= high
    assert at == first(Arrivals(rate_per_s=10.0, pattern=pattern).offsets(seed=7), 5000)


def test_a_trace_is_replayed_from_its_first_stamp_at_any_speed() -> None:
    assert list(replay([5.0, 6.0, 9.0], speed=2.0)) == [0.0, 0.5, 2.0]
    with pytest.raises(BenchError, match="not in order"):
        replay([2.0, 1.0])


def test_an_open_loop_sends_when_due_however_slow_the_answers() -> None:
    slow = lambda path, body: paced(1, ttft_s=0.2)  # noqa: E731
    [level], _ = run(slow, Arrivals(rate_per_s=50.0, pattern="constant"), requests=20, warmup=5)
    rows = level.run.rows
    due = sorted(row.intended_s for row in rows)
    assert [b - a for a, b in itertools.pairwise(due)] == [pytest.approx(0.02)] * 24
    assert level.summary.lag_s.p50 < 0.002
    assert level.summary.requests == 20
    assert level.summary.offered_per_s == pytest.approx(50, rel=0.1)
    assert level.run.generator.peak_in_flight >= 8
    assert level.concurrency is None
    assert level.label == "50/s"


def test_a_server_that_queues_shows_in_the_latencies_and_is_said() -> None:
    ends = itertools.count(1)
    one_by_one = lambda path, body: paced(1, ttft_s=0.02 * next(ends))  # noqa: E731
    [level], _ = run(one_by_one, Arrivals(rate_per_s=100.0, pattern="constant"), requests=20)
    assert level.summary.ttft_s.max > 0.35
    assert any("did not keep up" in note for note in level.summary.notes)


def test_a_trace_file_is_replayed(tmp_path) -> None:
    file = tmp_path / "trace.jsonl"
    entries = [{"timestamp": 100 * i, "input_length": 600 + i, "output_length": 2, "hash_ids": [1]} for i in range(4)]
    file.write_text("\n".join(json.dumps(entry) for entry in entries))
    [level], seen = run(chat, Replay(speed=2.0), data=str(file))
    due = sorted(row.intended_s for row in level.run.rows)
    assert due[-1] - due[0] == pytest.approx(0.15)
    texts = [body["messages"][0]["content"] for _, body, _ in seen[2:]]
    assert len({text[:2000] for text in texts}) == 1
    assert len(set(texts)) == 4


SHAREGPT = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "x" * 40}]}


@pytest.mark.parametrize(
    ("text", "contents", "outputs"),
    [
        ('{"prompt": "a", "output_tokens": 7}\n\n{"prompt": "b"}', {"a", "b"}, {7, 3}),
        (json.dumps([SHAREGPT, {"conversations": [{"from": "gpt", "value": "first"}]}]), {"hi"}, {10}),
        ('{"messages": [{"role": "system", "content": "s"}]}', {"s"}, {3}),
    ],
)
def test_data_files(tmp_path, text: str, contents: set[str], outputs: set[int]) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(text)
    _, seen = run(chat, Closed(concurrency=1), data=str(file), requests=4)
    assert {body["messages"][0]["content"] for _, body, _ in seen[2:]} == contents
    assert {body["max_tokens"] for _, body, _ in seen[2:]} == outputs


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "is not JSON"), ("{}", "has no prompt"), ("[1]", "not an object"), ("[]", "holds no prompt")],
)
def test_data_files_that_cannot_be_read(tmp_path, text: str, words: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(text)
    with pytest.raises(BenchError, match=words):
        read_dataset(str(file))


def test_a_missing_data_file_is_one_error() -> None:
    with pytest.raises(BenchError, match="cannot read"):
        read_dataset("/nowhere.jsonl")


def test_a_session_sends_everything_said_before() -> None:
    [level], seen = run(chat, Closed(concurrency=1), turns=3, requests=1)
    talks = [body["messages"] for _, body, _ in seen[2:]]
    assert [[said["role"][0] for said in talk] for talk in talks] == [["u"], [*"uau"], [*"uauau"]]
    assert talks[1][1]["content"] == " tok tok tok"
    assert [row.tag for row in level.run.rows] == ["turn 1", "turn 2", "turn 3"]


def test_families_share_their_prefix_and_nothing_else() -> None:
    _, seen = run(chat, Closed(concurrency=1), prompt_tokens=40, prefix_tokens=20, families=2, requests=12)
    texts = [body["messages"][0]["content"] for _, body, _ in seen[2:]]
    assert len({" ".join(text.split()[:20]) for text in texts}) == 2
    assert len({" ".join(text.split()[20:]) for text in texts}) == 12


def test_words_that_the_models_tokenizer_cuts_are_not_used() -> None:
    _, seen = run(chat, Closed(concurrency=1), tokenize=counted_words, prompt_tokens=20, requests=3)
    words = {word for _, body, _ in seen[2:] for word in body["messages"][0]["content"].split()}
    assert words
    assert max(map(len, words)) < 7


def test_without_usage_the_answers_are_counted_with_the_servers_tokenizer() -> None:
    def respond(path: str, body):
        return paced(3, usage=False)

    [level], _ = run(respond, Closed(concurrency=1), tokenize=counted_words, requests=2)
    assert level.summary.counted_by == "tokenizer"
    assert level.summary.output_tokens == 6


def test_lengths_are_drawn_from_within_their_spread() -> None:
    _, seen = run(chat, Closed(concurrency=4), output_tokens=10, spread=0.5, requests=30)
    drawn = {body["max_tokens"] for _, body, _ in seen[2:]}
    assert min(drawn) >= 5
    assert max(drawn) <= 15
    assert len(drawn) > 4


def test_repeats_go_round_and_show_their_spread() -> None:
    called: list[str] = []
    levels, _ = run(
        chat,
        Closed(concurrency=1),
        Closed(concurrency=2),
        options={"repeats": 3, "on_level": lambda level: called.append(level.label)},
    )
    assert called == ["1", "2"] * 3
    assert [len(level.repeats) for level in levels] == [3, 3]
    assert levels[0].spread is not None
    assert level_json(levels[0])["spread_of_repeats"] == levels[0].spread
    assert "spread" in table_lines(levels)[0]


@pytest.mark.parametrize("pace", [Closed(concurrency=5), Arrivals(rate_per_s=40.0, pattern="constant")])
def test_two_processes_are_one_load(pace) -> None:
    [level], seen = run(chat, pace, options={"processes": 2}, requests=12)
    assert level.summary.requests == 12
    assert len({body["messages"][0]["content"] for _, body, _ in seen[2:]}) == 12
    if isinstance(pace, Closed):
        assert level.run.generator.peak_in_flight == 5
    else:
        due = sorted(row.intended_s for row in level.run.rows)
        assert [b - a for a, b in itertools.pairwise(due)] == [pytest.approx(0.025)] * 11


@pytest.mark.parametrize("processes", [1, 2])
def test_a_measurement_that_is_broken_off_leaves_nothing_running(processes: int) -> None:
    async def main() -> None:
        async with serving(lambda *_: paced(2)) as (url, seen):
            load = Load(seconds=60.0, output_tokens=2)
            paces = [Closed(concurrency=2)]
            task = asyncio.create_task(measure(Target(url=url, model="m"), paces, load=load, processes=processes))
            while len(seen) < 5:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, 5.0)

    asyncio.run(main())
    assert multiprocessing.active_children() == []
    assert threading.active_count() == 1


def test_an_error_in_a_process_is_the_measurements_error() -> None:
    with pytest.raises(BenchError, match="no trace"):
        run(chat, Replay(), options={"processes": 2}, data=__file__.replace("test_paces.py", "prompts.jsonl"))


@pytest.mark.parametrize(
    ("breaks_above", "edge", "tried"),
    [(5, 5, [1, 2, 4, 8, 6, 5]), (0, None, [1]), (999, 8, [1, 2, 4, 8]), (1, 1, [1, 2])],
)
def test_the_edge_of_a_service_level(breaks_above: int, edge: int | None, tried: list[int]) -> None:
    [base], _ = run(chat, Closed(concurrency=1), requests=1, options={"slo": Slo(ttft_s=10.0)})
    assert base.summary.slo_share == 1.0
    assert base.summary.goodput_per_s == base.summary.requests_per_s

    async def at(pace: float) -> Level:
        summary = replace(base.summary, slo_share=1.0 if pace <= breaks_above else 0.5)
        return replace(base, pace=Closed(concurrency=int(pace)), summary=summary)

    best, levels = asyncio.run(find_edge(at, most=8))
    assert (best and best.concurrency) == edge
    assert [level.concurrency for level in levels] == tried


def test_an_edge_needs_a_service_level() -> None:
    [level], _ = run(chat, Closed(concurrency=1), requests=1)

    async def at(pace: float) -> Level:
        return level

    with pytest.raises(BenchError, match="service level"):
        asyncio.run(find_edge(at))


def test_what_counts_as_goodput() -> None:
    row = Row(intended_s=0.0, end_s=3.0, arrivals_s=array("d", [1.0, 2.0]), arrival_tokens=array("d", [1.0, 1.0]))
    assert Slo(ttft_s=1.0, tpot_s=1.0, e2e_s=3.0).met(row)
    assert not any(slo.met(row) for slo in (Slo(ttft_s=0.9), Slo(tpot_s=0.9), Slo(e2e_s=2.9)))
    assert not Slo(ttft_s=9.0).met(Row(intended_s=0.0, error="timeout"))


def test_a_run_that_was_not_what_was_asked_for_is_not_valid() -> None:
    run = made.run(1, concurrency=4)
    assert summarise(run, concurrency=4).valid
    [fault] = summarise(run, concurrency=5).invalid
    assert "5 were asked for" in fault
    busy = replace(run, generator=replace(run.generator, cpu_share=0.99))
    assert "99% of a core" in summarise(busy, concurrency=4).invalid[0]
    slow = replace(run, generator=replace(run.generator, timer_lag_s=0.2))
    assert "the load generator is the limit" in summarise(slow, concurrency=4).invalid[0]
    run.rows[0].sent_s += 1.0
    late = summarise(run, concurrency=4)
    assert "sends were late" in late.invalid[0]
    assert "not valid: sends were late" in "\n".join(table_lines([replace(made.level(run), summary=late)]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt_tokens": 0},
        {"requests": 0},
        {"spread": 1.0},
        {"prompt_tokens": 10, "prefix_tokens": 10},
        {"turns": 2, "route": "completions"},
    ],
)
def test_loads_that_make_no_sense(wrong) -> None:
    with pytest.raises(BenchError):
        Load(**wrong)
