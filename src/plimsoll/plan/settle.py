"""How long a context and how many sequences: the most of both that fits, in the order people miss them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from plimsoll.plan.ledger import Ledger
from plimsoll.plan.memory import account
from plimsoll.plan.types import Candidate
from plimsoll.units import GIB

SLOTS = 16
"""Where a batch still pays on a CPU: 296 tokens/s with 16 slots against 188 with 4 (SmolLM2, two cores)."""
BATCH = 256
"""max_num_seqs of engines with a paged cache, their own default."""
AT_ONCE = 4
"""Requests of full context that a paged cache should hold where nobody says how many."""
_CONTEXTS = (8192, 4096, 2048, 1024, 512)
_PAGED_CONTEXTS = (32768, 16384, 8192, 4096, 2048, 1024, 512)
_USUAL = 4096
_CACHE_SHARE = 24
"""Of a host's RAM, the part that a cache takes at the most where nobody says how much: 1 GiB of 24."""
_LAYER_OPTIONS = {"llamacpp": "n_gpu_layers", "ollama": "num_gpu"}
"""How engines that can leave layers in RAM call the number of those that are not."""
_BOOKS_ALL = ("vllm", "sglang", "mindie")
"""Policies that take all of their share as cache, so that sequences cost (nearly) nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A candidate with its context and sequences chosen, and its ledger."""

    candidate: Candidate
    ledger: Ledger

    @property
    def fits(self) -> bool:
        """Whether it fits with the reserve that `reserve_bytes` asks for."""
        return self.ledger.fits and self.ledger.margin_bytes >= reserve_bytes(self.candidate)

    @property
    def enough(self) -> bool:
        """Whether it holds what was asked for, or what is usual where nothing was."""
        deployment, candidate = self.candidate.deployment, self.candidate
        longest = candidate.model.max_context_tokens or _USUAL
        context = deployment.context or min(_USUAL, longest)
        at_once = deployment.concurrency or (1 if candidate.engine.memory not in _BOOKS_ALL else AT_ONCE)
        pooled = self.ledger.kv_tokens == 0
        if not deployment.context and not deployment.concurrency and not self._quickly_up:
            return False
        return candidate.context_tokens >= context and (pooled or self.ledger.max_concurrency >= at_once * 0.999)

    @property
    def _quickly_up(self) -> bool:
        """Whether a cache in RAM is touched in a moment: 0.4 GB/s where the pages are new (measured, two cores)."""
        on_cpu = self.candidate.devices[0].vendor == "cpu"
        return not on_cpu or self.ledger.devices[-1].of("kv_cache") <= self.candidate.host.ram_bytes // _CACHE_SHARE


def books_all(candidate: Candidate) -> bool:
    """Whether the engine takes all of its share as cache."""
    return candidate.engine.memory in _BOOKS_ALL


def reserve_bytes(candidate: Candidate) -> int:
    """What a plan leaves free: a twentieth of a host's RAM, at most 2 GiB; half a GiB of an accelerator's memory;
    nothing where the engine books a share, for the share is the reserve."""
    if books_all(candidate) or candidate.engine.memory == "none":
        return 0
    return min(2 * GIB, candidate.host.ram_bytes // 20) if candidate.devices[0].vendor == "cpu" else GIB // 2


def settle(candidate: Candidate) -> Settled:
    """`candidate` with the first context and sequences that fit; where nothing fits, with the least of both.

    What the deployment states is kept as stated.
    """
    choices = tuple(_choices(candidate))
    least = with_room(_at(candidate, *choices[-1]))
    candidate = replace(candidate, memory_share=least.candidate.memory_share)
    if not least.fits:
        return least
    second: Settled | None = None
    for context, sequences in choices[:-1]:
        settled = _at(candidate, context, sequences)
        if settled.fits and settled.enough:
            return settled
        if settled.fits and second is None:
            second = settled
    return second or least


def offload(failed: Settled) -> Settled | None:
    """`failed` with as many layers on its cards as they hold and the rest in RAM; None where the engine cannot, the
    number of layers is given, or RAM does not hold the rest either."""
    candidate = failed.candidate
    name = _LAYER_OPTIONS.get(candidate.engine.memory)
    if name is None or candidate.devices[0].vendor == "cpu" or {name, "gpu_layers"} & candidate.options.keys():
        return None
    low, high, best = 1, candidate.model.layers, None
    while low <= high:
        layers = (low + high) // 2
        tried = settle(replace(candidate, options={**candidate.options, name: layers}))
        if tried.fits:
            best, low = tried, layers + 1
        else:
            high = layers - 1
    return best


def with_room(settled: Settled) -> Settled:
    """`settled`, with a lower share where the engine's default leaves no room for what lies outside of it."""
    share = None if settled.fits else _share_with_room(settled)
    if share is None:
        return settled
    lowered = replace(settled.candidate, memory_share=share)
    return Settled(candidate=lowered, ledger=account(lowered))


def _share_with_room(settled: Settled) -> float | None:
    """The largest share, in hundredths, that leaves room for what lies outside of it, where the engine's own default
    does not; None where the share is given, or is not what is wrong."""
    candidate = settled.candidate
    if not books_all(candidate) or candidate.memory_share is not None:
        return None
    share = 1.0
    for device in settled.ledger.devices:
        outside = sum(entry.bytes for entry in device.entries if not entry.inside)
        share = min(share, 1 - outside / device.total_bytes)
    booked = min(device.limit_bytes / device.total_bytes for device in settled.ledger.devices)
    return int(share * 100) / 100 if 0.05 < share < booked else None


def _at(candidate: Candidate, context: int, sequences: int) -> Settled:
    chosen = replace(candidate, context_tokens=context, sequences=sequences)
    return Settled(candidate=chosen, ledger=account(chosen))


def _choices(candidate: Candidate) -> Iterator[tuple[int, int]]:
    """(context, sequences) to try, the best first: a usual context for many, then for few, then a shorter one."""
    deployment, longest = candidate.deployment, candidate.model.max_context_tokens
    paged = books_all(candidate)
    offered = _PAGED_CONTEXTS if paged else _CONTEXTS
    contexts = (
        (deployment.context,)
        if deployment.context
        else tuple(dict.fromkeys(min(context, longest or context) for context in offered))
    )
    if paged:
        # The cache is paged: sequences cost only the sampler's share of the profile run.
        stated = deployment.concurrency
        for sequences in (stated,) if stated else (BATCH, 64, 16, 1):
            for context in contexts:
                yield context, sequences
        return
    slots = (deployment.concurrency,) if deployment.concurrency else (SLOTS, 8, 4, 2, 1)
    usual = tuple(context for context in contexts if context >= min(_USUAL, longest or _USUAL)) or contexts
    short = tuple(context for context in contexts if context not in usual)
    for part in (usual, short):
        for sequences in slots:
            for context in part:
                yield context, sequences
