"""Units of work: a single request, or a session whose next turn needs the last answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from plimsoll.bench.client import Client, Request, clock
from plimsoll.bench.load import Dialect, Load, encode, request_for
from plimsoll.bench.row import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A talk of several turns; each turn sends everything said before."""

    load: Load
    dialect: Dialect
    texts: tuple[str, ...]
    """What the user says, turn by turn."""
    output_tokens: int

    def request(self, turn: int, said: list[dict[str, Any]]) -> Request:
        """The request of one turn after what was `said` (role and content)."""
        messages = [*said, {"role": "user", "content": self.texts[turn]}]
        body = encode(self.load, self.dialect, messages, output_tokens=self.output_tokens)
        return request_for(self.load, body, keep_text=True, tag=f"turn {turn + 1}")


Item = Request | Session


async def do(client: Client, item: Item, intended_s: float) -> list[Row]:
    """Send one item, all turns of it; a later turn is due when the last answer has ended and been thought about."""
    if isinstance(item, Request):
        return [await client.send(item, intended_s)]
    rows: list[Row] = []
    said: list[dict[str, Any]] = []
    for turn, text in enumerate(item.texts):
        if turn and item.load.think_s:
            await asyncio.sleep(item.load.think_s)
        if turn:
            await client.ready()
        row = await client.send(item.request(turn, said), clock() if turn else intended_s)
        rows.append(row)
        if not row.ok:
            break
        said += [{"role": "user", "content": text}, {"role": "assistant", "content": row.text or ""}]
    return rows
