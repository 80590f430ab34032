"""One request and what came of it."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Literal

TokenBasis = Literal["usage", "tokenizer", "chunks", "none"]
"""usage: the server's own count; tokenizer: the text counted afterwards; chunks: one token for each chunk with text."""
ChunkBasis = Literal["chunk", "one", "characters"]
"""How many tokens a chunk held: the chunk says so; one each; the answer's count spread by characters."""
Phase = Literal["warmup", "measured"]


@dataclass(slots=True, kw_only=True)
class Row:
    """One request: times are seconds of one monotonic clock, read when the socket was read or written.

    `intended_s` is when the request was due, `sent_s` when it was handed to the socket. Latency counts from the
    former, so a generator or a server that falls behind cannot hide its queue.
    """

    intended_s: float
    sent_s: float = 0.0
    end_s: float = 0.0
    """Last byte that belongs to the answer: [DONE], or the end of the body."""
    arrivals_s: array[float] = field(default_factory=lambda: array("d"))
    """One stamp for each read that brought tokens."""
    arrival_tokens: array[float] = field(default_factory=lambda: array("d"))
    """How many tokens each of these reads brought."""
    chunk_basis: ChunkBasis = "one"
    first_answer_s: float | None = None
    """First text that is not reasoning; None when there was none."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int = 0
    counted_by: TokenBasis = "none"
    status: int = 0
    error: str | None = None
    """Kind of failure, None when it succeeded: connect, timeout, http_503, disconnected, truncated, stream_error ..."""
    detail: str = ""
    """The server's or the system's own words, when it failed."""
    finish: str | None = None
    done_seen: bool = False
    resent: bool = False
    """The kept-alive connection had died, unseen, before the request; it was sent again on a new one."""
    phase: Phase = "measured"
    tag: str = ""
    text: str | None = None
    """The answer, when a later turn needs it."""

    @property
    def ok(self) -> bool:
        """Whether the whole answer came."""
        return self.error is None

    @property
    def ttft_s(self) -> float | None:
        """Intended start to first token, reasoning included; None when no token was streamed."""
        return self.arrivals_s[0] - self.intended_s if self.arrivals_s else None

    @property
    def tpot_s(self) -> float | None:
        """Mean time of an output token after the first read's; None when all came in one read."""
        later = sum(self.arrival_tokens) - (self.arrival_tokens[0] if self.arrival_tokens else 0.0)
        return (self.arrivals_s[-1] - self.arrivals_s[0]) / later if later > 0 else None

    @property
    def e2e_s(self) -> float:
        """Intended start to the end of the answer."""
        return self.end_s - self.intended_s

    @property
    def lag_s(self) -> float:
        """How late the generator sent it."""
        return self.sent_s - self.intended_s

    def gaps(self) -> list[tuple[float, float]]:
        """(seconds per token, tokens) of each read after the first: k tokens after a gap g count as k gaps of g / k."""
        stamps = self.arrivals_s
        return [
            ((stamps[i] - stamps[i - 1]) / self.arrival_tokens[i], self.arrival_tokens[i])
            for i in range(1, len(stamps))
        ]
