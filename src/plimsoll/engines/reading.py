"""What engines report, read by patterns: memory and tokens from their logs, load from their Prometheus text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from plimsoll.engines.protocol import Observed, Quantity
from plimsoll.units import GIB

_SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{[^}]*\})?\s+([-+.\deE]+|NaN|[+-]Inf)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One kind of log line: the quantities of its groups, in order, in units of `scale`."""

    pattern: re.Pattern[str]
    quantities: tuple[Quantity, ...]
    scale: float = 1.0


def gib(pattern: str, *quantities: Quantity) -> Line:
    """A line whose numbers are GiB, whatever it calls them."""
    return Line(pattern=re.compile(pattern), quantities=quantities, scale=GIB)


def count(pattern: str, *quantities: Quantity) -> Line:
    """A line whose numbers are counts, seconds or ratios; thousands may be divided by commas."""
    return Line(pattern=re.compile(pattern), quantities=quantities)


_FEWEST: frozenset[Quantity] = frozenset({"kv_tokens", "kv_blocks", "max_concurrency"})
"""Of several ranks the poorest counts for all; of everything else the largest is kept."""


def read_lines(lines: Iterable[str], kinds: Sequence[Line], *, version: re.Pattern[str]) -> Observed:
    """All quantities that `kinds` find in `lines`; the version is the first group of `version` that matches."""
    found: dict[Quantity, float] = {}
    named: str | None = None
    used: list[str] = []
    for line in lines:
        text = line.rstrip("\n")
        told = False
        for kind in kinds:
            if match := kind.pattern.search(text):
                told = True
                for quantity, word in zip(kind.quantities, match.groups(), strict=True):
                    if word is not None:
                        _keep(found, quantity, float(word.replace(",", "")) * kind.scale)
        if named is None and (match := version.search(text)):
            named, told = next(group for group in match.groups() if group), True
        if told:
            used.append(text)
    return Observed(quantities=found, version=named, lines=tuple(used))


def _keep(found: dict[Quantity, float], quantity: Quantity, value: float) -> None:
    choose: Callable[[float, float], float] = min if quantity in _FEWEST else max
    found[quantity] = choose(found[quantity], value) if quantity in found else value


def read_exposition(exposition: str, names: Mapping[str, str]) -> dict[str, float]:
    """Neutral names from Prometheus text: labels are summed over, a usage is that of the fullest part."""
    found: dict[str, float] = {}
    for line in exposition.splitlines():
        match = _SAMPLE.match(line)
        if match is None or match[1] not in names or match[2] == "NaN":
            continue
        name, value = names[match[1]], float(match[2])
        found[name] = max(found.get(name, 0.0), value) if name == "kv_usage" else found.get(name, 0.0) + value
    return found
