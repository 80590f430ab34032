"""Speed: times and rates against what others measured.

    python -m benchmarks.accuracy speed FILE.csv [--json] [--rows] [--held-out SILICON.csv]
    python -m benchmarks.accuracy datacenter FILE.csv [--json] [--rows] [--held-out REPORTS.csv]

`speed` reads public reports of every kind, `datacenter` a benchmark of data-centre GPUs with TTFT and TPOT in each row.
Plainly, FILE is held against the table in the package, which FILE may have gone into. With --held-out the model is
fitted anew to FILE and the other table together, leaving out a sixth of the sources (speed) or one architecture and,
apart from that, one kind of GPU (datacenter) at a time, and judged on what was left out.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from benchmarks.accuracy_score import percentile
from benchmarks.calibrate import (
    HeldOut,
    by_model,
    by_source,
    by_system,
    predicted,
    read_reports,
    read_silicons,
    widths,
)
from benchmarks.speed_rows import Case

from plimsoll.plan.speed import shipped
from plimsoll.plan.speed.intervals import UNSEEN, half_widths

_APART = 0.05
"""Two measurements closer than this are not held against each other for their order."""


def main(arguments: list[str], *, silicon: bool = False) -> int:
    """Print the accuracy over a file; 0 always, for the numbers are the result."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.accuracy {'datacenter' if silicon else 'speed'}")
    parser.add_argument("file", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", action="store_true", help="every row, not only the worst")
    parser.add_argument("--held-out", type=Path, metavar="OTHER.csv", help="refit with OTHER, leaving parts out")
    options = parser.parse_args(arguments)
    cases = (read_silicons if silicon else read_reports)(options.file)
    with options.file.open(encoding="utf-8") as lines:
        rows = sum(1 for _ in lines) - 1
    results: dict[str, dict[str, object]] = {}
    for name, held in _runs(cases, silicon=silicon, other=options.held_out):
        results[name] = summary(held, rows=rows)
        if options.rows and not options.json:
            for item in sorted(held, key=lambda item: item.case.id):
                print(_row(item))
    if options.json:
        json.dump(results, sys.stdout, indent=1)
        print()
    else:
        for name, result in results.items():
            show(name, result)
    return 0


def _runs(cases: list[Case], *, silicon: bool, other: Path | None) -> list[tuple[str, list[HeldOut]]]:
    if other is None:
        predictor = shipped()
        held = [predicted(case, predictor) for case in cases]
        return [("with the table of the package", [_with_interval(item) for item in held])]
    if silicon:
        reports = read_reports(other)
        return [
            ("architectures left out", _cross_intervals(by_model(reports, cases))),
            ("kinds of GPU left out", _cross_intervals(by_system(reports, cases))),
        ]
    return [("sources left out", _cross_intervals(by_source(cases, read_silicons(other))))]


def _with_interval(item: HeldOut) -> HeldOut:
    predictor = shipped()
    timing = predictor.timing(item.case.candidate, item.case.load, item.case.ledger)
    width = half_widths(predictor.table, item.case.candidate, item.case.load, timing)[item.case.kind]
    return _between(item, width)


def _cross_intervals(held: list[HeldOut]) -> list[HeldOut]:
    """Intervals of each fold from the errors of the other folds: no case stands behind its own."""
    found = []
    for fold in sorted({item.fold for item in held}):
        known = widths(item for item in held if item.fold != fold)
        for item in held:
            if item.fold == fold:
                errors = known.get(item.case.kind, {})
                found.append(_between(item, next((errors[name] for name in item.classes if name in errors), UNSEEN)))
    return found


def _between(item: HeldOut, width: float) -> HeldOut:
    return replace(item, inside=(item.predicted * math.exp(-width), item.predicted * math.exp(width)))


# --- scores -------------------------------------------------------------------------------------------------------


def summary(held: Sequence[HeldOut], *, rows: int) -> dict[str, object]:
    """All scores as plain values."""
    groups: dict[str, Callable[[HeldOut], str]] = {
        "quantity": lambda item: item.case.quantity,
        "regime": lambda item: f"{item.case.regime} {item.case.kind}",
        "engine": lambda item: f"{item.case.candidate.engine.name or '?'} {item.case.kind}",
        "model": lambda item: f"{item.case.candidate.model.id} {item.case.kind}",
        "device": lambda item: f"{item.case.candidate.devices[0].name} {item.case.kind}",
    }
    tables: dict[str, dict[str, object]] = {}
    for title, key in groups.items():
        parts: dict[str, list[HeldOut]] = defaultdict(list)
        for item in held:
            parts[key(item)].append(item)
        tables[title] = {name: _score(part) for name, part in sorted(parts.items())}
    worst = sorted(held, key=lambda item: -abs(math.log(item.predicted / item.case.measured)))[:15]
    return {
        "rows": rows,
        "coverage": len({item.case.id for item in held}) / rows if rows else 0.0,
        "all": _score(held),
        "pairs": pairs(held),
        **tables,
        "worst": [_row(item) for item in worst],
    }


def _score(held: Sequence[HeldOut]) -> dict[str, float]:
    errors = [item.predicted / item.case.measured - 1 for item in held]
    sizes = [abs(error) for error in errors]
    return {
        "cases": len(held),
        "median_ape": statistics.median(sizes),
        "p90_ape": percentile(sizes, 0.9),
        "bias": statistics.median(errors),
        "within_20_percent": sum(size <= 0.2 for size in sizes) / len(sizes),
        "within_2x": sum(0.5 <= 1 + error <= 2.0 for error in errors) / len(errors),
        "inside_interval": sum(item.inside[0] <= item.case.measured <= item.inside[1] for item in held) / len(held),
    }


def pairs(held: Sequence[HeldOut]) -> dict[str, float]:
    """Pairs of one model on one kind of device, one quantity, more than a twentieth apart: how many in right order."""
    groups: dict[tuple[str, str, str], list[HeldOut]] = defaultdict(list)
    for item in held:
        groups[item.case.candidate.model.id, item.case.candidate.devices[0].name, item.case.quantity].append(item)
    right = total = 0
    for group in groups.values():
        for one, other in combinations(group, 2):
            if abs(math.log(one.case.measured / other.case.measured)) < _APART:
                continue
            total += 1
            right += (one.case.measured < other.case.measured) == (one.predicted < other.predicted)
    return {"pairs": total, "ordered_rightly": right / total if total else 0.0}


def _row(item: HeldOut) -> str:
    case = item.case
    devices = case.candidate.devices
    return (
        f"{case.id:60} {case.quantity:7} measured {case.measured:10.4g} predicted {item.predicted:10.4g} "
        f"[{item.inside[0]:.3g}, {item.inside[1]:.3g}] {item.predicted / case.measured - 1:+8.1%}  "
        f"{case.candidate.engine.name} {case.candidate.engine.version} {case.candidate.model.id} "
        f"{len(devices)} x {devices[0].name}"
    )


def show(name: str, result: Mapping[str, object]) -> None:
    """The same as text."""
    print(f"\n# {name}: {result['rows']} rows, coverage {result['coverage']:.1%}, pairs {result['pairs']}")
    print(f"{'':58} {'cases':>5} {'median':>7} {'p90':>7} {'bias':>7} {'<20%':>6} {'<2x':>6} {'inside':>6}")
    for title in ("all", "quantity", "regime", "engine", "model", "device"):
        part: object = {"all": result["all"]} if title == "all" else result[title]
        for word, score in part.items():  # type: ignore[attr-defined]
            print(
                f"{title + ' ' + word:58} {score['cases']:5d} {score['median_ape']:7.1%} {score['p90_ape']:7.1%} "
                f"{score['bias']:+7.1%} {score['within_20_percent']:6.0%} {score['within_2x']:6.0%} "
                f"{score['inside_interval']:6.0%}"
            )
    for line in result["worst"]:  # type: ignore[attr-defined]
        print(f"  worst {line}")
