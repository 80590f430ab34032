"""The paths that are passed on to engines, and what each asks of a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One path of the API."""

    path: bytes
    """At the engine."""
    tasks: tuple[str, ...]
    """The model must serve one of them; empty: any model."""
    streams: bool = False
    """Whether `stream` and `stream_options` mean something."""

    @property
    def name(self) -> str:
        """For metrics and logs."""
        return self.path.decode()


_GENERATE = ("chat", "completion")
_ROUTES = (
    Route(path=b"/v1/chat/completions", tasks=_GENERATE, streams=True),
    Route(path=b"/v1/completions", tasks=_GENERATE, streams=True),
    Route(path=b"/v1/embeddings", tasks=("embed",)),
)


def mounted() -> dict[bytes, Route]:
    """Paths as clients write them: with /v1, without, and with it twice (a base URL that already ends in /v1)."""
    paths = {}
    for route in _ROUTES:
        paths[route.path] = route
        paths[route.path.removeprefix(b"/v1")] = route
        paths[b"/v1" + route.path] = route
    return paths


ROUTES = mounted()
