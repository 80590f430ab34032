"""Commands about the people who use the gateway: keys, usage."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from plimsoll.app.keys import create_key, list_keys, revoke_key, used
from plimsoll.app.settings import Settings
from plimsoll.cli import options
from plimsoll.cli.draw import lines_of
from plimsoll.errors import SpecError
from plimsoll.units import parse_seconds

keys = typer.Typer(name="keys", help="API keys: create, list, revoke.", no_args_is_help=True)
Limit = Annotated[int | None, typer.Option(min=1)]
KeyName = Annotated[str, typer.Argument(help="Whose key it is.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file to `app`."""
    app.add_typer(keys)
    app.command()(usage)


@keys.command("create")
def create(
    name: KeyName,
    model: Annotated[list[str] | None, typer.Option(help="Only this model (or qwen*); several times.")] = None,
    route: Annotated[list[str] | None, typer.Option(help="Only this path, such as /v1/embeddings.")] = None,
    requests_per_min: Limit = None,
    tokens_per_min: Limit = None,
    tokens_per_day: Limit = None,
    concurrency: Limit = None,
    expires: Annotated[str | None, typer.Option(help="After so long, such as 30d.")] = None,
) -> None:
    """Make a key and print it: this is the only time that it can be read."""
    limits = {
        "models": tuple(model or ()),
        "routes": tuple(route or ()),
        "requests_per_min": requests_per_min,
        "tokens_per_min": tokens_per_min,
        "tokens_per_day": tokens_per_day,
        "concurrency": concurrency,
        "expires_s": None if expires is None else time.time() + _seconds(expires, "--expires"),
    }
    print(create_key(Settings.resolve(os.environ), name, limits))


@keys.command("list")
def list_all(as_json: options.Json = False) -> None:
    """Every key by name, with its limits; never the key itself."""
    found = [
        {field: value for field, value in asdict(key).items() if field != "digest" and value not in (None, (), False)}
        for key in list_keys(Settings.resolve(os.environ))
    ]
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for key in found:
        print(_line(key))
    if not found:
        print("no keys: the gateway listens on the loopback address only, and asks nobody")


@keys.command("revoke")
def revoke(name: KeyName) -> None:
    """Refuse a key from now on; running gateways notice within a second."""
    revoke_key(Settings.resolve(os.environ), name)
    print(f"{name} is revoked")


def usage(
    last: Annotated[str | None, typer.Option(help="Only of the last so long, such as 7d (whole hours).")] = None,
    as_json: options.Json = False,
) -> None:
    """Requests and tokens of each key and model."""
    found = used(Settings.resolve(os.environ), last_s=None if last is None else _seconds(last, "--last"))
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=2))
        return
    rows = [
        (
            one.key or "-", one.model, str(one.requests), str(one.failed), str(one.prompt_tokens),
            str(one.output_tokens), str(one.estimated_tokens),
        )
        for one in found
    ]  # fmt: skip
    head = ("KEY", "MODEL", "REQUESTS", "FAILED", "PROMPT TOKENS", "OUTPUT TOKENS", "ESTIMATED")
    print("\n".join(lines_of(head, rows)) if rows else "nothing was used yet")


def _line(key: dict[str, object]) -> str:
    limits = {name: value for name, value in key.items() if name not in ("name", "revoked", "expires_s")}
    said = ", ".join(f"{name} {value}" for name, value in limits.items()) or "no limits"
    if "expires_s" in key:
        said += f", until {datetime.fromtimestamp(float(str(key['expires_s'])), UTC):%Y-%m-%d %H:%M} UTC"
    return f"{key['name']}: {'revoked' if key.get('revoked') else said}"


def _seconds(text: str, flag: str) -> float:
    try:
        return parse_seconds(text)
    except ValueError as problem:
        raise SpecError(f"{flag}: {problem}") from problem
