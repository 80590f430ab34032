"""An engine's options as arguments: what the plan set, without what the user's own extra_args set already."""

from __future__ import annotations

from collections.abc import Mapping

from plimsoll.plan.rules.options import options_from_args
from plimsoll.plan.types import Candidate


def planned_options(candidate: Candidate) -> Mapping[str, str | int | float | bool]:
    """`candidate.options` less those that the deployment's extra_args give: they are handed over as they stand."""
    given = options_from_args(candidate.engine.name, candidate.deployment.extra_args)
    return {name: value for name, value in candidate.options.items() if name not in given}


def as_flags(options: Mapping[str, str | int | float | bool]) -> list[str]:
    """`{"ubatch_size": 512, "mlock": True}` as `--ubatch-size 512 --mlock`; False is left out."""
    flags: list[str] = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            flags.append(flag)
        elif value is not False:
            flags += [flag, str(value)]
    return flags
