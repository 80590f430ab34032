"""Fit the speed model's efficiencies to measured cases and write them where `predict` reads them.

    python -m benchmarks.calibrate REPORTS.csv SILICON.csv [--write] [--quick]

The columns are those that `benchmarks.speed_rows` reads. Deterministic; no number of the result is typed by hand.
Without --write only what would be written is printed. The widths of intervals come from cases that a fit had not seen:
whole sources, whole models and whole systems are left out in turn (--quick leaves that away and keeps the widths as
they were).
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.accuracy_score import percentile
from benchmarks.speed_fit import as_table, fit, prepare, run_of
from benchmarks.speed_rows import Case, read_report, read_silicon

import plimsoll.facts
from plimsoll.plan.speed import Predictor, shipped
from plimsoll.plan.speed.coefficients import NAMES, Table
from plimsoll.plan.speed.intervals import case_class

TARGET = Path(plimsoll.facts.__file__).parent / "data" / "speed" / "efficiency.toml"
SOURCES = 6
"""Parts into which the sources of reports are dealt for leaving out."""
_EVERY = 3
"""The part of the silicon runs by which intervals are judged: every third, for the sake of time."""
_PRIOR_CASES = 8
"""Cases that a wider class of errors counts for beside a narrower one's own."""
_PART = 0.8
"""Of the truths that an interval shall hold."""

Values = dict[tuple[str, str, str], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """A case, and what a fit without its kind said of it."""

    case: Case
    predicted: float
    fold: str
    classes: tuple[str, ...]
    inside: tuple[float, float] = (0.0, 0.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit, print, and write where asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibrate")
    parser.add_argument("reports", type=Path)
    parser.add_argument("silicon", type=Path)
    parser.add_argument("--write", action="store_true", help="write the table into the package")
    parser.add_argument("--quick", action="store_true", help="no cases left out: the intervals stay as they are")
    options = parser.parse_args(arguments)
    reports, silicon = read_reports(options.reports), read_silicons(options.silicon)
    prepared = prepare([*reports, *silicon])
    values = fit(prepared)
    sources, models = len({case.source for case in reports}), len({case.source for case in silicon})
    source = f"fitted to {len(prepared)} measured cases: {sources} public sources, {models} models on data-centre GPUs"
    table = as_table(values, prepared, source)
    if options.quick:
        table = replace(table, errors=shipped().table.errors)
    else:
        table = replace(table, errors=widths(leave_out(reports, silicon, values)))
    text = as_toml(table)
    sys.stdout.write(text)
    if options.write:
        TARGET.parent.mkdir(exist_ok=True)
        TARGET.write_text(text, encoding="utf-8")
    return 0


def read_reports(path: Path) -> list[Case]:
    """All cases of a table of reports; rows without a case are named on stderr."""
    return [case for case in _read(path, read_report) if isinstance(case, Case)]


def read_silicons(path: Path) -> list[Case]:
    """All cases of a table of the silicon benchmark, two for each row."""
    return [case for cases in _read(path, read_silicon) if isinstance(cases, tuple) for case in cases]


def _read(path: Path, read: Callable[[Mapping[str, str]], object]) -> list[object]:
    with path.open(newline="", encoding="utf-8") as lines:
        found = [(row["id"], read(row)) for row in csv.DictReader(lines)]
    for id, result in found:
        if isinstance(result, str):
            print(f"{path.name} {id}: {result}", file=sys.stderr)
    return [result for _, result in found]


# --- leaving out --------------------------------------------------------------------------------------------------


def leave_out(reports: Sequence[Case], silicon: Sequence[Case], start: Values) -> list[HeldOut]:
    """Every case as a fit sees it that knew neither its source, nor its model, nor (apart) its system."""
    some = silicon_runs(silicon)[::_EVERY]
    return [*by_source(reports, some, start), *by_model(reports, some, start), *by_system(reports, some, start)]


def silicon_runs(silicon: Sequence[Case]) -> list[Case]:
    """Each run of the silicon benchmark once, however often the table repeats it."""
    runs: dict[tuple[object, ...], Case] = {}
    for case in silicon:
        runs.setdefault(run_of(case), case)
    return list(runs.values())


def by_source(reports: Sequence[Case], silicon: Sequence[Case], start: Values | None = None) -> list[HeldOut]:
    """Reports, a sixth of their sources left out at a time."""
    order = Counter(case.source for case in reports).most_common()
    fold = {source: f"sources {number % SOURCES}" for number, (source, _) in enumerate(order)}
    return _held_out(reports, [*reports, *silicon], lambda case: fold.get(case.source, ""), start)


def by_model(reports: Sequence[Case], silicon: Sequence[Case], start: Values | None = None) -> list[HeldOut]:
    """Silicon cases, one architecture left out at a time, also where reports know it."""
    return _held_out(silicon, [*reports, *silicon], _shape, start)


def by_system(reports: Sequence[Case], silicon: Sequence[Case], start: Values | None = None) -> list[HeldOut]:
    """Silicon cases, one kind of GPU left out at a time, also where reports know it."""
    return _held_out(silicon, [*reports, *silicon], lambda case: case.candidate.devices[0].name, start)


def _shape(case: Case) -> str:
    model = case.candidate.model
    return f"{model.architecture} {model.layers} {model.hidden_size}"


def _held_out(
    judged: Sequence[Case], known: Sequence[Case], fold_of: Callable[[Case], str], start: Values | None
) -> list[HeldOut]:
    found = []
    for fold in sorted({fold_of(case) for case in judged}):
        rest = prepare([case for case in known if fold_of(case) != fold])
        values = fit(rest, start=start, rounds=6)
        predictor = Predictor(table=as_table(values, rest, "held out"))
        found += [predicted(case, predictor, fold) for case in judged if fold_of(case) == fold]
    return found


def predicted(case: Case, predictor: Predictor, fold: str = "") -> HeldOut:
    """The case and what `predictor` says of it."""
    timing = predictor.timing(case.candidate, case.load, case.ledger)
    return HeldOut(
        case=case, predicted=case.value(timing), fold=fold, classes=case_class(case.candidate, case.load, timing)
    )


def widths(held: Iterable[HeldOut]) -> dict[str, dict[str, float]]:
    """By quantity and class, the logarithmic error that four fifths of the held-out cases keep; narrow classes lean on
    wide ones."""
    errors: dict[str, dict[str, list[float]]] = {}
    parents: dict[str, str] = {}
    for item in held:
        error = abs(math.log(item.predicted / item.case.measured))
        for name, parent in zip(item.classes, (*item.classes[1:], ""), strict=True):
            errors.setdefault(item.case.kind, {}).setdefault(name, []).append(error)
            parents[name] = parent
    found: dict[str, dict[str, float]] = {}
    for quantity, classes in errors.items():
        known: dict[str, float] = {}
        for name in sorted(classes, key=lambda name: _depth(name, parents)):
            own, count = percentile(classes[name], _PART), len(classes[name])
            above = known.get(parents[name], own)
            known[name] = (own * count + above * _PRIOR_CASES) / (count + _PRIOR_CASES)
        found[quantity] = known
    return found


def _depth(name: str, parents: Mapping[str, str]) -> int:
    depth = 0
    while name := parents[name]:
        depth += 1
    return depth


# --- writing ------------------------------------------------------------------------------------------------------


def as_toml(table: Table) -> str:
    """The table as a file, in a fixed order."""
    lines = [
        "# Written by benchmarks/calibrate.py: not to be edited. The names: plan/speed/coefficients.py.",
        f'source = "{table.source}"',
        "",
        "[roots]",
        *(f"{name} = {table.roots[name]:.5g}" for name in NAMES),
    ]
    for name in NAMES:
        for level, words in sorted(table.factors.get(name, {}).items()):
            lines += ["", f'[factors.{name}."{level}"]', *_entries(words)]
    for level, counts in sorted(table.cases.items()):
        lines += ["", f'[cases."{level}"]', *(f'"{word}" = {count}' for word, count in sorted(counts.items()))]
    for quantity, classes in sorted(table.errors.items()):
        lines += ["", f"[errors.{quantity}]", *_entries(classes)]
    return "\n".join(lines) + "\n"


def _entries(values: Mapping[str, float]) -> list[str]:
    return [f'"{word}" = {value:.4g}' for word, value in sorted(values.items())]


if __name__ == "__main__":
    sys.exit(main())
