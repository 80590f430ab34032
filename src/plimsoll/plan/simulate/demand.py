"""Made-up requests: Poisson, bursty or even arrivals, or a closed loop of clients. The same seed, the same requests."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from plimsoll.plan.simulate.book import Requests

Pattern = Literal["poisson", "bursty", "constant"]
BURSTINESS = 0.25
"""Shape of the gamma distribution of gaps in a bursty load, as in `plimsoll bench`; 1 would be Poisson."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How long requests are, in tokens; each drawn evenly from within `spread` of its mean."""

    prompt_tokens: int
    output_tokens: int
    spread: float = 0.0
    prefix_tokens: int = 0
    """Of the prompt, what all requests of a family begin with."""
    families: int = 1


def drawn(*, rate_per_s: float, requests: int, lengths: Lengths, pattern: Pattern = "poisson", seed: int) -> Requests:
    """`requests` that arrive at `rate_per_s` on average, whether or not they are served in time."""
    rng = random.Random(f"{seed}/arrivals")  # noqa: S311 - reproducible, nothing secret
    mean_s = 1.0 / rate_per_s
    arrivals, at_s = array("d"), 0.0
    for number in range(requests):
        arrivals.append(number * mean_s if pattern == "constant" else at_s)
        if pattern == "poisson":
            at_s += rng.expovariate(rate_per_s)
        elif pattern == "bursty":
            at_s += rng.gammavariate(BURSTINESS, mean_s / BURSTINESS)
    return _of_lengths(requests, lengths, seed=seed, arrivals=arrivals, clients=0)


def closed(*, clients: int, requests: int, lengths: Lengths, seed: int) -> Requests:
    """`requests` by `clients`, each sending its next one when it has its answer."""
    return _of_lengths(requests, lengths, seed=seed, arrivals=array("d"), clients=clients)


def _of_lengths(count: int, lengths: Lengths, *, seed: int, arrivals: array[float], clients: int) -> Requests:
    rng = random.Random(f"{seed}/lengths")  # noqa: S311
    shared = lengths.prefix_tokens > 0
    families = [(family,) for family in range(lengths.families)]
    blocks: Sequence[tuple[int, ...]] = [rng.choice(families) for _ in range(count)] if shared else ()
    return Requests(
        prompt_tokens=_lengths(rng, lengths.prompt_tokens, lengths.spread, count),
        output_tokens=_lengths(rng, lengths.output_tokens, lengths.spread, count),
        arrivals_s=arrivals,
        clients=clients,
        blocks=blocks,
        block_tokens=lengths.prefix_tokens or 512,
    )


def _lengths(rng: random.Random, mean: int, spread: float, count: int) -> array[int]:
    if not spread:
        return array("q", [mean]) * count
    return array("q", (max(1, round(mean * (1.0 + spread * (2.0 * rng.random() - 1.0)))) for _ in range(count)))
