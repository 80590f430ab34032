"""The command that searches for the best settings: tune."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from plimsoll.app.settings import Settings
from plimsoll.cli import options
from plimsoll.cli.bench_commands import parse_duration, parse_slo
from plimsoll.cli.fetching import FetchProgress
from plimsoll.errors import BenchError, SpecError

if TYPE_CHECKING:
    from plimsoll.app.tuning import Tuned
    from plimsoll.bench.tune import Search, Trial, Value

Objective = Literal["throughput", "latency", "goodput"]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(tune)


def tune(
    target: options.Target = None,
    objective: Annotated[
        Objective, typer.Option("--for", help="Tokens/s in all, time per request, or requests/s within the --slo.")
    ] = "throughput",
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", "-c", min=1, help="Requests in flight while measuring.")
    ] = None,
    slo: Annotated[str | None, typer.Option(help="Service level, such as ttft=500ms,tpot=50ms.")] = None,
    budget: Annotated[str, typer.Option(help="Time to search, starts included.")] = "20m",
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Also try what changes the model's answers, such as an 8-bit KV cache.")
    ] = False,
    engine: options.Engine = None,
    context: options.Context = None,
    knob: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V1,V2", help="Try these values too, such as extra_args.threads=4,8 or env.NAME=1."),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 64,
    output_tokens: Annotated[int, typer.Option(min=1)] = 48,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the best spec to this file.")] = None,
    anew: Annotated[bool, typer.Option("--anew", help="Forget what an earlier search for the same found.")] = False,
    as_json: options.Json = False,
) -> None:
    """Search for the best settings by real runs; prints the best spec. Ended early, it goes on where it stopped."""
    from plimsoll.app.target import Overrides
    from plimsoll.app.tuning import TuneRequest, tune_deployment
    from plimsoll.bench.trials import lines
    from plimsoll.spec.dump import dump_spec

    request = TuneRequest(
        target=target,
        objective=objective,
        overrides=Overrides(engine=engine, context=context),
        concurrency=concurrency,
        slo=parse_slo(slo),
        search=search_within(parse_duration(budget, "--budget"), lossy=lossy),
        knobs=dict(_knob(one) for one in knob or ()),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        anew=anew,
    )
    settings = Settings.resolve(os.environ)
    try:
        with FetchProgress(Console(stderr=True)) as progress:
            tuned = tune_deployment(request, settings, on_trial=lambda one: _say(trial_line(one)), progress=progress)
    except KeyboardInterrupt:
        _say("stopped; the trials made are kept, and the same command goes on from there")
        raise
    text = dump_spec(tuned.spec) if tuned.spec else ""
    if out is not None and tuned.spec:
        out.write_text(text)
    if as_json:
        print(json.dumps(_document(tuned, text), indent=2))
    else:
        # What is printed can be piped into a file: only the spec, unless that has a file already.
        print("\n".join(lines(tuned.tuning)), file=sys.stdout if out else sys.stderr)
        print(text if out is None else "", end="")
    if tuned.spec is None:
        raise BenchError("nothing could be measured", hint="the trials' logs say why", source=str(tuned.directory))


def search_within(budget_s: float, *, lossy: bool) -> Search:
    """How wide and how long to look in so many seconds: about half of them go into the first rung."""
    from plimsoll.bench.tune import Search

    first_s = min(5.0, max(2.0, budget_s / 60))
    start_s = 3.0  # what starting and stopping a small model took
    width = min(18, max(4, int(budget_s / 2 / (first_s + start_s))))
    return Search(budget_s=budget_s, first_s=first_s, width=width, lossy=lossy)


def trial_line(trial: Trial) -> str:
    """One trial as it is made."""
    from plimsoll.bench.trials import settings_of

    settings, figures = settings_of(trial.point), trial.figures
    if trial.status != "measured":
        return f"failed after {trial.cost_s:.0f} s: {settings}: {trial.reason}"
    total = f"{figures['tokens_per_s_total']:.1f} tokens/s" if figures.get("tokens_per_s_total") else f"{trial.score:g}"
    return f"{total}, {trial.seconds:g} s of load: {settings}"


def _document(tuned: Tuned, text: str) -> dict[str, object]:
    tuning = tuned.tuning
    left = Counter(trial.reason for trial in tuning.trials if trial.status == "infeasible")
    return {
        "spec": text or None,
        "best": asdict(tuning.best) if tuning.best else None,
        "default": asdict(tuning.default) if tuning.default else None,
        "pareto": [asdict(trial) for trial in tuning.pareto],
        "effects": [asdict(effect) for effect in tuning.effects],
        "prediction": {"bias": tuning.prediction_bias, "error": tuning.prediction_error},
        "trials": [asdict(trial) for trial in tuning.trials if trial.status != "infeasible"],
        "left_out": dict(left),
        "kept_in": str(tuned.directory),
    }


def _knob(text: str) -> tuple[str, tuple[Value, ...]]:
    from plimsoll.plan.rules.options import parse_value

    key, equals, values = text.partition("=")
    if not key or not values or not equals:
        raise SpecError(f"--knob {text!r} names no values", hint="such as extra_args.threads=4,8")
    return key, tuple(parse_value(value) for value in values.split(","))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
