"""How far a prediction may lie off: widths from held-out errors, by how much is known of cases like it."""

from __future__ import annotations

from collections.abc import Mapping

from plimsoll.plan.speed.coefficients import Table
from plimsoll.plan.speed.keys import arch_of, engine_family, format_of, kind_of
from plimsoll.plan.speed.load import Load, Timing
from plimsoll.plan.types import Candidate

UNSEEN = 0.5
"""Half-width, as a logarithm, where a table has no errors at all: a factor of 1.65."""


def case_class(candidate: Candidate, load: Load, timing: Timing) -> tuple[str, ...]:
    """The classes of a case from the narrowest to the widest, by which held-out errors are grouped."""
    device = candidate.devices[0]
    kind = kind_of(device)
    offload = kind != "cpu" and any(word in candidate.options for word in ("cpu_moe", "n_cpu_moe", "n_gpu_layers"))
    many = len(candidate.devices) > 1 or load.concurrency > 1
    family = "far" if candidate.nodes > 1 else "offload" if offload else kind
    shape = "dense" if arch_of(candidate.model) == "dense" else "moe"
    full = "full" if timing.running < load.concurrency * 0.999 else "many" if many else "one"
    return (f"{family} {shape} {full}", f"{family} {full}", family, full, "all")


def half_widths(table: Table, candidate: Candidate, load: Load, timing: Timing) -> Mapping[str, float]:
    """For ttft, tpot and tokens: half of the 80 % interval as a logarithm, wider for what was never measured."""
    classes = case_class(candidate, load, timing)
    extra = _unseen(table, candidate)
    widths = {}
    for quantity in ("ttft", "tpot", "tokens"):
        errors = table.errors.get(quantity, {})
        known = next((errors[name] for name in classes if name in errors), UNSEEN)
        widths[quantity] = (known**2 + extra) ** 0.5
    return widths


def _unseen(table: Table, candidate: Candidate) -> float:
    """Variance for an engine, a kind of device or a format without a single measured case behind it."""
    words = {
        "engine": engine_family(candidate.engine.name),
        "kind": kind_of(candidate.devices[0]),
        "format": format_of(candidate.model),
    }
    missing = sum(1 for level, word in words.items() if table.cases and word not in table.cases.get(level, {}))
    return missing * (UNSEEN / 2) ** 2
