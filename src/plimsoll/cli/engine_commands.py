"""Commands about engines: list, install, verify, remove."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from plimsoll.app import environments
from plimsoll.app.settings import Settings
from plimsoll.cli import options
from plimsoll.cli.draw import lines_of, print_lines
from plimsoll.errors import LaunchError

engines = typer.Typer(
    name="engines", help="Engines on this machine: list, install, verify, remove.", no_args_is_help=True
)
Name = Annotated[str, typer.Argument(help="An engine, or ENGINE==VERSION.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file to `app`."""
    app.add_typer(engines)


@engines.command("list")
def list_engines(as_json: options.Json = False) -> None:
    """Every engine that can be started here, and what starts it."""
    settings = Settings.resolve(os.environ)
    found = environments.known_engines(settings)
    installed = environments.list_installed(settings)
    if as_json:
        known = [
            {"name": name, "version": one.facts.version, "found": one.facts.installed, "for": list(one.facts.vendors)}
            for name, one in found.items()
        ]
        records = [{**asdict(one.record), "path": str(one.path)} for one in installed]
        print(json.dumps({"engines": known, "installed": records}, indent=2))
        return
    console = Console(highlight=False)
    rows = [
        (name, one.facts.version if one.facts.installed else "not here", ", ".join(one.facts.vendors))
        for name, one in found.items()
        if not one.facts.fake
    ]
    print_lines(console, lines_of(("ENGINE", "VERSION", "RUNS ON"), rows))
    if installed:
        console.print()
        own = [
            (one.record.name, one.record.vendor, one.record.installed[:10], one.record.installer, str(one.path))
            for one in installed
        ]
        print_lines(console, lines_of(("INSTALLED", "FOR", "ON", "BY", "PATH"), own))


@engines.command("install")
def install_engine(
    name: Name,
    index: Annotated[
        list[str] | None, typer.Option(help="Ask this package index besides; may be given several times.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be installed, and stop.")] = False,
    as_json: options.Json = False,
) -> None:
    """Install an engine into an environment of its own: the build that works with this machine's devices."""
    order = environments.order_engine(name)
    if dry_run:
        shown = {"engine": order.build.engine, "version": order.version, "for": order.build.vendor,
                 "requirements": list(order.requirements), "index": order.build.index, "why": order.why}  # fmt: skip
        print(json.dumps(shown, indent=2))
        return
    _say(f"{order.build.engine} {order.version} for {order.build.vendor}: {' '.join(order.requirements)}")
    if order.why:
        _say(f"not the newest: {order.why}")
    done = environments.install_engine(order, Settings.resolve(os.environ), _say, indexes=tuple(index or ()))
    print(json.dumps({**asdict(done.record), "path": str(done.path)}, indent=2) if as_json else done.path)


@engines.command("verify")
def verify_engine(name: Name) -> None:
    """Start the engine's Python and import it."""
    bad = []
    for one in environments.find_installed(Settings.resolve(os.environ), name):
        faults = environments.verify_engine(one)
        for fault in faults:
            print(f"{one.record.name}: {fault}")
        if faults:
            bad.append(one.record.name)
        else:
            print(f"{one.record.name}: imports, in {one.path}")
    if bad:
        again = bad[0].replace("-", "==", 1)
        raise LaunchError(
            f"{', '.join(bad)} does not work",
            hint=f"`plimsoll engines remove {again}`, then `plimsoll engines install {again}`",
        )


@engines.command("remove")
def remove_engine(name: Name) -> None:
    """Remove what was installed, all versions unless one is named."""
    for one in environments.find_installed(Settings.resolve(os.environ), name):
        environments.remove_engine(one, _say)
        print(f"{one.record.name} is removed")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
