"""Keeps a gateway and its store in step: usage goes to disk twice a second, changed keys come back within a second."""

from __future__ import annotations

import asyncio
import concurrent.futures
import sqlite3
import sys
import time

from plimsoll.gateway.keys import ApiKey, KeyRing, digest, named_keys
from plimsoll.gateway.server import Gateway
from plimsoll.gateway.settings import Record
from plimsoll.gateway.store import Store, Usage

_EVERY_S = 0.5


class Accounts:
    """Give `note` to the gateway as its observer, `start` it before the gateway listens and `stop` it after."""

    def __init__(self, store: Store, *, spec_keys: tuple[str, ...] = (), own_key: str | None = None) -> None:
        """`own_key` opens the gateway for Plimsoll's own commands; alone, it asks nobody else for a key."""
        self._store = store
        self._own = () if own_key is None else (ApiKey(name="plimsoll", digest=digest(own_key.encode())),)
        self._spec_tokens = spec_keys
        self._gateway: Gateway | None = None
        self._pending: dict[tuple[str, str], list[int]] = {}
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="gateway-store")
        self._task: asyncio.Task[None] | None = None
        self._version = -1

    def note(self, record: Record) -> None:
        """Add one finished request to the batch; requests that never came to a model are not counted."""
        if not record.model:
            return
        counts = self._pending.get((record.key, record.model))
        if counts is None:
            counts = self._pending[record.key, record.model] = [0, 0, 0, 0, 0]
        counts[0] += 1
        counts[1] += record.status >= 400
        counts[2] += record.prompt_tokens
        counts[3 if record.exact else 4] += record.output_tokens

    async def start(self, gateway: Gateway) -> None:
        """Load the keys and begin to write; a gateway without any key stays open to this machine."""
        self._gateway = gateway
        await self._read_keys()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Write what is left."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._write()
        self._thread.shutdown()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            await self._write()
            await self._read_keys()

    async def _write(self) -> None:
        if not self._pending:
            return
        pending, self._pending = self._pending, {}
        usages = [
            Usage(
                key=key, model=model, requests=counts[0], failed=counts[1], prompt_tokens=counts[2],
                output_tokens=counts[3], estimated_tokens=counts[4],
            )
            for (key, model), counts in pending.items()
        ]  # fmt: skip
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self._store.add_usage, usages, time.time())
        except sqlite3.Error as error:  # a full disk must not stop the answers: keep the counts and try again
            print(f"warning: usage could not be written: {error}", file=sys.stderr)
            for pair, counts in pending.items():
                known = self._pending.setdefault(pair, [0] * 5)
                self._pending[pair] = [a + b for a, b in zip(known, counts, strict=True)]

    async def _read_keys(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            version = await loop.run_in_executor(self._thread, self._store.version)
            if version == self._version or self._gateway is None:
                return
            stored = await loop.run_in_executor(self._thread, self._store.keys)
            unix_s = time.time()
            today = await loop.run_in_executor(self._thread, self._store.tokens_today, unix_s)
        except sqlite3.Error as error:
            print(f"warning: keys could not be read: {error}", file=sys.stderr)
            return
        self._version = version
        tokens = dict.fromkeys((*self._spec_tokens, *self._gateway.settings.api_keys))
        keys = (*named_keys(tokens), *stored)
        if keys:
            keys = (*keys, *self._own)
            self._gateway.use_keys(KeyRing(keys, now_s=loop.time(), unix_s=unix_s, tokens_today=today))
