"""Keys and usage as people handle them: on the command line, while the gateway runs."""

from __future__ import annotations

import time

import httpx
from user_shell import FakeSpec, Shell


def _ask(address: str, token: str | None) -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    body = {"model": "demo", "prompt": "hi", "max_tokens": 4}
    return httpx.post(f"{address}/v1/completions", json=body, headers=headers, trust_env=False).status_code


def test_a_key_opens_counts_and_is_revoked_while_the_gateway_runs(shell: Shell, fake_spec: FakeSpec) -> None:
    token = shell.here("keys", "create", "ann", "--model", "demo", "--requests-per-min", "100")[1].strip()
    shell.ok("up", fake_spec("--ttft", "0.01", "--tpot", "0.001"), "--detach", "--no-bench")
    address = shell.only()["address"]

    assert _ask(address, None) == 401
    assert _ask(address, "sk-wrong") == 401
    assert _ask(address, token) == 200
    assert shell.ok("chat", "hello").strip(), "this machine's own commands need no key of a person"
    assert token not in shell.here("keys", "list")[1]

    shell.here("keys", "revoke", "ann")
    deadline = time.monotonic() + 5
    while _ask(address, token) != 401:
        assert time.monotonic() < deadline, "a revoked key was still good after 5 s"
        time.sleep(0.1)
    shell.ok("down")
    used = {(one["key"], one["model"]): one for one in shell.json("usage")}
    assert used["ann", "demo"]["output_tokens"] >= 4
    assert token not in shell.ok("logs")


def test_a_key_that_is_taken_or_absent_is_one_line(shell: Shell) -> None:
    shell.here("keys", "create", "ann")
    code, _, said = shell.here("keys", "create", "ann")
    assert (code, said.startswith("error: ")) == (7, True)
    assert shell.here("keys", "revoke", "bob")[0] == 7
    assert shell.here("keys", "create", "eve", "--expires", "soon")[0] == 2
