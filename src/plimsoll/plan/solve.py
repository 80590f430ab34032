"""From a spec, models and machines to a plan: every way looked at, the best that fits taken, the reasons kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from plimsoll.errors import PlanError
from plimsoll.facts.engine import EngineFacts
from plimsoll.facts.hardware import Host
from plimsoll.facts.model import ModelFacts
from plimsoll.plan.enumerate import candidates, unable
from plimsoll.plan.ledger import Ledger
from plimsoll.plan.nearest import nearest_fits
from plimsoll.plan.rank import Goal, Option, Predict, order_key, why_not
from plimsoll.plan.settle import Settled, books_all, offload, settle
from plimsoll.plan.share import ALL, after, least_share, with_neighbours
from plimsoll.plan.types import Candidate, Finding, Plan, Rejected, Replica
from plimsoll.spec.deployment import Deployment, Spec

__all__ = ["Check", "Goal", "solve"]

_SHOWN = 12
"""Alternatives kept for each deployment, the runner-up first."""


class Check(Protocol):
    """The rules: all findings on one candidate."""

    def __call__(self, candidate: Candidate, *, ledger: Ledger | None = None) -> tuple[Finding, ...]:
        """Findings, errors and warnings alike."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    """What does not change while one plan is sought."""

    models: Mapping[str, ModelFacts]
    alternatives: Mapping[str, Sequence[ModelFacts]]
    engines: Sequence[EngineFacts]
    goal: Goal
    rules: Check | None
    predict: Predict | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """One replica's way, and what else there was."""

    deployment: Deployment
    option: Option
    rejected: tuple[Rejected, ...]


def solve(
    spec: Spec,
    models: Mapping[str, ModelFacts],
    hosts: Sequence[Host],
    engines: Sequence[EngineFacts],
    *,
    goal: Goal = "balanced",
    rules: Check | None = None,
    predict: Predict | None = None,
    alternatives: Mapping[str, Sequence[ModelFacts]] | None = None,
) -> Plan:
    """The plan for all of `spec`, each replica placed, its ledger and speeds beside it.

    `models`: facts by deployment name. `alternatives`: the same models in other quantizations, by deployment name; one
    is taken only where the first fits nowhere. `rules`: errors rule a way out, warnings go into the plan. `predict`:
    speed decides among ways that fit; without it the fewest devices do.

    Several deployments share the hosts: the largest is placed first. Where the others find no room of their own, all
    live on the same devices with shares of tenths. PlanError where no engine can load a model at all; a plan that does
    not fit is returned as such, with the nearest that does in its notes.
    """
    problem = _Problem(
        models=models, alternatives=alternatives or {}, engines=engines, goal=goal, rules=rules, predict=predict
    )
    order = sorted(spec.models, key=lambda deployment: -models[deployment.name].weight_bytes)
    chosen = _place_all(order, hosts, problem, shares={})
    if len(order) > 1 and not _settled_well(chosen, hosts):
        shares = _shares(order, hosts, problem)
        together = _place_all(order, hosts, problem, shares=shares) if shares else chosen
        if _score(together) <= _score(chosen):
            chosen = together
    return _plan(spec, chosen, hosts, problem)


def _place_all(
    order: Sequence[Deployment], hosts: Sequence[Host], problem: _Problem, *, shares: Mapping[str, float]
) -> list[_Choice]:
    """Every replica in turn, each on what those before it leave."""
    free = list(hosts)
    chosen: list[_Choice] = []
    for position, deployment in enumerate(order):
        for _ in range(deployment.replicas):
            kept = 0 if shares else sum(_least_ram(other, free, problem) for other in order[position + 1 :])
            choice = _choose(deployment, free, problem, share=shares.get(deployment.name), kept=kept)
            chosen.append(choice)
            free = after(free, choice.option.settled)
    return chosen


def _choose(
    deployment: Deployment, hosts: Sequence[Host], problem: _Problem, *, share: float | None, kept: int
) -> _Choice:
    """The best way for one replica; other quantizations are tried where the first model fits nowhere."""
    offered = [problem.models[deployment.name], *problem.alternatives.get(deployment.name, ())]
    options: list[Option] = []
    reasons: list[str] = []
    for model in offered:
        found, unfit = _options(deployment, model, hosts, problem, share=share, kept=kept)
        options += found
        reasons += unfit
        if any(option.runs for option in found):
            break
    if not options:
        raise PlanError(
            f"no engine here can load {offered[0].id} ({offered[0].format})",
            hint="Install an engine that can, or name the model in another format (GGUF for llama.cpp).",
            source=offered[0].source,
            findings=tuple(dict.fromkeys(reasons)),
        )
    options.sort(key=lambda option: order_key(option, problem.goal))
    best = options[0]
    rejected = [
        Rejected(what=option.name, why=why_not(option, best))
        for option in options[1 if best.runs else 0 :]
        if not option.settled.candidate.engine.fake
    ]
    return _Choice(deployment=deployment, option=best, rejected=tuple(dict.fromkeys(rejected))[:_SHOWN])


def _options(
    deployment: Deployment,
    model: ModelFacts,
    hosts: Sequence[Host],
    problem: _Problem,
    *,
    share: float | None,
    kept: int,
) -> tuple[list[Option], list[str]]:
    """All ways of one model, settled, checked and timed; and why engines cannot load it."""
    name, _, version = deployment.engine.partition("==")
    options: list[Option] = []
    reasons: list[str] = []
    for engine in problem.engines:
        if name not in ("auto", engine.name) or (name == "auto" and engine.fake):
            continue
        meant = replace(engine, version=version) if version else engine
        if (reason := unable(meant, model)) is not None:
            reasons.append(reason)
            continue
        for candidate in candidates(deployment, model, _narrowed(hosts, kept), meant):
            if books_all(candidate) and candidate.memory_share is None and share is not None:
                candidate = replace(candidate, memory_share=share)
            settled = settle(candidate)
            if not settled.fits:
                settled = offload(settled) or settled
            findings = problem.rules(settled.candidate, ledger=settled.ledger) if problem.rules else ()
            speed = problem.predict(settled.candidate) if problem.predict and settled.fits else None
            options.append(Option(settled=settled, findings=findings, speed=speed))
    return options, reasons


def _narrowed(hosts: Sequence[Host], kept: int) -> list[Host]:
    """`hosts` with `kept` bytes of RAM held back for deployments yet to come."""
    if not kept:
        return list(hosts)
    return [
        replace(
            host,
            ram_free_bytes=max(0, host.ram_free_bytes - kept),
            cpu=replace(host.cpu, free_bytes=max(0, host.cpu.free_bytes - kept)),
        )
        for host in hosts
    ]


def _least_ram(deployment: Deployment, hosts: Sequence[Host], problem: _Problem) -> int:
    """RAM that a deployment needs at the least where it runs on a host's CPU; 0 where it has accelerators."""
    model = problem.models[deployment.name]
    bare = deployment.model_copy(update={"context": deployment.context or 512, "concurrency": 1})
    for engine in problem.engines:
        fitting = deployment.engine.partition("==")[0] in ("auto", engine.name)
        if not fitting or unable(engine, model) or any(host.devices for host in hosts):
            continue
        for candidate in candidates(bare, model, hosts[:1], engine):
            entries = settle(candidate).ledger.devices[-1].entries
            return deployment.replicas * sum(entry.bytes for entry in entries if entry.name != "other_processes")
    return 0


# --- several on the same devices ----------------------------------------------------------------------------------


def _settled_well(chosen: Sequence[_Choice], hosts: Sequence[Host]) -> bool:
    """Whether everything runs, nothing was pushed off accelerators that are there, and no two share one of them."""
    cards = any(host.devices for host in hosts)
    used = [
        (choice.option.settled.candidate.host.name, device.index)
        for choice in chosen
        for device in choice.option.settled.candidate.devices
        if device.vendor != "cpu"
    ]
    return len(used) == len(set(used)) and all(
        choice.option.runs and (not cards or choice.option.settled.candidate.devices[0].vendor != "cpu")
        for choice in chosen
    )


def _score(chosen: Sequence[_Choice]) -> tuple[int, int]:
    """How many do not run, how many are off the accelerators: smaller is better."""
    return (
        sum(not choice.option.runs for choice in chosen),
        sum(choice.option.settled.candidate.devices[0].vendor == "cpu" for choice in chosen),
    )


def _shares(order: Sequence[Deployment], hosts: Sequence[Host], problem: _Problem) -> dict[str, float]:
    """A share for each deployment: the small ones what they need, the largest what they leave of nine tenths."""
    shares: dict[str, float] = {}
    for deployment in order[1:]:
        model = problem.models[deployment.name]
        needs = [
            least_share(
                replace(candidate, context_tokens=min(deployment.context or 4096, model.max_context_tokens or 4096))
            )
            for engine in problem.engines
            if deployment.engine.partition("==")[0] in ("auto", engine.name) and not unable(engine, model)
            for candidate in candidates(deployment, model, hosts, engine)
            if books_all(candidate) and candidate.devices[0].vendor != "cpu"
        ]
        if not needs:
            return {}
        shares[deployment.name] = deployment.memory_share or min(needs)
    replicas = {deployment.name: deployment.replicas for deployment in order}
    left = ALL - sum(share * replicas[name] for name, share in shares.items())
    if left < 0.1:
        return {}
    return {order[0].name: order[0].memory_share or round(left, 2), **shares}


# --- the plan -----------------------------------------------------------------------------------------------------


def _plan(spec: Spec, chosen: Sequence[_Choice], hosts: Sequence[Host], problem: _Problem) -> Plan:
    """Replicas in the order of the spec, each ledger with its neighbours in it."""
    replicas: dict[str, list[Replica]] = {}
    findings: list[Finding] = []
    rejected: list[Rejected] = []
    notes: list[str] = []
    for index, choice in enumerate(chosen):
        settled = choice.option.settled
        if len(chosen) > 1:
            free = list(hosts)
            for other in (*chosen[:index], *chosen[index + 1 :]):
                free = after(free, other.option.settled)
            settled = with_neighbours(settled, free)
        else:
            settled = _on_whole_hosts(settled, hosts)
        name = choice.deployment.name
        place = replicas.setdefault(name, [])
        place.append(
            Replica(
                name=f"{name}-{len(place) + 1}",
                candidate=settled.candidate,
                ledger=settled.ledger,
                speeds=(choice.option.speed,) if choice.option.speed else (),
            )
        )
        findings += [replace(finding, deployment=name) for finding in choice.option.findings]
        rejected += choice.rejected
        notes += _notes(choice, settled, problem)
    ordered = [replica for deployment in spec.models for replica in replicas[deployment.name]]
    return Plan(
        replicas=tuple(ordered),
        findings=tuple(dict.fromkeys(findings)),
        rejected=tuple(rejected),
        notes=tuple(dict.fromkeys(notes)),
    )


def _on_whole_hosts(settled: Settled, hosts: Sequence[Host]) -> Settled:
    """`settled` with the host as it is, not as it was narrowed for others."""
    host = next((host for host in hosts if host.name == settled.candidate.host.name), settled.candidate.host)
    return replace(settled, candidate=replace(settled.candidate, host=host))


def _notes(choice: _Choice, settled: Settled, problem: _Problem) -> list[str]:
    name, notes = choice.deployment.name, []
    offered = problem.alternatives.get(name, ())
    if not choice.option.settled.fits:
        notes += [f"{name}: {sentence}" for sentence in nearest_fits(choice.option.settled, offered)]
    elif settled.candidate.model.id != problem.models[name].id:
        notes.append(f"{name}: {problem.models[name].id} fits nowhere here, so {settled.candidate.model.id} is taken")
    if settled.ledger.tight:
        notes.append(f"{name}: the verdict hangs on what is assumed; measure before you rely on it")
    return notes
