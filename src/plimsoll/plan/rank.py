"""Which of the ways that fit is best: what is asked for first, then speed where it is predicted, then thrift."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from plimsoll.plan.memory.common import layers_option
from plimsoll.plan.settle import Settled
from plimsoll.plan.speed import missed
from plimsoll.plan.types import Candidate, Finding, Speed
from plimsoll.units import format_bytes

Goal = Literal["balanced", "throughput", "latency", "context"]
Predict = Callable[[Candidate], Speed]

_ON_CARDS = ("vllm", "mindie", "sglang", "llamacpp", "ollama", "openvino", "transformers")
_ON_CPU = ("llamacpp", "openvino", "vllm", "ollama", "sglang", "transformers")

_LAST_RESORT = "transformers"
"""Engines without a paged cache: taken where no other can, however few devices they need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way that was looked at to its end."""

    settled: Settled
    findings: tuple[Finding, ...] = ()
    speed: Speed | None = None

    @property
    def runs(self) -> bool:
        """Whether it fits and no rule forbids it."""
        return self.settled.fits and not any(finding.severity == "error" for finding in self.findings)

    @property
    def misses(self) -> tuple[str, ...]:
        """Limits of the deployment (time to first token, time per token) that its predicted speed may not keep."""
        return missed(self.speed, self.settled.candidate.deployment.slo) if self.speed else ()

    @property
    def name(self) -> str:
        """In a few words: "vllm 0.33.0 on 2 x NVIDIA RTX A6000, tensor 2"."""
        return describe(self.settled.candidate)


def describe(candidate: Candidate) -> str:
    """A candidate in a few words: engine, devices, how it is cut, weights."""
    parallel, device = candidate.parallel, candidate.devices[0]
    count = f"{len(candidate.devices)} x " if len(candidate.devices) > 1 else ""
    cuts = [
        f"{name} {size}"
        for name, size in (("tensor", parallel.tensor), ("pipeline", parallel.pipeline), ("data", parallel.data),
                           ("expert", parallel.expert))
        if size > 1
    ]  # fmt: skip
    engine = f"{candidate.engine.name} {candidate.engine.version}".strip()
    weights = f", {candidate.model.quantization.method}" if candidate.model.quantization else ""
    return f"{engine} on {count}{device.name}{''.join(f', {cut}' for cut in cuts)}{weights}"


def order_key(option: Option, goal: Goal) -> tuple[float, ...]:
    """Smaller is better. Speed decides among ways that hold what was asked for; without it fewer devices do."""
    settled, candidate = option.settled, option.settled.candidate
    engine, on_cpu = candidate.engine, candidate.devices[0].vendor == "cpu"
    names = _ON_CPU if on_cpu else _ON_CARDS
    preference = names.index(engine.memory) if engine.memory in names else len(names)
    return (
        engine.fake,
        not option.runs,
        not engine.installed,
        sum(finding.severity == "error" for finding in option.findings),
        0.0 if settled.fits else float(max(0, -settled.ledger.margin_bytes)),  # the nearest miss first
        not settled.enough,
        bool(option.misses),
        engine.memory == _LAST_RESORT,
        *_by_goal(option, goal),
        on_cpu,
        _layers_in_ram(candidate),
        candidate.parallel.tensor * candidate.nodes > len(candidate.devices),  # tensor ranks over the network
        candidate.nodes,
        len(candidate.devices),
        candidate.parallel.pipeline,
        preference,
        candidate.parallel.expert,
        -settled.ledger.max_concurrency,
    )


def _layers_in_ram(candidate: Candidate) -> float:
    """The part of the model's layers that was left in RAM beside accelerators."""
    kept = layers_option(candidate, "n_gpu_layers", "gpu_layers", "num_gpu")
    return max(0.0, 1 - kept / candidate.model.layers) if kept is not None and candidate.model.layers else 0.0


def _by_goal(option: Option, goal: Goal) -> tuple[float, ...]:
    if goal == "context":
        return (-option.settled.ledger.longest_context_tokens,)
    speed = option.speed
    if speed is None:
        return (0.0,)
    if goal == "latency":
        return (speed.tpot_s.expected, speed.ttft_s.expected)
    if goal == "throughput":
        return (-speed.tokens_per_s.expected,)
    # Balanced: tokens per second of all, each halving of one user's pace counted against them by half.
    return (-speed.tokens_per_s.expected / max(1e-9, speed.tpot_s.expected) ** 0.5,)


def why_not(option: Option, chosen: Option) -> str:
    """Why `option` was not taken, in one line."""
    ledger = option.settled.ledger
    if not option.settled.fits:
        short = f"{format_bytes(max(0, -ledger.margin_bytes))} too little memory"
        return f"does not fit: {'; '.join((short, *ledger.notes))}"
    errors = [finding for finding in option.findings if finding.severity == "error"]
    if errors:
        return errors[0].what
    parts = [f"fits, {ledger.max_concurrency:.1f} x {option.settled.candidate.context_tokens} tokens"]
    if option.speed and chosen.speed:
        mine, best = option.speed.tokens_per_s.expected, chosen.speed.tokens_per_s.expected
        parts.append(f"{mine:.0f} tokens/s against {best:.0f}")
    if len(option.settled.candidate.devices) > len(chosen.settled.candidate.devices):
        parts.append("more devices than are needed")
    if not option.settled.candidate.engine.installed and chosen.settled.candidate.engine.installed:
        parts.append("not installed here")
    if option.misses and not chosen.misses:
        parts += option.misses
    if not option.settled.enough and chosen.settled.enough:
        parts.append("holds less than was asked for")
    return ", ".join(parts)
