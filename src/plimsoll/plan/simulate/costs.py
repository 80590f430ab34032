"""How long an engine's step takes, as tables of the speed model: what a simulated replica goes by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plimsoll.plan.ledger import Ledger
from plimsoll.plan.memory.common import flag_option
from plimsoll.plan.speed.predictor import Predictor, _chunk, shipped
from plimsoll.plan.speed.step import decode_s, prefill_s
from plimsoll.plan.types import Candidate

_MOST_SEQUENCES = 4096
_MOST_CHUNK = 16384
"""Longer prompts of engines that do not cut them are taken in pieces of this; their fixed costs no longer matter."""
_SHARING = ("vllm", "sglang", "llamacpp", "ollama")
"""Memory policies whose engines find the beginning of a prompt in their cache unless told not to."""
_SHARING_OFF = ("no_enable_prefix_caching", "disable_radix_cache", "no_cache_prompt")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCosts:
    """Seconds of the steps of one replica's engine, and what it holds at once.

    A decode step of n sequences with c tokens of context in all takes `decode_s[n] + context_s[n] * c`; a step that
    computes p prompt tokens alone takes `prefill_s[p]` and `attention_s` for each pair of a new and an earlier token.
    """

    decode_s: Sequence[float]
    """By sequences, from 0 to `sequences`."""
    context_s: Sequence[float]
    """By sequences: of each token of context."""
    prefill_s: Sequence[float]
    """By prompt tokens in the step, from 0 to `chunk`."""
    attention_s: float = 0.0
    mixed: float = 1.0
    """Part of a prompt's time by which a step is longer that also decodes."""
    start_s: float = 0.0
    """Latency of a request outside of the engine's steps, and of each of its prompt's tokens; held against it alone."""
    prompt_s: float = 0.0
    kv_tokens: int = 0
    """Tokens of all sequences that the cache holds; 0: it never fills."""
    shares_prefixes: bool = True
    devices: int = 1

    @property
    def sequences(self) -> int:
        """Most at once."""
        return len(self.decode_s) - 1

    @property
    def chunk(self) -> int:
        """Most tokens in a step, prompts' and answers' together."""
        return len(self.prefill_s) - 1


def step_costs(
    candidate: Candidate, ledger: Ledger, *, typical_tokens: float, predictor: Predictor | None = None
) -> StepCosts:
    """The tables for `candidate`, whose memory is as in `ledger`.

    `typical_tokens`: a usual context; costs are straight lines through it, which is exact but for sliding windows.
    """
    machine = (predictor or shipped()).machine(candidate, ledger)
    sequences = max(1, min(candidate.sequences, _MOST_SEQUENCES))
    chunk = round(max(1, min(_chunk(candidate), _MOST_CHUNK)))
    typical = max(1.0, typical_tokens)
    decode = [0.0] + [decode_s(machine, n, 0.0) for n in range(1, sequences + 1)]
    context = [0.0] + [(decode_s(machine, n, typical) - decode[n]) / (n * typical) for n in range(1, sequences + 1)]
    # With half of its own length taken off what lies before, a chunk attends to nothing: the step without attention.
    prefill = [0.0] + [prefill_s(machine, p, chunk=p, before=-p / 2) for p in range(1, chunk + 1)]
    seen = prefill_s(machine, 1.0, chunk=1.0, before=typical - 0.5) - prefill[1]
    data = 1 if machine.work.serial else candidate.parallel.data
    off = any(flag_option(candidate, name, default=False) for name in _SHARING_OFF)
    return StepCosts(
        decode_s=decode,
        context_s=context,
        prefill_s=prefill,
        attention_s=seen / typical,
        mixed=machine.rates.mixed,
        start_s=machine.rates.start_s,
        prompt_s=machine.rates.prompt_s,
        kv_tokens=ledger.kv_tokens * data,
        shares_prefixes=candidate.engine.memory in _SHARING and not off,
        devices=len(candidate.devices),
    )
