"""Commands that measure and show what was measured: bench, runs, report."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from plimsoll.app import running
from plimsoll.app.settings import Settings
from plimsoll.cli import options
from plimsoll.errors import BenchError, SpecError
from plimsoll.units import parse_seconds

if TYPE_CHECKING:
    from plimsoll.bench.measure import Level
    from plimsoll.bench.pace import Pace
    from plimsoll.bench.summary import Slo

runs = typer.Typer(name="runs", help="Measured runs: list, show, compare, export, import.", no_args_is_help=True)
Route = Literal["chat", "completions", "embeddings", "rerank"]
Pattern = Literal["poisson", "constant", "bursty"]
Record = Annotated[str, typer.Argument(help="A run's id or the beginning of it, or a file.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file to `app`."""
    app.command()(bench)
    app.command()(report)
    app.add_typer(runs)


def bench(
    where: Annotated[
        str | None, typer.Argument(metavar="[URL|NAME]", help="An address, or a deployment; left out: the only one.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Served model; left out: the first one.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="For an address of others.")] = None,
    route: Annotated[Route, typer.Option(help="What is asked for.")] = "chat",
    concurrency: Annotated[str, typer.Option("--concurrency", "-c", help="Levels, such as 1,2,4,8.")] = "1,2,4,8,16",
    rate: Annotated[str | None, typer.Option(help="Arrivals per second instead, such as 0.5,1,2.")] = None,
    arrivals: Annotated[Pattern, typer.Option(help="How they come, with --rate.")] = "poisson",
    trace: Annotated[float | None, typer.Option(help="Replay the times in --data at this speed.")] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 64,
    output_tokens: Annotated[int, typer.Option(min=1)] = 48,
    prefix_tokens: Annotated[int, typer.Option(min=0, help="Of the prompt, shared within a family.")] = 0,
    families: Annotated[int, typer.Option(min=1)] = 1,
    turns: Annotated[int, typer.Option(min=1, help="Turns of each chat session.")] = 1,
    data: Annotated[str | None, typer.Option(help="ShareGPT, JSONL or trace file instead of made-up prompts.")] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Per level.")] = None,
    seconds: Annotated[str | None, typer.Option(help="Per level, such as 30s.")] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Requests of each worker left out of the figures.")] = 0,
    repeats: Annotated[int, typer.Option(min=1)] = 1,
    processes: Annotated[int, typer.Option(min=1, help="Generate the load out of so many processes.")] = 1,
    slo: Annotated[str | None, typer.Option(help="Service level, such as ttft=500ms,tpot=50ms.")] = None,
    edge: Annotated[bool, typer.Option("--edge", help="Find the highest pace that keeps the --slo.")] = False,
    seed: Annotated[int | None, typer.Option(help="The same prompts and arrivals again.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the record to this file.")] = None,
    as_json: options.Json = False,
) -> None:
    """Measure an OpenAI-compatible address: latency and throughput per level, kept as a record."""
    from plimsoll.app import measuring
    from plimsoll.bench.load import Load
    from plimsoll.bench.records import to_json
    from plimsoll.bench.report import level_json, table_lines
    from plimsoll.bench.target import Target

    settings = Settings.resolve(os.environ)
    load = Load(
        route=route,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        prefix_tokens=prefix_tokens,
        families=families,
        turns=turns,
        data=data,
        requests=requests,
        seconds=None if seconds is None else parse_duration(seconds, "--seconds"),
        warmup=warmup,
    )
    if where and "://" in where:
        wanted = measuring.Measuring(target=Target(url=where, model=model or "", api_key=api_key))
    else:
        found = running.find(settings, where)
        if not found.address:
            raise BenchError(f"{found.name} cannot be measured: it is {found.state}", hint="`plimsoll status` says why")
        wanted = measuring.of_deployment(found, model or found.models[0])
    wanted = replace(
        wanted,
        load=load if seed is None else replace(load, seed=seed),
        paces=_paces(concurrency, rate, arrivals, trace),
        slo=parse_slo(slo),
        repeats=repeats,
        processes=processes,
        edge=edge,
    )
    levels: list[Level] = []
    record = measuring.measure(wanted, settings=settings, on_level=levels.append)
    if out is not None:
        out.write_bytes(to_json(record))
    if as_json:
        print(json.dumps({"id": record.id, "levels": [level_json(level) for level in levels]}, indent=2))
        return
    print("\n".join(table_lines(levels)))
    print(f"kept as {record.id}: `plimsoll runs show {record.id}`")


@runs.command("list")
def list_runs(as_json: options.Json = False) -> None:
    """Every run that was kept, newest first."""
    from plimsoll.app.measuring import list_records
    from plimsoll.bench.pace import label
    from plimsoll.cli.draw import lines_of

    rows = [
        (
            record.id,
            datetime.fromtimestamp(record.created_s, UTC).astimezone().strftime("%Y-%m-%d %H:%M"),
            record.name or record.address,
            ", ".join(dict.fromkeys(level.model for level in record.levels)),
            " ".join(label(level.pace) for level in record.levels),
            f"{max((level.summary.tokens_per_s for level in record.levels), default=0.0):.1f}",
        )
        for record in list_records(Settings.resolve(os.environ))
    ]
    names = ("ID", "WHEN", "WHERE", "MODEL", "LEVELS", "BEST TOKENS/S")
    if as_json:
        print(json.dumps([dict(zip((n.lower() for n in names), row, strict=True)) for row in rows], indent=2))
    else:
        print("\n".join(lines_of(names, rows)) if rows else "no runs yet; `plimsoll bench` makes one")


@runs.command("show")
def show_run(name: Record, as_json: options.Json = False) -> None:
    """One run's table, or with --json everything that was kept."""
    from plimsoll.app.measuring import find_record
    from plimsoll.bench.records import to_json, to_level
    from plimsoll.bench.report import bars, table_lines

    record = find_record(Settings.resolve(os.environ), name)
    if as_json:
        print(to_json(record).decode())
        return
    levels = [to_level(level) for level in record.levels]
    print("\n".join((*table_lines(levels), "", *bars(levels))))


@runs.command("compare")
def compare_runs(
    a: Record,
    b: Record,
    fail_above: Annotated[
        float | None, typer.Option(help="Exit with an error if B is worse by more than this share, such as 0.05.")
    ] = None,
) -> None:
    """B over A at every pace that both have, with 95 % intervals; says so when there is no difference to see."""
    from plimsoll.app.measuring import find_record
    from plimsoll.bench.compare import caveats, compare, lines

    settings = Settings.resolve(os.environ)
    first, second = find_record(settings, a), find_record(settings, b)
    differences = compare(first, second)
    print("\n".join((*lines(differences), *(f"note: {caveat}" for caveat in caveats(first, second)))))
    worse = [one for one in differences if fail_above is not None and one.worse_by(fail_above)]
    if worse:
        names = ", ".join(f"{one.metric} at {one.pace}" for one in worse)
        raise BenchError(f"worse by more than {fail_above:.0%}: {names}")


@runs.command("export")
def export_run(
    name: Record,
    out: Annotated[Path, typer.Argument(help="File to write; with several levels their pace is put in the name.")],
    form: Annotated[Literal["vllm", "aiperf", "plimsoll"], typer.Option("--format", help="Whose form.")] = "vllm",
) -> None:
    """Write a run in a form that other tools read."""
    from plimsoll.app.measuring import find_record
    from plimsoll.bench.formats import to_aiperf, to_vllm
    from plimsoll.bench.pace import label
    from plimsoll.bench.records import to_json

    record = find_record(Settings.resolve(os.environ), name)
    if form == "plimsoll":
        out.write_bytes(to_json(record))
        return
    for level in record.levels:
        mark = "" if len(record.levels) == 1 else "-" + label(level.pace).replace("/", "_per_")
        path = out.with_name(f"{out.stem}{mark}{out.suffix}")
        path.write_text(json.dumps(to_vllm(record, level), indent=2) if form == "vllm" else to_aiperf(level))
        print(path)


@runs.command("import")
def import_run(file: Annotated[Path, typer.Argument(help="vLLM bench JSON, AIPerf CSV, or a record of ours.")]) -> None:
    """Keep another tool's result among our own, to compare with."""
    from plimsoll.app.measuring import keep_record, read_record

    print(keep_record(read_record(file), Settings.resolve(os.environ)))


def report(
    name: Record,
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML page to write.")] = Path("report.html"),
) -> None:
    """One self-contained HTML page of a run, with its pictures (extra `report`)."""
    from plimsoll.app.measuring import find_record
    from plimsoll.bench.page import to_html

    out.write_text(to_html(find_record(Settings.resolve(os.environ), name)))
    print(out)


def _paces(concurrency: str, rate: str | None, arrivals: Pattern, trace: float | None) -> tuple[Pace, ...]:
    from plimsoll.bench.pace import Arrivals, Closed, Replay

    if trace is not None:
        return (Replay(speed=trace),)
    try:
        if rate is not None:
            return tuple(Arrivals(rate_per_s=float(one), pattern=arrivals) for one in rate.split(","))
        return tuple(Closed(concurrency=int(one)) for one in concurrency.split(","))
    except ValueError as problem:
        raise SpecError(f"not a list of numbers: {rate or concurrency!r}", hint="such as 1,2,4") from problem


def parse_duration(text: str, flag: str) -> float:
    """Seconds of a flag's value such as 500ms or 20m. SpecError if it is none."""
    try:
        return parse_seconds(text)
    except ValueError as problem:
        raise SpecError(f"{flag}: {problem}") from problem


def parse_slo(text: str | None) -> Slo | None:
    """The service level of `ttft=500ms,tpot=50ms`. SpecError for a limit of another name."""
    from plimsoll.bench.summary import Slo

    if text is None:
        return None
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if name.strip() not in ("ttft", "tpot", "e2e") or not equals:
            raise SpecError(f"--slo {part!r} is not a limit", hint="such as ttft=500ms,tpot=50ms,e2e=10s")
        limits[f"{name.strip()}_s"] = parse_duration(value, "--slo")
    return Slo(**limits)
