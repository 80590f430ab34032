"""Keys, limits and usage: what is counted, what is refused, what is on disk."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_in import EVENT_STREAM, USAGE, Got, ask, chat, chunk, delta, gateway, post, run, sized, standing, upstream

from plimsoll.errors import GatewayError
from plimsoll.gateway.accounts import Accounts
from plimsoll.gateway.keys import ApiKey, Bucket, Holder, KeyRing, digest
from plimsoll.gateway.server import Gateway
from plimsoll.gateway.settings import Settings
from plimsoll.gateway.store import Store, Usage
from plimsoll.gateway.table import RouteTable

ANSWER = b'{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}'


async def answer(got: Got, writer: asyncio.StreamWriter) -> None:
    if got.json.get("stream"):
        writer.write(EVENT_STREAM + chunk(delta("a")) + chunk(USAGE) + b"0\r\n\r\n")
    else:
        writer.write(sized(ANSWER))


@contextlib.asynccontextmanager
async def with_accounts(path: pathlib.Path, port: int) -> AsyncIterator[tuple[Gateway, Store]]:
    store = Store(path)
    accounts = Accounts(store)
    front = Gateway(observe=accounts.note)
    await accounts.start(front)
    await front.start("127.0.0.1", 0)
    front.update(RouteTable(models={"m": (upstream(port),), "n": (upstream(port),)}))
    try:
        yield front, store
    finally:
        await front.stop(0)
        await accounts.stop()
        store.close()


def asks(token: str, model: str = "m", path: str = "/v1/chat/completions", **fields: object) -> bytes:
    return post(path, {"model": model, "messages": [], **fields}, f"authorization: Bearer {token}")


def test_a_key_made_and_revoked_elsewhere_takes_effect(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with standing(answer) as engine, with_accounts(tmp_path / "g.db", engine.port) as (front, _):
            assert (await ask(front.address, chat())).status == 200  # no key anywhere: open to this machine
            elsewhere = Store(tmp_path / "g.db")
            token = elsewhere.create_key("ann", models=("m",))
            await asyncio.sleep(0.7)
            assert (await ask(front.address, chat())).status == 401
            assert (await ask(front.address, asks(token))).status == 200
            assert (await ask(front.address, asks(token, model="n"))).status == 403
            elsewhere.revoke_key("ann")
            await asyncio.sleep(0.7)
            assert "revoked" in (await ask(front.address, asks(token))).error["message"]
            elsewhere.close()

    run(test())


def test_keys_of_the_spec_stay_beside_those_of_the_store(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        store = Store(tmp_path / "g.db")
        stored = store.create_key("ann")
        accounts = Accounts(store, spec_keys=("sk-spec",), own_key="sk-own")
        front = Gateway(Settings(api_keys=("sk-setting",)))
        await accounts.start(front)
        await front.start("127.0.0.1", 0)
        listing = "GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n"
        for token, status in ((stored, 200), ("sk-spec", 200), ("sk-own", 200), ("sk-setting", 200), ("sk", 401)):
            assert (await ask(front.address, listing.format(token).encode())).status == status
        await front.stop(0)
        await accounts.stop()
        store.close()

    run(test())


def test_usage_is_on_disk_within_a_second_and_exact(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with standing(answer) as engine, with_accounts(tmp_path / "g.db", engine.port) as (front, store):
            token = store.create_key("ann")
            await asyncio.sleep(0)
            front.use_keys(KeyRing(store.keys(), now_s=0, unix_s=0))
            for _ in range(3):
                await ask(front.address, asks(token))
            await ask(front.address, asks(token, stream=True))
            await asyncio.sleep(0.7)
            elsewhere = Store(tmp_path / "g.db")
            assert elsewhere.usage() == (
                Usage(key="ann", model="m", requests=4, failed=0, prompt_tokens=26, output_tokens=9),
            )
            elsewhere.close()

    run(test())


def test_the_token_itself_is_nowhere_on_disk(tmp_path: pathlib.Path) -> None:
    store = Store(tmp_path / "g.db")
    token = store.create_key("ann")
    store.close()
    assert token.encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
    again = Store(tmp_path / "g.db")
    assert again.keys()[0].digest == digest(token.encode())
    with pytest.raises(GatewayError, match="'ann'"):
        again.create_key("ann")
    with pytest.raises(GatewayError, match="no limit called"):
        again.create_key("bob", speed=1)
    with pytest.raises(GatewayError, match="'carl'"):
        again.revoke_key("carl")
    again.close()


def holder(**limits: object) -> Holder:
    return Holder(ApiKey(name="k", digest=b"", **limits), now_s=0.0, unix_s=86400.0)


def admit(who: Holder, now_s: float = 0.0, tokens: int = 10, model: str = "m", route: str = "/v1/embeddings") -> None:
    who.admit(model=model, route=route, tokens=tokens, now_s=now_s, unix_s=86400.0 + now_s)


@pytest.mark.parametrize(
    ("limits", "fits", "status"),
    [
        ({"requests_per_min": 3}, 3, 429),
        ({"tokens_per_min": 25}, 2, 429),
        ({"tokens_per_day": 25}, 3, 429),
        ({"concurrency": 2}, 2, 429),
        ({"models": ("other*",)}, 0, 403),
        ({"routes": ("/v1/chat/completions",)}, 0, 403),
    ],
)
def test_limits(limits: dict[str, object], fits: int, status: int) -> None:
    who = holder(**limits)
    for _ in range(fits):
        admit(who)
    with pytest.raises(GatewayError) as caught:
        admit(who)
    assert caught.value.status == status
    assert (caught.value.retry_after_s is not None) == (status == 429)


def test_a_limit_frees_up_after_the_time_it_named() -> None:
    who = holder(requests_per_min=2)
    admit(who)
    admit(who)
    with pytest.raises(GatewayError) as caught:
        admit(who)
    admit(who, now_s=caught.value.retry_after_s or 0)


def test_the_estimate_gives_way_to_what_was_used() -> None:
    who = holder(tokens_per_min=100)
    admit(who, tokens=90)
    who.done(estimated=90, used=5)
    admit(who, tokens=90)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 50)), max_size=50), st.integers(1, 100))
def test_a_bucket_never_gives_more_than_its_limit_and_refill(steps: list[tuple[float, int]], limit: int) -> None:
    bucket, now_s, given_out = Bucket(limit, 0.0), 0.0, 0
    for gap_s, amount in steps:
        now_s += gap_s
        if amount <= limit and not bucket.wait_s(amount, now_s):
            bucket.take(amount)
            given_out += amount
    assert given_out <= limit + now_s * limit / 60 + 1e-6


def test_those_who_wait_are_served_in_turn_between_keys() -> None:
    async def slow(got: Got, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.02)
        writer.write(sized(ANSWER))

    async def test() -> None:
        settings = Settings(api_keys=("sk-many", "sk-few"))
        async with (
            standing(slow) as engine, gateway(upstream(engine.port, concurrency=1), settings=settings) as (front, _),
        ):  # fmt: skip
            many = [asyncio.ensure_future(ask(front.address, asks("sk-many", who="many"))) for _ in range(7)]
            while front.health()[1]["models"]["m"]["waiting"] < 6:
                await asyncio.sleep(0.001)
            few = [asyncio.ensure_future(ask(front.address, asks("sk-few", who="few"))) for _ in range(2)]
            await asyncio.gather(*many, *few)
            order = [got.json["who"] for got in engine.got]
            assert [place for place, who in enumerate(order) if who == "few"][1] <= 6, order

    run(test())


def test_strangers_see_that_it_lives_and_nothing_more() -> None:
    async def test() -> None:
        dead = upstream(1, healthy=False, reason="secret")
        async with gateway(dead, settings=Settings(api_keys=("sk",))) as (front, _):
            got = await ask(front.address, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (got.status, got.json) == (503, {"status": "down"})
            got = await ask(front.address, b"GET /health HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk\r\n\r\n")
            assert got.json["models"]["m"]["reasons"] == ["secret"]

    run(test())


def test_an_expired_key_is_refused() -> None:
    ring = KeyRing([ApiKey(name="k", digest=digest(b"t"), expires_s=10.0)], now_s=0, unix_s=0)
    assert ring.find(b"t", 9.0).key.name == "k"
    with pytest.raises(GatewayError, match="expired"):
        ring.find(b"t", 10.0)


def test_new_keys_do_not_reset_what_the_others_used() -> None:
    key = ApiKey(name="k", digest=digest(b"t"), requests_per_min=1)
    old = KeyRing([key], now_s=0, unix_s=0)
    admit(old.find(b"t", 0))
    new = KeyRing([key, ApiKey(name="l", digest=b"l")], now_s=0, unix_s=0)
    new.take_over(old)
    with pytest.raises(GatewayError, match="limit"):
        admit(new.find(b"t", 0))
