"""Writes a spec as YAML that reads well: what equals the default is left out, and it parses back to the same spec."""

from __future__ import annotations

import yaml

from plimsoll.spec.compose import CoreDumper
from plimsoll.spec.deployment import Spec


def dump_spec(spec: Spec) -> str:
    """YAML text of `spec`; `parse_spec(dump_spec(spec), name=...)` equals it."""
    values = spec.model_dump(mode="json", exclude_defaults=True)
    return yaml.dump(values, Dumper=CoreDumper, sort_keys=False, allow_unicode=True, width=120)
