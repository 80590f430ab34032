"""What the gateway routes by: an immutable snapshot that the supervisor hands over whenever something changes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from plimsoll.errors import GatewayError


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """One engine replica that answers HTTP."""

    name: str
    """Unique in the table; shown in metrics, logs and errors."""
    host: str
    port: int
    model: str | None = None
    """The name to put in the body when it differs from what the client wrote."""
    tasks: tuple[str, ...] = ("chat", "completion")
    """Of chat, completion, embed, rerank, classify."""
    concurrency: int = 16
    """Requests that it is given at once; the rest wait in the gateway."""
    healthy: bool = True
    asleep: bool = False
    """Not running (or still starting), but requests shall wait for it instead of being refused."""
    reason: str | None = None
    """Why it is not healthy, for the people who get the 503."""
    retry_after_s: float = 5.0
    weight: float = 1.0
    base_path: str = ""
    """In front of every path, for an engine that is not mounted at the root."""
    rerank_scores: Literal["probability", "logit", "unknown"] = "unknown"
    """What its /rerank returns; logits are passed through a sigmoid."""
    stream_usage: bool = True
    """Whether it must be asked for a stream's token counts with `stream_options.include_usage`; False for engines that
    do not know it, and for llama.cpp: its last event has them anyway, and loses its timings when it is asked."""
    token_ids: bool = False
    """Whether embeddings may be asked for with token ids: only when the clients' vocabulary is the model's."""
    routes: tuple[str, ...] = ()
    """Paths that the engine serves; empty: not known, and then OpenAI's and rerank are taken for granted."""

    @property
    def key(self) -> tuple[str, str, int]:
        """What stays the same while only its health or limits change."""
        return self.name, self.host, self.port

    def serves(self, *paths: str) -> bool:
        """Whether the engine is known to serve one of `paths`."""
        return any(path in self.routes for path in paths)

    def path_of(self, *paths: str) -> bytes:
        """The first of `paths` that the engine is known to serve, else the first of all; with its base path."""
        known = next((path for path in paths if path in self.routes), paths[0])
        return (self.base_path + known).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTable:
    """Served model names to the replicas behind them; two names may share replicas (an alias).

    A name that ends in `*` takes every model name with that prefix; the longest prefix wins.
    """

    models: Mapping[str, tuple[Upstream, ...]] = field(default_factory=dict)
    created_s: float = 0.0
    """Unix time, for /v1/models."""

    def resolve(self, name: str) -> str:
        """The entry of `models` that serves `name`; GatewayError 404 with the nearest names if none does."""
        if name in self.models:
            return name
        wild = [entry for entry in self.models if entry.endswith("*") and name.startswith(entry[:-1])]
        if wild:
            return max(wild, key=len)
        raise unknown_model(name, self.models)


def unknown_model(name: str, models: Mapping[str, object]) -> GatewayError:
    """OpenAI's 404 for a model that is not served, with the nearest names that are."""
    folded = {model.lower(): model for model in models if not model.endswith("*")}
    near = [folded[match] for match in difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.5)]
    if near:
        hint = f"Did you mean {' or '.join(near)}?"
    elif models:
        hint = f"Served here: {', '.join(sorted(models)[:10])}."
    else:
        hint = "No model is served here yet."
    return GatewayError(
        f"The model '{name[:200]}' does not exist here.", status=404, kind="invalid_request_error", hint=hint
    )
