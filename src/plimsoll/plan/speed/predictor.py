"""From a candidate to a Speed: facts, fitted efficiencies and the closed loop put together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from plimsoll.plan.ledger import Ledger
from plimsoll.plan.memory import account
from plimsoll.plan.memory.common import int_option
from plimsoll.plan.speed.coefficients import Coefficients, Table, shipped_table
from plimsoll.plan.speed.intervals import half_widths
from plimsoll.plan.speed.keys import keys_of
from plimsoll.plan.speed.load import Load, Timing, room, time_load
from plimsoll.plan.speed.step import Machine, Place
from plimsoll.plan.speed.work import peak_flops, work_of
from plimsoll.plan.types import Candidate, Range, Speed
from plimsoll.spec.deployment import Slo

PROMPT_TOKENS, OUTPUT_TOKENS = 512, 256
"""What is predicted for where nobody says: a question with some context, an answer of a page."""
USUAL_CLIENTS = 16
"""Clients at once where nobody says: a batch that pays on every device."""
_CHUNK = {"vllm": 8192, "sglang": 8192, "mindie": 8192, "llamacpp": 512, "ollama": 512}
"""Prompt tokens in one step by default: max_num_batched_tokens, chunked_prefill_size, n_ubatch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """A table of efficiencies and what runs on this machine have corrected in it."""

    table: Table
    scale: Mapping[str, float] = field(default_factory=dict)
    """Factors on single coefficients, learned from measured runs of the same machine and engine."""
    residual: float = 0.0
    """Half-width of the interval, as a logarithm, after such a correction; 0: none was made."""
    reach: tuple[Load, ...] = ()
    """Loads that such runs sent."""
    growth: float = 0.0
    """Widening of the interval for each doubling of clients or lengths away from the nearest of them."""
    evidence: str = ""

    def machine(self, candidate: Candidate, ledger: Ledger) -> Machine:
        """The candidate's work with the coefficients of each of its devices."""
        work = work_of(candidate, ledger)
        places = []
        for segment in work.segments:
            rates = self._scaled(self.table.resolve(keys_of(candidate, segment.device)))
            places.append(Place(segment=segment, peak=peak_flops(segment.device, candidate.model), rates=rates))
        eager = self.table.roots.get("eager", 1.0) if candidate.eager else 1.0
        return Machine(work=work, places=tuple(places), network_bandwidth=candidate.host.network_bandwidth, eager=eager)

    def _scaled(self, rates: Coefficients) -> Coefficients:
        if not self.scale:
            return rates
        return replace(rates, **{name: getattr(rates, name) * factor for name, factor in self.scale.items()})

    def timing(self, candidate: Candidate, load: Load, ledger: Ledger | None = None) -> Timing:
        """What is expected, without its interval."""
        ledger = account(candidate) if ledger is None else ledger
        return time_machine(self.machine(candidate, ledger), candidate, load, ledger)

    def _far(self, load: Load) -> float:
        """Doublings from the nearest load that was measured."""

        def apart(other: Load) -> float:
            return sum(
                abs(math.log2(max(1.0, mine) / max(1.0, theirs)))
                for mine, theirs in (
                    (load.concurrency, other.concurrency),
                    (load.prompt_tokens, other.prompt_tokens),
                    (load.output_tokens, other.output_tokens),
                )
            )

        return min((apart(other) for other in self.reach), default=0.0)

    def predict(self, candidate: Candidate, load: Load, ledger: Ledger | None = None) -> Speed:
        """Speed of `candidate` under `load`; `ledger` saves making it again."""
        timing = self.timing(candidate, load, ledger)
        widths = half_widths(self.table, candidate, load, timing)
        if self.residual:
            widths = dict.fromkeys(widths, self.residual + self.growth * self._far(load))
        return Speed(
            concurrency=load.concurrency,
            ttft_s=_range(timing.ttft_s, widths["ttft"]),
            tpot_s=_range(timing.tpot_s, widths["tpot"]),
            tokens_per_s=_range(timing.tokens_per_s, widths["tokens"]),
            prefill_tokens_per_s=_range(timing.prefill_tokens_per_s, widths["ttft"]),
            requests_per_s=_range(timing.requests_per_s, widths["tokens"]),
            running=timing.running,
            prompt_tokens=round(load.prompt_tokens),
            output_tokens=round(load.output_tokens),
            basis="derived",
            source=self.evidence or self.table.source,
        )


def time_machine(machine: Machine, candidate: Candidate, load: Load, ledger: Ledger) -> Timing:
    """The closed loop on a machine that is ready to be timed."""
    chunk = _chunk(candidate)
    data = candidate.parallel.data if not machine.work.serial else 1
    running = room(kv_tokens=ledger.kv_tokens, sequences=candidate.sequences, load=load, data=data)
    return time_load(machine, load, running=running, chunk=chunk)


def _chunk(candidate: Candidate) -> float:
    usual = _CHUNK.get(candidate.engine.memory, 1 << 20)
    if candidate.engine.memory in ("llamacpp", "ollama"):
        return float(int_option(candidate, "ubatch_size", "n_ubatch", default=usual))
    return float(candidate.batched_tokens or usual)


def _range(expected: float, width: float) -> Range:
    return Range(low=expected * math.exp(-width), expected=expected, high=expected * math.exp(width))


def shipped() -> Predictor:
    """The predictor of the package, corrected by no run."""
    return Predictor(table=shipped_table())


def predict(
    candidate: Candidate,
    *,
    prompt_tokens: int = PROMPT_TOKENS,
    output_tokens: int = OUTPUT_TOKENS,
    concurrency: int = 1,
    requests: int | None = None,
    ledger: Ledger | None = None,
    predictor: Predictor | None = None,
) -> Speed:
    """How fast `candidate` serves `concurrency` clients, each sending its next request when it has its answer.

    Lengths in tokens, means over the requests; `requests`: of a finite run in which all clients start at once.
    Works for every device: what was never measured falls back to its parents' efficiencies and wider intervals.
    """
    load = Load(
        prompt_tokens=prompt_tokens, output_tokens=output_tokens, concurrency=max(1, concurrency), requests=requests
    )
    return (predictor or shipped()).predict(candidate, load, ledger)


def predict_for(
    candidate: Candidate,
    *,
    ledger: Ledger | None = None,
    predictor: Predictor | None = None,
    prompt_tokens: int = PROMPT_TOKENS,
    output_tokens: int = OUTPUT_TOKENS,
) -> tuple[Speed, ...]:
    """Speeds of a plan's candidate: first at the concurrency that the deployment asks for, then for one client alone.

    Where it does not say, the first is for as many as the candidate serves at once, at most `USUAL_CLIENTS`. Prompts
    and answers are cut to what the candidate's context holds.
    """
    ledger = account(candidate) if ledger is None else ledger
    asked = candidate.deployment.concurrency or max(1, min(candidate.sequences, USUAL_CLIENTS))
    output = max(1, min(output_tokens, candidate.context_tokens // 2))
    prompt = max(1, min(prompt_tokens, candidate.context_tokens - output))
    return tuple(
        predict(
            candidate, prompt_tokens=prompt, output_tokens=output, concurrency=count, ledger=ledger,
            predictor=predictor,
        )
        for count in dict.fromkeys((asked, 1))
    )  # fmt: skip


def missed(speed: Speed, slo: Slo) -> tuple[str, ...]:
    """Which limits of `slo` a speed does not keep, each as a sentence.

    A limit is for 95 of 100 requests, so the upper end of the interval has to keep it.
    """
    limits = (("time to first token", speed.ttft_s, slo.ttft), ("time per token", speed.tpot_s, slo.tpot))
    return tuple(
        f"{name} may reach {part.high:.3g} s at {speed.concurrency} at once, {limit:.3g} s are asked for"
        for name, part, limit in limits
        if limit is not None and part.high > limit
    )
