"""From a spec, models and machines to a plan: every way looked at, the best that fits taken, the reasons kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, Protocol

from plimsoll.errors import PlanError
from plimsoll.facts.engine import EngineFacts
from plimsoll.facts.hardware import Host
from plimsoll.facts.model import ModelFacts
from plimsoll.plan.ledger import Ledger
from plimsoll.plan.settle import Settled, settle
from plimsoll.plan.types import Candidate, Finding, Plan, Rejected, Replica, Speed
from plimsoll.spec.deployment import Deployment, Spec
from plimsoll.units import format_bytes

Goal = Literal["balanced", "throughput", "latency", "context"]


class Check(Protocol):
    """The rules: all findings on one candidate."""

    def __call__(self, candidate: Candidate, *, ledger: Ledger | None = None) -> tuple[Finding, ...]:
        """Findings, errors and warnings alike."""
        ...


def solve(
    spec: Spec,
    models: Mapping[str, ModelFacts],
    hosts: Sequence[Host],
    engines: Sequence[EngineFacts],
    *,
    goal: Goal = "balanced",
    rules: Check | None = None,
    predict: Callable[[Candidate], Speed] | None = None,
) -> Plan:
    """The plan for all of `spec`: `models` by deployment name, each replica placed, its ledger and speeds beside it.

    Several deployments share the hosts: the largest is placed first, and what the others need at the least is kept
    for them. PlanError where no engine can load a model at all; a plan that does not fit is returned as such.
    """
    del goal
    free = list(hosts)
    order = sorted(spec.models, key=lambda deployment: -models[deployment.name].weight_bytes)
    replicas: dict[str, list[Replica]] = {}
    findings: list[Finding] = []
    rejected: list[Rejected] = []
    for position, deployment in enumerate(order):
        later = [(other, models[other.name]) for other in order[position + 1 :]]
        for number in range(deployment.replicas):
            kept = sum(least_bytes(other, model, free[0], engines) * other.replicas for other, model in later)
            best, refused = _best(deployment, models[deployment.name], free, engines, kept=kept, rules=rules)
            rejected += refused
            found = rules(best.candidate, ledger=best.ledger) if rules else ()
            findings += [replace(finding, deployment=deployment.name) for finding in found]
            speeds = (predict(best.candidate),) if predict else ()
            replicas.setdefault(deployment.name, []).append(
                Replica(
                    name=f"{deployment.name}-{number + 1}",
                    candidate=best.candidate,
                    ledger=best.ledger,
                    speeds=speeds,
                )
            )
            free = [_less(host, best) if host.name == best.candidate.host.name else host for host in free]
    ordered = [replica for deployment in spec.models for replica in replicas[deployment.name]]
    return Plan(replicas=tuple(ordered), findings=tuple(findings), rejected=tuple(rejected))


def least_bytes(deployment: Deployment, model: ModelFacts, host: Host, engines: Iterable[EngineFacts]) -> int:
    """RAM that `deployment` needs at the least on `host`: one sequence of the stated or the shortest context."""
    for engine in _able(model, engines):
        small = deployment.model_copy(update={"context": deployment.context or 512, "concurrency": 1})
        return settle(_on_cpu(small, model, engine, host)).ledger.devices[-1].used_bytes - (
            host.ram_bytes - host.ram_free_bytes
        )
    return 0


def _best(
    deployment: Deployment, model: ModelFacts, hosts: Sequence[Host], engines: Sequence[EngineFacts], *, kept: int,
    rules: Check | None,
) -> tuple[Settled, list[Rejected]]:  # fmt: skip
    able = [engine for engine in _able(model, engines) if deployment.engine in ("auto", engine.name)]
    if not able:
        raise PlanError(
            f"no engine here can load {model.id} ({model.format})",
            hint="Install an engine that can, or name a model in another format (GGUF for llama.cpp).",
            source=model.source,
        )
    rejected: list[Rejected] = []
    settled: list[Settled] = []
    for host in hosts:
        narrow = replace(host, ram_free_bytes=max(0, host.ram_free_bytes - kept))
        for engine in able:
            chosen = settle(_on_cpu(deployment, model, engine, narrow))
            whole = replace(chosen.candidate, host=host, devices=(host.cpu,))
            settled.append(replace(chosen, candidate=whole))
            what = f"{engine.name} on {host.name}"
            if not chosen.fits:
                rejected.append(
                    Rejected(what=what, why=f"{format_bytes(-chosen.ledger.margin_bytes)} too little memory")
                )
            elif rules and (errors := [f for f in rules(whole, ledger=chosen.ledger) if f.severity == "error"]):
                rejected.append(Rejected(what=what, why=errors[0].what))
            else:
                return chosen, rejected
    return settled[0], rejected


def _able(model: ModelFacts, engines: Iterable[EngineFacts]) -> list[EngineFacts]:
    """Engines that load the model's format on a CPU, the installed ones first."""
    able = [engine for engine in engines if model.format in engine.formats and "cpu" in engine.vendors]
    return sorted(able, key=lambda engine: (not engine.installed, engine.fake))


def _on_cpu(deployment: Deployment, model: ModelFacts, engine: EngineFacts, host: Host) -> Candidate:
    return Candidate(
        deployment=deployment,
        model=model,
        engine=engine,
        host=host,
        devices=(host.cpu,),
        context_tokens=deployment.context or 4096,
        sequences=deployment.concurrency or 1,
        kv_dtype=deployment.kv_cache_dtype,
        dtype=deployment.dtype,
    )


def _less(host: Host, taken: Settled) -> Host:
    """`host` with what `taken` uses gone from its free RAM."""
    used = sum(entry.bytes for entry in taken.ledger.devices[-1].entries if entry.inside)
    return replace(host, ram_free_bytes=max(0, host.ram_free_bytes - used))
