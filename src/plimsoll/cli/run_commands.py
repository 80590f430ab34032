"""Commands that start, show and stop what runs: up, ps, status, logs, chat, down."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console

from plimsoll.app import running
from plimsoll.app.settings import Settings
from plimsoll.app.target import Overrides
from plimsoll.cli import options
from plimsoll.cli.draw import lines_of, print_lines
from plimsoll.errors import LaunchError
from plimsoll.units import format_bytes


def register(app: typer.Typer) -> None:
    """Add the commands of this file to `app`."""
    for command in (up, ps, status, logs, chat, down):
        app.command()(command)


def up(
    target: options.Target = None,
    engine: options.Engine = None,
    context: options.Context = None,
    concurrency: options.Concurrency = None,
    host: options.Host = None,
    port: options.Port = None,
    bench: Annotated[bool, typer.Option(help="Measure at 1, 2, 4, 8 and 16 requests at once when it is up.")] = True,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Leave it running and return.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Stop after the plan; the same as `plimsoll plan`.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Download weights and install engines without asking.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Plan, fetch, start, front and measure; then stay until Ctrl-C."""
    # Loaded here, and not for `ps`: it brings the load generator with it.
    from plimsoll.app.up import UpRequest, bring_up
    from plimsoll.cli.up_report import JsonReport, TerminalReport

    request = UpRequest(
        target=target,
        overrides=Overrides(engine=engine, context=context, concurrency=concurrency, host=host, port=port),
        bench=bench,
        detach=detach,
        dry_run=dry_run,
        yes=yes or not sys.stdin.isatty(),
        install=True if yes else None if sys.stdin.isatty() and not as_json else False,
    )
    report = JsonReport() if as_json else TerminalReport(Console(highlight=False), ask=not request.yes)
    bring_up(request, Settings.resolve(os.environ), report)


def ps(as_json: options.Json = False) -> None:
    """List deployments and the state that they are really in."""
    listed = running.list_deployments(Settings.resolve(os.environ))
    if as_json:
        print(json.dumps([one.as_json() for one in listed], indent=2) if listed else "[]")
        return
    if not listed:
        print("nothing runs; `plimsoll up` starts the built-in model")
        return
    rows = [
        (
            one.name,
            one.state,
            one.address or "-",
            ", ".join(one.models),
            f"{sum(replica.state == 'ready' for replica in one.replicas)}/{len(one.replicas)}",
            datetime.fromtimestamp(one.created, UTC).astimezone().strftime("%Y-%m-%d %H:%M"),
        )
        for one in listed
    ]
    print_lines(Console(highlight=False), lines_of(("NAME", "STATE", "ADDRESS", "MODELS", "READY", "SINCE"), rows))


def status(name: options.Name = None, as_json: options.Json = False) -> None:
    """One deployment in full: replicas, processes, what was planned and what the engine reports."""
    settings = Settings.resolve(os.environ)
    shown = running.find(settings, name)
    if as_json:
        print(json.dumps(shown.as_json(), indent=2))
        return
    console = Console(highlight=False)
    console.print(f"{shown.name}: {shown.state}" + (f" at {shown.address}" if shown.address else ""))
    for replica in shown.replicas:
        said = f"  {replica.name}: {replica.state}" + (f" - {replica.reason}" if replica.reason else "")
        console.print(said, markup=False, soft_wrap=True)
        for process in replica.processes:
            said = f"    {process.name}  pid {process.pid or '-'}  port {process.port}  log {process.log_path}"
            console.print(said, markup=False, soft_wrap=True)
    if shown.observations:
        rows = [
            (
                one.replica,
                one.quantity,
                _amount(one.quantity, one.planned),
                _amount(one.quantity, one.actual),
                _off(one),
            )
            for one in shown.observations
        ]
        print_lines(console, lines_of(("REPLICA", "QUANTITY", "PLANNED", "REPORTED", "OFF BY"), rows))


def logs(
    name: options.Name = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as the log grows.")] = False,
    replica: Annotated[str | None, typer.Option(help="Only this replica.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Lines from the end.")] = 200,
) -> None:
    """Print the engines' own logs, of the present run or the last one."""
    for line in running.log_lines(Settings.resolve(os.environ), name, replica=replica, last=lines, follow=follow):
        print(line, flush=follow)


def chat(
    prompt: Annotated[str, typer.Argument(help="What to ask; `-` reads it from stdin.")],
    model: Annotated[str | None, typer.Option(help="Served model; left out: the first one.")] = None,
    name: Annotated[str | None, typer.Option(help="Deployment; left out: the only one.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1)] = 512,
    temperature: Annotated[float | None, typer.Option(min=0)] = None,
) -> None:
    """Ask a running model one question and print the answer as it comes."""
    from plimsoll.app import chat as chatting

    found = running.find(Settings.resolve(os.environ), name)
    if not found.address:
        raise LaunchError(f"{found.name} has no address: it is {found.state}", hint="`plimsoll logs` says why")
    asked = chatting.Asked(
        prompt=sys.stdin.read() if prompt == "-" else prompt,
        model=model or next((one for one in found.models), None),
        max_tokens=max_tokens,
        temperature=temperature,
        api_key=found.api_key,
    )
    for piece in chatting.ask(found.address, asked):
        print(piece, end="", flush=True)
    print()


def down(
    name: options.Name = None,
    every: Annotated[bool, typer.Option("--all", help="Every deployment.")] = False,
) -> None:
    """Stop a deployment and everything that it started, also what a killed Plimsoll left behind."""
    for stopped in running.stop(Settings.resolve(os.environ), name, every=every):
        print(f"{stopped} is down")


def _amount(quantity: str, value: float | None) -> str:
    if value is None:
        return "-"
    return format_bytes(value) if quantity.endswith("_bytes") else f"{value:g}"


def _off(one: running.PlannedAndReported) -> str:
    if not one.planned:
        return "-"
    return f"{(one.planned - one.actual) / one.actual:+.1%}" if one.actual else "-"
