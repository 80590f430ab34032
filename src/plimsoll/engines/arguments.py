"""An engine's options as arguments: what the plan set, without what the user's own extra_args set already."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from plimsoll.plan.rules.options import Value, options_from_args
from plimsoll.plan.types import Candidate

PLAN_ONLY = frozenset({"draft_weights_bytes", "cpu_kvcache_space", "use_v1", "capture_sizes", "rpc_devices"})
"""Options that tell the plan something and are no flags of any engine."""


def planned_options(candidate: Candidate) -> Mapping[str, Value]:
    """`candidate.options` less those that the deployment's extra_args give: they are handed over as they stand."""
    given = options_from_args(candidate.engine.name, candidate.deployment.extra_args)
    return {name: value for name, value in candidate.options.items() if name not in given}


def command_flags(
    planned: Mapping[str, Value | None], candidate: Candidate, *, negate: bool = False, taken: Collection[str] = ()
) -> tuple[str, ...]:
    """`planned` as flags, the candidate's options over them, the deployment's `extra_args` last as they stand.

    Names have underscores. True is the bare flag; None is left out, and so is False, but for an option that `negate`
    makes `--no-NAME` of. What `extra_args` sets is not set a second time. `taken`: options that the adapter itself
    has used in another way.
    """
    extra = [word for word in candidate.deployment.extra_args if word.partition("=")[0] not in taken]
    given = options_from_args(candidate.engine.name, extra)
    options = {name: value for name, value in candidate.options.items() if name not in PLAN_ONLY and name not in taken}
    chosen = {name: value for name, value in {**planned, **options}.items() if name not in given and value is not None}
    off = [name for name, value in chosen.items() if value is False and name in options] if negate else []
    return (*as_flags(chosen), *(flag_of(f"no_{name}") for name in off), *extra)


def as_flags(options: Mapping[str, Value]) -> list[str]:
    """`{"ubatch_size": 512, "mlock": True}` as `--ubatch-size 512 --mlock`; False is left out."""
    flags: list[str] = []
    for name, value in options.items():
        if value is True:
            flags.append(flag_of(name))
        elif value is not False:
            flags += [flag_of(name), word_of(value)]
    return flags


def flag_of(name: str) -> str:
    """`max_model_len` as `--max-model-len`; the key of a nested setting (`spec.draft_model`) keeps its underscores."""
    head, dot, rest = name.partition(".")
    return "--" + head.replace("_", "-") + dot + rest


def word_of(value: Value) -> str:
    """A value as engines read it: 0.9 and 8192, never 8192.0 nor 1e-05."""
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".")
    return str(value)
