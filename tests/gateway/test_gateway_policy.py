"""Routing: names to replicas, and which replica; laws rather than examples where there are any."""

from __future__ import annotations

import asyncio
import collections

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_in import Got, ask, gateway, post, run, sized, standing, upstream

from plimsoll.errors import GatewayError
from plimsoll.gateway.policy import Load, PrefixMap, choose, prompt_blocks
from plimsoll.gateway.table import RouteTable

loads = st.lists(
    st.builds(
        Load,
        st.uuids().map(str),
        st.integers(0, 50),
        st.integers(0, 10**6),
        st.sampled_from([0.5, 1.0, 4.0]),
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None)
@given(loads, st.binary(max_size=8))
def test_the_choice_is_a_candidate_and_else_the_least_loaded(candidates: list[Load], session: bytes) -> None:
    assert 0 <= choose(candidates, session=session) < len(candidates)
    chosen = candidates[choose(candidates)]
    assert chosen.tokens / chosen.weight == min(c.tokens / c.weight for c in candidates)


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(1, 200))
def test_one_prefix_cannot_pile_up_on_one_replica(count: int, requests: int) -> None:
    running = [0] * count
    for _ in range(requests):
        now = [Load(str(i), n, n * 100) for i, n in enumerate(running)]
        running[choose(now, session=b"all the same", prefix={"0": 99})] += 1
    assert max(running) <= 1.25 * requests / count + 2


def test_a_session_stays_and_sessions_spread_by_weight() -> None:
    idle = [Load("a", 0, 0), Load("b", 0, 0), Load("c", 0, 0, 2.0)]
    sessions = [b"session-%d" % i for i in range(2000)]
    spread = collections.Counter(choose(idle, session=session) for session in sessions)
    assert spread[2] / 2000 == pytest.approx(0.5, abs=0.05)
    fewer = idle[:2]
    assert all(choose(fewer, session=s) == choose(idle, session=s) for s in sessions if choose(idle, session=s) != 2)


def test_the_longest_cached_beginning_wins() -> None:
    seen = PrefixMap()
    shared = b'{"messages":"' + b"a" * 2000
    seen.add(prompt_blocks(shared + b"b" * 2000), "one")
    seen.add(prompt_blocks(shared + b"c" * 4000), "two")
    found = seen.match(prompt_blocks(b'{"model":"m", "messages":"' + b"a" * 2000 + b"c" * 9000))
    assert max(found, key=found.__getitem__) == "two"
    assert seen.match(prompt_blocks(b'{"messages":"' + b"z" * 5000)) == {}


def test_the_map_of_prefixes_is_bounded() -> None:
    seen = PrefixMap(limit=100)
    for i in range(50):
        seen.add(prompt_blocks(b"%05d" % i * 1000), "one")
    assert len(seen) == 100
    assert seen.match(prompt_blocks(b"00049" * 1000))


def test_requests_with_one_prefix_go_to_one_replica() -> None:
    async def answer(got: Got, writer: asyncio.StreamWriter) -> None:
        writer.write(sized(b"{}"))

    async def test() -> None:
        async with (
            standing(answer) as one, standing(answer) as two,
            gateway(upstream(one.port), upstream(two.port)) as (front, _),
        ):  # fmt: skip
            for i in range(6):
                body = {"model": "m", "messages": [{"role": "user", "content": "same " * 500 + str(i)}]}
                await ask(front.address, post("/v1/chat/completions", body))
            assert sorted((len(one.got), len(two.got))) == [0, 6]

    run(test())


def test_names_aliases_and_wildcards() -> None:
    replica = (upstream(1),)
    table = RouteTable(models={"qwen3": replica, "default": replica, "gpt-*": replica, "gpt-4*": replica})
    assert [table.resolve(name) for name in ("qwen3", "default", "gpt-3.5", "gpt-4o")] == [
        "qwen3", "default", "gpt-*", "gpt-4*",
    ]  # fmt: skip
    with pytest.raises(GatewayError, match="'qwen'"):
        table.resolve("qwen")
