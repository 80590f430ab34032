"""Commands that find faults and mend old ways: check, import, explain."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from plimsoll.app.checking import find_faults, mend
from plimsoll.app.settings import Settings
from plimsoll.app.target import Overrides, is_spec_file, spec_of
from plimsoll.cli import options
from plimsoll.cli.draw import draw_findings, lines_of
from plimsoll.engines.diagnosis import explain as explain_log
from plimsoll.engines.translate import translate
from plimsoll.errors import PlanError, SpecError
from plimsoll.plan.types import Finding
from plimsoll.spec.dump import dump_spec

_LONGEST_LOG = 256 << 20
_LONGEST_PATH = 4096


def register(app: typer.Typer) -> None:
    """Add the commands of this file to `app`."""
    app.command()(check)
    app.command("import")(import_)
    app.command("fieldnotes")(fieldnotes)
    app.command()(explain)


def check(
    target: options.Target = None,
    engine: options.Engine = None,
    context: options.Context = None,
    concurrency: options.Concurrency = None,
    on: options.On = None,
    fix: Annotated[bool, typer.Option("--fix", help="Write the mended spec and show what changed.")] = False,
    as_json: options.Json = False,
) -> None:
    """Report everything that would break or surprise, each with its cause and the smallest change that mends it."""
    settings = Settings.resolve(os.environ)
    spec = spec_of(target, Overrides(engine=engine, context=context, concurrency=concurrency))
    console = Console(highlight=False)
    if fix:
        if target is None or not is_spec_file(target):
            raise SpecError("--fix needs a spec file to write", hint="give the path of a .yaml spec")
        mended = mend(spec, settings, on=on, name=target)
        if mended.diff:
            Path(target).write_text(mended.text)
        findings = mended.left
        if not as_json:
            console.print(mended.diff or f"{target}: nothing to mend", markup=False, soft_wrap=True)
    else:
        findings = find_faults(spec, settings, on=on)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    elif findings:
        draw_findings(console, findings)
    else:
        console.print("no fault found")
    _refuse_errors(findings)


def import_(
    old: Annotated[str, typer.Argument(metavar="FILE|COMMAND|-", help="A file, a whole command line, or - for stdin.")],
    model: Annotated[str | None, typer.Option(help="The model, where the old launch does not name one.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the spec here instead of to stdout.")] = None,
    as_json: options.Json = False,
) -> None:
    """Turn an old launch - command line, script, docker run, compose, unit, Modelfile, config.json - into a spec.

    What was renamed, removed, made default or void since its time is told on stderr.
    """
    translation = translate(_read_text(old), model=model)
    if as_json:
        notes = [asdict(note) for note in translation.notes]
        print(json.dumps({"spec": translation.spec().model_dump(mode="json"), "notes": notes}, indent=2))
        return
    for note in translation.notes:
        print(f"{note.fate}: {note.what}: {note.why}", file=sys.stderr)
    text = dump_spec(translation.spec())
    if out is None:
        print(text, end="")
    else:
        out.write_text(text)
        print(out)


def fieldnotes(as_json: options.Json = False) -> None:
    """Replay what people launched on machines of their own: what came of it, and what Plimsoll says beforehand."""
    from plimsoll.app.field_notes import replay

    replayed = list(replay())
    if as_json:
        print(json.dumps([asdict(one) for one in replayed], indent=2))
        return
    rows = [(one.id, one.outcome[:48], one.then.says, one.today.says, one.how, one.today.why[:72]) for one in replayed]
    print("\n".join(lines_of(("CASE", "NOTED", "THEN", "TODAY", "SPEC TODAY", "BECAUSE"), rows)))


def explain(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="An engine's log; `-` reads it from stdin.")],
    engine: Annotated[str | None, typer.Option(help="Whose log it is, where that is known.")] = None,
    exit_code: Annotated[int | None, typer.Option(help="How the engine ended (137: killed).")] = None,
    as_json: options.Json = False,
) -> None:
    """Name the root error in an engine's log, its cause and its fix; what is unknown is said to be."""
    found = explain_log(_read_log(file), engine=engine, exit_code=exit_code)
    if as_json:
        print(json.dumps(asdict(found), indent=2))
        return
    print(found.what)
    if found.known:
        print(f"  why: {found.cause}\n  fix: {found.fix}\n  says: {found.source}")
    for line in found.lines:
        print(f"  {line.number:>6} | {line.text}")


def _read_text(old: str) -> str:
    """The old launch: stdin, a file's text, or the words themselves when they are no path."""
    if old == "-":
        return sys.stdin.read()
    path = Path(old)
    try:
        return path.read_text() if len(old) < _LONGEST_PATH and path.is_file() else old
    except (OSError, UnicodeDecodeError) as problem:
        raise SpecError(
            f"cannot read {old}: {problem}", hint="give a text file, or the command line itself"
        ) from problem


def _read_log(file: str) -> list[str]:
    try:
        data = sys.stdin.buffer.read(_LONGEST_LOG) if file == "-" else Path(file).read_bytes()[-_LONGEST_LOG:]
    except OSError as problem:
        raise SpecError(
            f"cannot read {file}: {problem.strerror}", hint="give the path of a log file, or -"
        ) from problem
    return data.decode(errors="replace").splitlines()


def _refuse_errors(findings: tuple[Finding, ...]) -> None:
    count = sum(finding.severity == "error" for finding in findings)
    if count:
        raise PlanError(f"{count} {'error' if count == 1 else 'errors'} found", hint="`--fix` mends what can be mended")
