"""The table of what engines no longer take, and of what goes together with what only within limits.

`data/incompatible.toml` holds the rows; `plan.rules.tables` makes a rule of each, `engines.translate` reads the removed
flags to bring old command lines up to date.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

Row = Mapping[str, Any]


@lru_cache(maxsize=1)
def rows() -> Mapping[str, Any]:
    """The file, by kind of row."""
    text = files("plimsoll.facts").joinpath("data/incompatible.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@lru_cache(maxsize=16)
def architectures(name: str) -> frozenset[str]:
    """One of the lists of architectures."""
    return frozenset(rows()["architectures"][name])


def gguf_name(architecture: str) -> str | None:
    """What llama.cpp's converter calls a class of config.json; None when it is not listed."""
    name: str | None = rows()["gguf_names"].get(architecture)
    return name


def gone_flags(engine: str) -> Mapping[str, Row]:
    """The removed flags of an engine, by name with underscores; for reading old command lines."""
    return {flag_name(flag): {"flag": flag, **row} for flag, row in rows()["gone_flag"].get(engine, {}).items()}


def flag_name(flag: str) -> str:
    """`--max-model-len` as options name it: `max_model_len`."""
    return flag.lstrip("-").replace("-", "_")
