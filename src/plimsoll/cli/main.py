"""The `plimsoll` command: finds the command and turns errors into one line, a hint and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from plimsoll import __version__
from plimsoll.cli.lazily import LazyGroup
from plimsoll.errors import LaunchError, PlanError, PlimsollError

app = typer.Typer(
    name="plimsoll",
    cls=LazyGroup,
    help="Say what you want to serve; Plimsoll plans it, launches it, fronts it and measures it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"plimsoll {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; exit code as in `plimsoll.errors`, 130 after Ctrl-C, 2 for a wrong flag."""
    try:
        app()
    except PlimsollError as error:
        report(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe left (`plimsoll ps | head -1`): nothing to say, nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def report(error: PlimsollError) -> None:
    """The error on stderr: what, where, the engine's own last words, what to do."""
    print(f"error: {error.message}", file=sys.stderr)
    if isinstance(error, PlanError):
        for finding in error.findings:
            print(f"  {finding}", file=sys.stderr)
    if isinstance(error, LaunchError):
        for line in error.log:
            print(f"  | {line}", file=sys.stderr)
    if error.source:
        print(f"  at: {error.source}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
