"""Over many requests: nothing leaks; the access log; TLS; asyncio's own loop."""

from __future__ import annotations

import asyncio
import json
import pathlib
import random
import shutil
import ssl
import subprocess

import pytest
from stand_in import (
    DONE,
    EVENT_STREAM,
    Got,
    ask,
    chat,
    chunk,
    delta,
    gateway,
    post,
    read_answer,
    run,
    sized,
    standing,
    upstream,
)  # fmt: skip

from plimsoll.errors import GatewayError
from plimsoll.gateway.access_log import AccessLog
from plimsoll.gateway.server import Gateway
from plimsoll.gateway.settings import Settings
from plimsoll.gateway.table import RouteTable


async def engine(got: Got, writer: asyncio.StreamWriter) -> None:
    if not got.json.get("stream"):
        writer.write(sized(b"{}"))
        return
    writer.write(EVENT_STREAM)
    for _ in range(5):
        writer.write(chunk(delta("a")))
        await asyncio.sleep(0.002)
    writer.write(chunk(DONE) + b"0\r\n\r\n")


async def crowd(front: Gateway, requests: int, at_once: int, seed: int) -> int:
    """Clients of which a third leaves at a random moment; returns how many were answered in full."""
    draw = random.Random(seed)
    slots = asyncio.Semaphore(at_once)

    async def one() -> int:
        async with slots:
            reader, writer = await asyncio.open_connection(*front.address)
            writer.write(chat(stream=draw.random() < 0.7))
            try:
                async with asyncio.timeout(draw.random() * 0.02 if draw.random() < 0.33 else 20):
                    return (await read_answer(reader)).status == 200
            except TimeoutError:
                return 0
            finally:
                writer.transport.abort()

    return sum(await asyncio.gather(*(one() for _ in range(requests))))


@pytest.mark.parametrize("runner", [run, asyncio.run], ids=["uvloop", "asyncio"])
def test_a_crowd_with_leavers_leaves_nothing_behind(runner) -> None:
    async def test() -> None:
        async with standing(engine) as said, gateway(upstream(said.port, concurrency=8)) as (front, records):
            before = len(asyncio.all_tasks())
            answered = await crowd(front, 400, 16, seed=1)
            for _ in range(200):
                if len(records) == 400 and not front.clients:
                    break
                await asyncio.sleep(0.01)
            assert len(records) == 400
            assert {record.status for record in records} <= {200, 499}
            assert answered <= sum(record.status == 200 for record in records)
            assert answered > 200
            model = front.health()[1]["models"]["m"]
            assert (model["running"], model["waiting"]) == (0, 0)
            assert len(front.clients) == 0
            await asyncio.sleep(0.05)
            left = [task for task in asyncio.all_tasks() if "serve" not in repr(task) and "accept" not in repr(task)]
            assert len(left) <= before

    runner(test())


def test_a_sleeping_model_is_woken_and_those_who_asked_wait_in_order() -> None:
    async def test() -> None:
        async with standing(engine) as said:
            asleep = upstream(said.port, healthy=False, asleep=True, concurrency=1)
            async with gateway(asleep) as (front, records):
                woken: list[str] = []
                front.wakers.append(woken.append)
                assert front.idle_s("m") is None
                waiting = [asyncio.ensure_future(ask(front.address, chat())) for _ in range(3)]
                while front.health()[1]["models"]["m"]["waiting"] < 3:
                    await asyncio.sleep(0.01)
                assert woken == ["m"] * 3
                assert front.idle_s("m") is None
                await asyncio.sleep(0.3)  # longer than a sweep
                front.update(RouteTable(models={"m": (upstream(said.port, concurrency=1),)}))
                assert [(await each).status for each in waiting] == [200] * 3
                assert min(record.queued_s for record in records) > 0.3
                assert 0 <= front.idle_s("m") < 5

    run(test())


def test_the_access_log_has_a_line_for_each_request_and_no_secret(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with standing(engine) as said, gateway(upstream(said.port)) as (front, _):
            log = AccessLog(tmp_path / "logs" / "access.jsonl")
            front.observers.append(log.note)
            await ask(front.address, chat())
            secret = {"model": "nope", "messages": [{"role": "user", "content": "secret words"}]}
            await ask(front.address, post("/v1/chat/completions", secret, "authorization: Bearer sk-secret"))
            log.close()
            text = (tmp_path / "logs" / "access.jsonl").read_text()
            lines = [json.loads(line) for line in text.splitlines()]
            assert [(line["status"], line["model"], line["client"]) for line in lines] == [
                (200, "m", "127.0.0.1"), (404, "", "127.0.0.1"),
            ]  # fmt: skip
            assert "secret" not in text

    run(test())


@pytest.fixture
def certificate(tmp_path: pathlib.Path) -> tuple[str, str]:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl makes the certificate")
    key, cert = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    made = [program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert]
    subprocess.run([*made, *subject], check=True, capture_output=True)
    return cert, key


def test_https(certificate: tuple[str, str]) -> None:
    cert, key = certificate

    async def test() -> None:
        settings = Settings(tls_cert=cert, tls_key=key)
        async with standing(engine) as said, gateway(upstream(said.port), settings=settings) as (front, _):
            trust = ssl.create_default_context(cafile=cert)
            reader, writer = await asyncio.open_connection(*front.address, ssl=trust)
            writer.write(chat(stream=True))
            got = await read_answer(reader)
            assert got.body == delta("a") * 5 + DONE
            writer.close()
            await writer.wait_closed()

    run(test())


def test_a_certificate_that_cannot_be_used_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "bad.pem").write_text("no certificate")
    settings = Settings(tls_cert=str(tmp_path / "bad.pem"), tls_key=str(tmp_path / "none.pem"))
    with pytest.raises(GatewayError, match="cannot be used"):
        run(Gateway(settings).start("127.0.0.1", 0))
