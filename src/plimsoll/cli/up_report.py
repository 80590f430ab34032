"""`up` on a terminal, in a pipe, or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rich.console import Console

from plimsoll.app.chat import FirstAnswer
from plimsoll.app.measuring import FIRST_LOAD
from plimsoll.app.running import RunningDeployment
from plimsoll.app.serial import plan_to_json
from plimsoll.bench.measure import Level
from plimsoll.bench.report import level_json, remarks, table_cells
from plimsoll.cli.draw import draw_plan
from plimsoll.cli.fetching import FetchProgress
from plimsoll.engines.builds import Order
from plimsoll.plan.types import Plan, Replica
from plimsoll.units import format_bytes, format_seconds

_HEADER = ("at once", "tokens/s each", "tokens/s in all", "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99")
_WIDTHS = (7, 13, 15, 9, 9, 9, 9)


class TerminalReport:
    """Each step as it happens, for a person."""

    def __init__(self, console: Console, *, ask: bool) -> None:
        self._console = console
        self._ask = ask
        self._fetching = FetchProgress(console)
        self._rows = 0
        self._notes: dict[str, None] = {}
        self._embeds: set[str] = set()

    def planned(self, plan: Plan) -> None:
        """Draw it."""
        self._embeds = {one.candidate.deployment.name for one in plan.replicas if one.candidate.model.task == "embed"}
        draw_plan(self._console, plan)

    def confirm(self, question: str) -> bool:
        """Ask, if there is somebody to ask."""
        return not self._ask or self._console.input(f"{question} [y/N] ").strip().lower() in ("y", "yes")

    def installing(self, order: Order) -> None:
        """Say what, and why not the newest."""
        why = f", not the newest: {order.why}" if order.why else ""
        self._say(f"Installing {order.build.engine} {order.version} for {order.build.vendor}{why}")

    def installer_said(self, line: str) -> None:
        """Its own words, set in."""
        self._say(f"  {line}")

    def fetching(self, name: str, done_bytes: int, total_bytes: int | None) -> None:
        """A bar on a terminal; in a pipe one line when it is there."""
        self._fetching(name, done_bytes, total_bytes)

    def starting(self, replicas: tuple[Replica, ...], *, state_dir: Path) -> None:
        """Name what starts."""
        self._fetching.close()
        names = ", ".join(f"{one.name} ({one.candidate.engine.name})" for one in replicas)
        self._say(f"Starting {names}; logs in {state_dir / 'logs'}")

    def ready(self, running: RunningDeployment, *, start_s: float) -> None:
        """Say so."""
        self._say(f"Ready after {format_seconds(start_s)}: {running.address}")

    def answered(self, answer: FirstAnswer) -> None:
        """The answer itself, and how long its first token took."""
        self._say(f'First answer, first token after {format_seconds(answer.first_token_s)}: "{answer.text}"')

    def measured(self, level: Level) -> None:
        """One row; the head of the table before the first."""
        if not self._rows:
            sizes = f"{FIRST_LOAD.prompt_tokens} tokens in, {FIRST_LOAD.output_tokens} out"
            self._say(f"\nMeasured through the gateway ({sizes}):")
            self._say("  ".join(head.rjust(width) for head, width in zip(_HEADER, _WIDTHS, strict=True)))
        self._rows += 1
        self._say("  ".join(cell.rjust(width) for cell, width in zip(table_cells(level), _WIDTHS, strict=False)))
        self._notes |= dict.fromkeys(remarks([level]))

    def up(self, running: RunningDeployment, *, detached: bool) -> None:
        """Planned beside reported, the address and how to use it."""
        for note in self._notes:
            self._say(f"  {note}")
        if running.observations:
            self._say("\nMemory, planned and as the engine reports it:")
            for one in running.observations:
                if one.quantity.endswith("_bytes") and one.planned is not None:
                    self._say(
                        f"  {one.quantity.removesuffix('_bytes').replace('_', ' '):<14}"
                        f"{format_bytes(one.planned):>12} planned {format_bytes(one.actual):>12} reported"
                    )
        self._say(_usage(running, self._embeds))
        self._say(
            f"`plimsoll down {running.name}` stops it." if detached else "Ctrl-C stops it and everything it started."
        )

    def stopping(self) -> None:
        """Say so."""
        self._say("\nStopping ...")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class JsonReport:
    """One JSON document on stdout when everything is up (or at once for a dry run)."""

    def __init__(self) -> None:
        self._document: dict[str, Any] = {}

    def planned(self, plan: Plan) -> None:
        """Keep it."""
        self._document["plan"] = json.loads(plan_to_json(plan))

    def confirm(self, question: str) -> bool:
        """Nobody is there to ask: --yes decided already."""
        return True

    def installing(self, order: Order) -> None:
        """Keep it."""
        self._document.setdefault("installed", []).append(f"{order.build.engine}=={order.version}")

    def installer_said(self, line: str) -> None:
        """Say it where it is no data."""
        print(line, file=sys.stderr)

    def fetching(self, name: str, done_bytes: int, total_bytes: int | None) -> None:
        """Nothing to print."""

    def starting(self, replicas: tuple[Replica, ...], *, state_dir: Path) -> None:
        """Keep where the logs are."""
        self._document["logs"] = str(state_dir / "logs")

    def ready(self, running: RunningDeployment, *, start_s: float) -> None:
        """Keep how long it took."""
        self._document |= {"address": running.address, "start_s": start_s}

    def answered(self, answer: FirstAnswer) -> None:
        """Keep it."""
        self._document["first_answer"] = {"text": answer.text, "first_token_s": answer.first_token_s}

    def measured(self, level: Level) -> None:
        """Keep the row."""
        self._document.setdefault("measured", []).append(level_json(level))

    def up(self, running: RunningDeployment, *, detached: bool) -> None:
        """Print the document."""
        self._document["deployment"] = running.as_json()
        print(json.dumps(self._document, indent=2), flush=True)

    def stopping(self) -> None:
        """Say it where it is no data."""
        print("stopping", file=sys.stderr)


def _usage(running: RunningDeployment, embeds: Collection[str]) -> str:
    """The address, a curl line and the same in Python, for the first model that answers in words if there is one."""
    model = next((name for name in running.models if name not in embeds), running.models[0])
    route, body, call, shown = (
        ("embeddings", '"input": "Hello!"', 'embeddings.create(model="{}", input="Hello!")', "data[0].embedding[:4]")
        if model in embeds
        else (
            "chat/completions",
            '"messages": [{"role": "user", "content": "Hello!"}]',
            'chat.completions.create(model="{}", messages=[{{"role": "user", "content": "Hello!"}}])',
            "choices[0].message.content",
        )
    )
    key = ' -H "Authorization: Bearer $KEY"' if running.asks_key else ""
    return f"""
Address: {running.address}/v1

  curl {running.address}/v1/{route}{key} -H 'Content-Type: application/json' \\
    -d '{{"model": "{model}", {body}}}'

  from openai import OpenAI
  client = OpenAI(base_url="{running.address}/v1", api_key="{"..." if running.asks_key else "none"}")
  answer = client.{call.format(model)}
  print(answer.{shown})
"""
