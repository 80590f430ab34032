"""Commands that look and say, and start nothing: plan, render, schema."""

from __future__ import annotations

import json
import os

import typer
from rich.console import Console

from plimsoll.app.planning import make_plan
from plimsoll.app.rendering import rendered
from plimsoll.app.serial import plan_to_json
from plimsoll.app.settings import Settings
from plimsoll.app.target import Overrides, spec_of
from plimsoll.cli import options
from plimsoll.cli.draw import draw_plan
from plimsoll.errors import PlanError
from plimsoll.spec.schema import spec_schema


def register(app: typer.Typer) -> None:
    """Add the commands of this file to `app`."""
    app.command()(plan)
    app.command()(render)
    app.command()(schema)


def plan(
    target: options.Target = None,
    engine: options.Engine = None,
    context: options.Context = None,
    concurrency: options.Concurrency = None,
    on: options.On = None,
    as_json: options.Json = False,
) -> None:
    """Say whether it fits, with what left over, and what would break. Starts nothing."""
    settings = Settings.resolve(os.environ)
    spec = spec_of(target, Overrides(engine=engine, context=context, concurrency=concurrency))
    made = make_plan(spec, settings, on=on)
    if as_json:
        print(plan_to_json(made))
    else:
        draw_plan(Console(highlight=False), made)
    if not made.fits:
        raise PlanError("this does not fit, or would break", hint="the lines above say why and what would do")


def render(
    target: options.Target = None,
    engine: options.Engine = None,
    context: options.Context = None,
    concurrency: options.Concurrency = None,
    as_json: options.Json = False,
) -> None:
    """Print the exact commands, environment and files that `up` would use, instead of running them."""
    settings = Settings.resolve(os.environ)
    spec = spec_of(target, Overrides(engine=engine, context=context, concurrency=concurrency))
    commands = rendered(make_plan(spec, settings), settings)
    print(json.dumps([command.as_json() for command in commands], indent=2) if as_json else "\n\n".join(
        command.as_shell() for command in commands
    ))  # fmt: skip


def schema() -> None:
    """Print the JSON Schema of the spec, for editors."""
    print(json.dumps(spec_schema(), indent=2))
