"""Which engines can be started here, and in which version."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Mapping

from plimsoll.engines.fake import Fake
from plimsoll.engines.llamacpp import LlamaCpp
from plimsoll.engines.protocol import Engine


def engines() -> Mapping[str, Engine]:
    """Every engine that Plimsoll knows, by name; `facts.installed` says whether it can start here."""
    found: dict[str, Engine] = {"llamacpp": _llamacpp(), "fake": Fake(command=(sys.executable, "-m", _SERVE_FAKE))}
    return found


_SERVE_FAKE = "plimsoll.engines.serve_fake"


def _llamacpp() -> LlamaCpp:
    command = (sys.executable, "-m", "plimsoll.engines.serve_llamacpp")
    if importlib.util.find_spec("xllamacpp") is None:
        return LlamaCpp(command=command, version="0", installed=False)
    return LlamaCpp(command=command, version=importlib.metadata.version("xllamacpp"))
