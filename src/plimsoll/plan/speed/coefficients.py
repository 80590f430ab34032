"""The fitted numbers: each a root and factors by level, as `benchmarks/calibrate.py` wrote them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """What a case runs with. Efficiencies are parts of the device's peak; names in `_s` are seconds."""

    bandwidth: float
    experts: float
    """Of `bandwidth`, while the weights of routed experts are read."""
    spread: float
    """Tokens that choose their experts independently, as a part of all: routing is not even."""
    cache: float
    compute: float
    expert_compute: float
    attention: float
    power: float
    """How memory and arithmetic overlap: 1 adds the two, infinity is the larger of them."""
    layer_s: float
    step_s: float
    sequence_s: float
    allreduce_s: float
    """Latency of one exchange of all ranks, for two ranks; grows with the logarithm of their number."""
    link: float
    network_s: float
    """Added to an exchange, or a hop between stages, that leaves the host."""
    rpc_s: float
    """For each device that an engine of the serial kind drives on another host (llama.cpp's RPC)."""
    start_s: float
    """Of a request before its prompt is looked at: HTTP, tokens, scheduler."""
    prompt_s: float
    """Per prompt token outside of the devices: tokenizer, copies."""
    mixed: float
    """Of the time of other people's prompts, the part by which a running answer is held up."""
    wave: float
    """Of the requests that begin at once, the part that a mean over the run keeps."""
    wait: float
    """Queueing behind others' prompts, against the queue of one server with constant service (M/D/1)."""
    drain: float
    """Time in which a finite run empties, in lengths of one answer."""


NAMES = tuple(entry.name for entry in fields(Coefficients))


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All coefficients of all cases, and how far predictions made with them lay from held-out measurements."""

    roots: Mapping[str, float]
    factors: Mapping[str, Mapping[str, Mapping[str, float]]]
    """By coefficient, level and word."""
    cases: Mapping[str, Mapping[str, int]]
    """By level and word: how many measured cases stand behind it."""
    errors: Mapping[str, Mapping[str, float]]
    """By quantity and class of case: half-width of the 80 % interval, as a logarithm."""
    source: str

    def resolve(self, keys: Mapping[str, str]) -> Coefficients:
        """The coefficients for a case; a word without measurements leaves its parent's value."""
        values = dict(self.roots)
        for name, levels in self.factors.items():
            value = values[name]
            for level, words in levels.items():
                value *= words.get(keys.get(level, ""), 1.0)
            values[name] = value
        return Coefficients(**values)


def read_table(text: str) -> Table:
    """A table from its TOML."""
    raw = tomllib.loads(text)
    return make_table(raw)


def make_table(raw: Mapping[str, Any]) -> Table:
    """A table from its sections: `roots`, `factors`, `cases`, `errors`, `source`."""
    return Table(
        roots=raw["roots"], factors=raw.get("factors", {}), cases=raw.get("cases", {}),
        errors=raw.get("errors", {}), source=raw.get("source", ""),
    )  # fmt: skip


@cache
def shipped_table() -> Table:
    """The table that is part of the package."""
    path = resources.files("plimsoll.facts") / "data" / "speed" / "efficiency.toml"
    return read_table(path.read_text(encoding="utf-8"))
