"""Commands that look and say, and start nothing: plan, render, schema."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from plimsoll.app.planning import make_plan
from plimsoll.app.rendering import rendered, rendered_files, write_files
from plimsoll.app.serial import plan_to_json
from plimsoll.app.settings import Settings
from plimsoll.app.target import Overrides, spec_of
from plimsoll.cli import options
from plimsoll.cli.draw import draw_plan
from plimsoll.engines.render.forms import Form
from plimsoll.errors import PlanError
from plimsoll.plan.explain import explain as explain_plan
from plimsoll.plan.rank import Goal
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
    goal: Annotated[Goal, typer.Option("--for", help="What to prefer among the ways that fit.")] = "balanced",
    explain: Annotated[bool, typer.Option("--explain", help="Print the sums, formula by formula.")] = False,
    as_json: options.Json = False,
) -> None:
    """Say whether it fits, with what left over, and what would break. Starts nothing."""
    settings = Settings.resolve(os.environ)
    spec = spec_of(target, Overrides(engine=engine, context=context, concurrency=concurrency))
    made = make_plan(spec, settings, on=on, goal=goal)
    if as_json:
        print(plan_to_json(made))
    elif explain:
        print("\n".join(explain_plan(made)))
    else:
        draw_plan(Console(highlight=False), made)
    if not made.fits:
        raise PlanError("this does not fit, or would break", hint="the lines above say why and what would do")


def render(
    target: options.Target = None,
    engine: options.Engine = None,
    context: options.Context = None,
    concurrency: options.Concurrency = None,
    on: options.On = None,
    form: Annotated[
        Form | None, typer.Option("--as", help="As files for it; left out: each command for reading.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the files into this directory.")] = None,
    image: Annotated[str | None, typer.Option(help="A container image in place of the published one.")] = None,
    as_json: options.Json = False,
) -> None:
    """Print the exact commands, environment and files that `up` would use, instead of running them."""
    settings = Settings.resolve(os.environ)
    spec = spec_of(target, Overrides(engine=engine, context=context, concurrency=concurrency))
    made = make_plan(spec, settings, on=on)
    elsewhere = on is not None
    if form is None and out is None:
        commands = rendered(made, settings, hosts=spec.hosts, elsewhere=elsewhere)
        print(json.dumps([command.as_json() for command in commands], indent=2) if as_json else "\n\n".join(
            command.as_shell() for command in commands
        ))  # fmt: skip
        return
    files = rendered_files(made, settings, form or "shell", hosts=spec.hosts, elsewhere=elsewhere, image=image)
    if out is not None:
        paths = [str(path) for path in write_files(files, out)]
        print(json.dumps(paths, indent=2) if as_json else "\n".join(paths))
    elif as_json:
        print(json.dumps([asdict(file) for file in files], indent=2))
    else:
        print("\n".join(file.text if len(files) == 1 else f"# ---- {file.path}\n{file.text}" for file in files), end="")


def schema() -> None:
    """Print the JSON Schema of the spec, for editors."""
    print(json.dumps(spec_schema(), indent=2))
