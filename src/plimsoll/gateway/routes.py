"""The paths that are passed on to engines, what each asks of a model, and what must be adapted on the way."""

from __future__ import annotations

from dataclasses import dataclass, field

from plimsoll.gateway.adapters import Adapt
from plimsoll.gateway.embeddings import adapt_embeddings
from plimsoll.gateway.messages import adapt_messages
from plimsoll.gateway.rerank import adapt_rerank, adapt_score
from plimsoll.gateway.responses import adapt_responses


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One path of the API."""

    path: bytes
    """At the engine."""
    tasks: tuple[str, ...]
    """The model must serve one of them; empty: any model."""
    streams: bool = False
    """Whether `stream` means something."""
    usage_option: bool = False
    """Whether a stream reports its tokens only when `stream_options` asks for it."""
    adapt: Adapt | None = None
    also: tuple[bytes, ...] = ()
    """Further paths that clients use for it."""
    required: bool = False
    """Whether it is served only by engines that are known to have it."""
    anthropic: bool = False
    """Whether errors are in Anthropic's form, which holds OpenAI's."""
    default_model: bool = False
    """Whether the body may leave out the model when only one fits."""
    name: str = field(init=False)
    """For metrics and logs."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.path.decode())


_GENERATE = ("chat", "completion")
_RANK = ("rerank", "classify")
_ROUTES = (
    Route(path=b"/v1/chat/completions", tasks=_GENERATE, streams=True, usage_option=True),
    Route(path=b"/v1/completions", tasks=_GENERATE, streams=True, usage_option=True),
    Route(path=b"/v1/embeddings", tasks=("embed",), adapt=adapt_embeddings),
    Route(
        path=b"/v1/rerank", tasks=_RANK, adapt=adapt_rerank, default_model=True,
        also=(b"/v2/rerank", b"/cohere/v1/rerank", b"/cohere/v2/rerank", b"/v1/reranking"),
    ),
    Route(path=b"/v1/messages", tasks=_GENERATE, streams=True, adapt=adapt_messages, anthropic=True),
    Route(path=b"/v1/responses", tasks=_GENERATE, streams=True, adapt=adapt_responses),
    *(
        Route(path=path, tasks=(), streams=True, required=True, default_model=True)
        for path in (
            b"/v1/messages/count_tokens", b"/tokenize", b"/detokenize", b"/v1/audio/transcriptions",
            b"/v1/audio/translations", b"/v1/audio/speech", b"/v1/images/generations", b"/v1/moderations", b"/classify",
            b"/pooling", b"/infill", b"/apply-template",
        )
    ),
    Route(path=b"/v1/score", tasks=_RANK, adapt=adapt_score, default_model=True),
)  # fmt: skip


def mounted() -> dict[bytes, Route]:
    """Paths as clients write them: with /v1, without, and in front of it (a base URL that already ends in /v1)."""
    paths = {}
    for route in _ROUTES:
        for path in (route.path, *route.also):
            for prefix in (path, path.removeprefix(b"/v1"), b"/v1" + path):
                paths[prefix] = route
    return paths


ROUTES = mounted()
NAMES = tuple(sorted({route.name for route in _ROUTES}))
