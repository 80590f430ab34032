"""A server under load: how many run at once, what they wait for, what each gets. Closed loop, no pauses."""

from __future__ import annotations

from dataclasses import dataclass

from plimsoll.plan.speed.step import Machine, decode_s, prefill_s

_ROUNDS = 6
"""Of the fixed point of TPOT and the time others' prompts take of it; it halves its error in each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What clients ask for; lengths in tokens."""

    prompt_tokens: float
    output_tokens: float
    concurrency: int
    requests: int | None = None
    """In the whole run, all clients starting at once; None: it goes on without end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What comes of it, as expected."""

    ttft_s: float
    tpot_s: float
    tokens_per_s: float
    """Output of all requests together."""
    prefill_tokens_per_s: float
    requests_per_s: float
    running: float
    """Sequences at once, where memory or the engine allow fewer than there are clients."""


def room(*, kv_tokens: int, sequences: int, load: Load, data: int = 1) -> float:
    """Sequences that run at once: of the cache, each holds its prompt and, on average, half of its answer."""
    held = load.prompt_tokens + load.output_tokens / 2
    by_cache = kv_tokens * data / max(1.0, held) if kv_tokens > 0 else float("inf")
    return max(1.0, min(float(load.concurrency), float(sequences), by_cache))


def time_load(machine: Machine, load: Load, *, running: float, chunk: float) -> Timing:
    """The load's timing with at most `running` sequences at once and prompts in chunks of `chunk` tokens."""
    rates = machine.rates
    out = max(1.0, load.output_tokens)
    alone = prefill_s(machine, load.prompt_tokens, chunk=chunk)
    step = decode_s(machine, running, load.prompt_tokens + out / 2)
    # A prompt that shares its step with running answers reads the weights with them: only the rest is extra.
    others = max(0.0, running - 1.0) * alone * rates.mixed
    tpot = step
    own = alone + rates.start_s + rates.prompt_s * load.prompt_tokens
    for _ in range(_ROUNDS):
        decoding = (out - 1) * tpot
        part = decoding / (decoding + own) if decoding > 0 else 0.0
        tpot = step + others * part / max(1.0, out - 1)
    # Others' prompts are computed once in each cycle, in whichever phase of ours: the throughput follows from that.
    cycle = own + (out - 1) * step + others
    rate = running / cycle
    busy = min(0.95, rate * alone)
    waves = max(1.0, load.requests / load.concurrency) if load.requests else float("inf")
    burst = rates.wave * (running - 1.0) / 2.0 / waves
    behind = rates.wait * busy / (2.0 * (1.0 - busy)) if running > 1 else 0.0
    ttft = own + alone * min(running - 1.0, burst + behind) + (step / 2 if running > 1 else 0.0)
    if load.concurrency > running:
        # Little's law: all clients together see concurrency / rate, of which service is spent running.
        queued = (load.concurrency - running) / rate
        ttft += queued * _share_queued(load, running)
    if load.requests:
        first = decode_s(machine, 1.0, load.prompt_tokens + out / 2)
        rate = load.requests / (load.requests / rate + rates.drain * out * max(first, tpot / 2))
    return Timing(
        ttft_s=ttft,
        tpot_s=tpot,
        tokens_per_s=rate * out,
        prefill_tokens_per_s=load.prompt_tokens / alone if alone else 0.0,
        requests_per_s=rate,
        running=running,
    )


def _share_queued(load: Load, running: float) -> float:
    """In a finite run the first `running` requests do not wait, and those behind them wait for less than all."""
    if not load.requests:
        return 1.0
    return max(0.0, 1.0 - load.concurrency / (2.0 * load.requests)) * (1.0 - running / load.requests)
