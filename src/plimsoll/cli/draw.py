"""Draw plans, ledgers and measurements as text for a terminal or a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from plimsoll.plan.ledger import DeviceLedger
from plimsoll.plan.types import Finding, Plan, Range, Replica
from plimsoll.units import format_bytes

_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_black", "red", "white")
_BAR_WIDTH = 48


def draw_plan(console: Console, plan: Plan) -> None:
    """The choice, its ledger device by device, what was found and what else there was."""
    for replica in plan.replicas:
        console.print(_headline(replica), soft_wrap=True)
        for device in _distinct(replica.ledger.devices):
            print_lines(console, _ledger_lines(device))
            console.print(_bar(device))
        for line in _speed_lines(replica):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        for note in replica.ledger.notes:
            console.print(f"  note: {note}", markup=False, highlight=False, soft_wrap=True)
    draw_findings(console, plan.findings)
    for note in plan.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    if plan.rejected:
        console.print("Not taken:")
        for rejected in plan.rejected[:5]:
            console.print(f"  {rejected.what}: {rejected.why}", markup=False, highlight=False, soft_wrap=True)


def draw_findings(console: Console, findings: Iterable[Finding]) -> None:
    """One block per finding: what, cause, fix, source; what several deployments share is said once."""
    alike: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        alike.setdefault((finding.rule, finding.what, finding.fix), []).append(finding)
    for (rule, what, fix), group in alike.items():
        first = group[0]
        style = {"error": "bold red", "warning": "yellow", "info": "dim"}[first.severity]
        names = ", ".join(dict.fromkeys(one.deployment for one in group if one.deployment))
        whose = f" {names}:" if names else ""
        console.print(Text.assemble((first.severity, style), f" [{rule}]{whose} {what}"), soft_wrap=True)
        console.print(f"  why: {first.cause}\n  fix: {fix}", markup=False, highlight=False, soft_wrap=True)
        if first.source:
            console.print(Text(f"  says: {first.source}", style="dim"), soft_wrap=True)


def lines_of(headers: Sequence[str], rows: Iterable[Sequence[str]], *, indent: str = "") -> list[str]:
    """Rows in aligned columns, the first one to the left and numbers to the right; never wrapped or cut."""
    whole = [tuple(headers), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in whole) for column in range(len(headers))]
    right = [_is_numeric(row[column] for row in whole[1:]) for column in range(len(headers))]
    return [
        indent
        + "  ".join(
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in whole
    ]


def print_lines(console: Console, lines: Sequence[str]) -> None:
    """The first one bold, all as they are: no markup, no wrapping, so that a pipe gets what a terminal gets."""
    for index, line in enumerate(lines):
        console.print(Text(line, style="bold" if index == 0 else ""), soft_wrap=True)


def _is_numeric(cells: Iterable[str]) -> bool:
    return all(cell == "-" or cell.lstrip("+-")[:1].isdigit() for cell in cells)


def _headline(replica: Replica) -> Text:
    candidate = replica.candidate
    devices = _devices(replica)
    return Text.assemble(
        (candidate.deployment.name, "bold"),
        f"  {candidate.model.architecture}, {candidate.model.params / 1e9:.3g} B parameters,"
        f" {_format(replica)}\n"
        f"  engine   {candidate.engine.name} {candidate.engine.version} on {devices}\n"
        f"  serves   {_capacity(replica)}",
    )


def _speed_lines(replica: Replica) -> list[str]:
    """Predicted speed, as 80 % intervals around what is expected."""
    rows = [
        (
            str(speed.concurrency),
            _range(speed.tokens_per_s, 1.0),
            _range(speed.ttft_s, 1e3),
            _range(speed.tpot_s, 1e3),
            f"{speed.prompt_tokens} in, {speed.output_tokens} out",
        )
        for speed in sorted(replica.speeds, key=lambda speed: speed.concurrency)
    ]
    head = ("at once", "tokens/s in all", "TTFT ms", "TPOT ms", "predicted, 8 of 10 within")
    return lines_of(head, rows, indent="  ") if rows else []


def _range(value: Range, scale: float) -> str:
    expected, low, high = (_figure(one * scale) for one in (value.expected, value.low, value.high))
    return f"{expected} ({low} to {high})"


def _figure(value: float) -> str:
    """Three digits, never as a power of ten: no prediction is better than that."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _capacity(replica: Replica) -> str:
    candidate, ledger = replica.candidate, replica.ledger
    said = f"{candidate.sequences} at once, {candidate.context_tokens} tokens of context each"
    if 0 < ledger.kv_tokens < candidate.sequences * candidate.context_tokens:
        # A paged cache: short requests share what a few long ones would fill.
        return f"up to {said}; the KV cache holds {ledger.kv_tokens} tokens, {ledger.max_concurrency:.1f} full contexts"
    return f"{said} ({ledger.kv_tokens} tokens of KV cache)" if ledger.kv_tokens else said


def _format(replica: Replica) -> str:
    model = replica.candidate.model
    return model.quantization.method if model.quantization else model.dtype


def _devices(replica: Replica) -> str:
    candidate = replica.candidate
    if not candidate.devices or candidate.devices[0].vendor == "cpu":
        return f"{candidate.host.cpu.name}, {candidate.host.cores} cores"
    name = candidate.devices[0].name
    parallel = candidate.parallel
    cut = [
        f"{label}{size}"
        for label, size in (("TP", parallel.tensor), ("PP", parallel.pipeline), ("DP", parallel.data))
        if size > 1
    ]
    return f"{len(candidate.devices)} x {name}" + (f" ({' x '.join(cut)})" if cut else "")


def _distinct(devices: Sequence[DeviceLedger]) -> list[DeviceLedger]:
    """Devices whose account differs; 32 equal ranks are shown once."""
    seen: dict[tuple[object, ...], DeviceLedger] = {}
    for device in devices:
        sizes = tuple((entry.name, entry.bytes) for entry in device.entries)
        seen.setdefault((device.total_bytes, device.limit_bytes, sizes), device)
    return list(seen.values())


def _ledger_lines(device: DeviceLedger) -> list[str]:
    rows: list[tuple[str, ...]] = [
        (entry.name, format_bytes(entry.bytes), entry.basis, entry.source) for entry in device.entries
    ]
    left = f"of {format_bytes(device.limit_bytes)} that may be used, {format_bytes(device.total_bytes)} in all"
    rows.append(("left", format_bytes(device.free_bytes), "", left))
    return lines_of((device.device, "memory", "basis", "from"), rows, indent="  ")


def _bar(device: DeviceLedger) -> Text:
    """Share of the device's memory per entry, one letter and colour each."""
    text = Text("  [")
    scale = _BAR_WIDTH / max(device.total_bytes, device.used_bytes, 1)
    drawn = 0
    for index, entry in enumerate(device.entries):
        width = round(entry.bytes * scale)
        drawn += width
        text.append(entry.name[:1].upper() * width, style=_COLOURS[index % len(_COLOURS)])
    text.append("." * max(0, _BAR_WIDTH - drawn))
    text.append(f"] {device.used_bytes / max(device.total_bytes, 1):.1%}")
    if device.free_bytes < 0:
        text.append("  does not fit", style="bold red")
    return text
