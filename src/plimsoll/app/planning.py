"""From a spec to a plan: read the facts, then decide."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from plimsoll.app.environments import known_engines
from plimsoll.app.settings import Settings
from plimsoll.app.weights import local_weights
from plimsoll.discover.engines import reference_engines
from plimsoll.discover.machine import this_machine
from plimsoll.discover.models import find_model
from plimsoll.errors import PlanError, SpecError
from plimsoll.facts.catalogue import model, offers
from plimsoll.facts.engine import EngineFacts
from plimsoll.facts.hardware import Host
from plimsoll.facts.model import ModelFacts
from plimsoll.facts.words import parse_hosts
from plimsoll.plan.rank import Goal
from plimsoll.plan.rules import check
from plimsoll.plan.solve import solve
from plimsoll.plan.speed import missed, predict_for
from plimsoll.plan.types import Candidate, Plan, Replica, Speed
from plimsoll.spec.deployment import Deployment, Spec
from plimsoll.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a plan is made from: models by deployment name, machines, engines that may be chosen."""

    models: Mapping[str, ModelFacts]
    hosts: tuple[Host, ...]
    engines: tuple[EngineFacts, ...]


def gather_facts(spec: Spec, settings: Settings, *, on: str | None = None) -> Facts:
    """Facts of the spec's models, and of this machine or of the one that `on` describes in words.

    SpecError for an engine or a machine that is not known, FactError for a model that cannot be read.
    """
    known = reference_engines() if on else known_engines(settings, spec.models)
    wanted = {_engine_name(deployment, known) for deployment in spec.models}
    return Facts(
        models={one.name: _model_facts(one, settings, elsewhere=on is not None) for one in spec.models},
        hosts=parse_hosts(on) if on else (this_machine(),),
        engines=tuple(one.facts for one in known.values() if not one.facts.fake or one.facts.name in wanted),
    )


def make_plan(spec: Spec, settings: Settings, *, on: str | None = None, goal: Goal = "balanced") -> Plan:
    """The plan for `gather_facts`, with how fast it will be. It may not fit: `Plan.fits` says.

    With a `goal` of throughput or latency, predicted speed decides among the ways that fit. PlanError where no engine
    can load a model.
    """
    facts = gather_facts(spec, settings, on=on)
    plan = solve(
        spec,
        facts.models,
        facts.hosts,
        facts.engines,
        goal=goal,
        rules=check,
        predict=_predict if goal in ("throughput", "latency") else None,
        alternatives={one.name: _alternatives(one) for one in spec.models},
    )
    replicas = tuple(_with_speeds(_of_its_model(replica)) for replica in plan.replicas)
    notes = tuple(
        f"{replica.name}: {sentence}"
        for replica in replicas
        for speed in replica.speeds[:1]
        for sentence in missed(speed, replica.candidate.deployment.slo)
    )
    return replace(plan, replicas=replicas, notes=(*plan.notes, *notes))


def _predict(candidate: Candidate) -> Speed:
    return predict_for(candidate)[0]


def _with_speeds(replica: Replica) -> Replica:
    candidate = replica.candidate
    if candidate.engine.fake or not replica.ledger.fits or candidate.model.task not in ("chat", "completion"):
        return replica
    return replace(replica, speeds=predict_for(candidate, ledger=replica.ledger))


def _of_its_model(replica: Replica) -> Replica:
    """Where another quantization was taken, the deployment names it: what was planned is what is fetched."""
    candidate, chosen = replica.candidate, replica.candidate.model.id
    if chosen not in offers(candidate.deployment.model):
        return replica
    deployment = candidate.deployment.model_copy(update={"model": chosen})
    return replace(replica, candidate=replace(candidate, deployment=deployment))


def _alternatives(deployment: Deployment) -> tuple[ModelFacts, ...]:
    """The same model in the quantizations that the catalogue offers, unless the spec states one."""
    if deployment.quantization or Path(deployment.model).exists():
        return ()
    return tuple(model(name) for name in offers(deployment.model))


def refuse_unfit(plan: Plan) -> None:
    """PlanError if the plan does not fit or a rule forbids it."""
    if plan.fits:
        return
    for replica in plan.replicas:
        if not replica.ledger.fits:
            raise PlanError(
                f"{replica.name} does not fit: {format_bytes(-replica.ledger.margin_bytes)} are missing",
                hint="a smaller --context, a lower --concurrency or a smaller quantization needs less",
                findings=replica.ledger.notes,
            )
    errors = [finding for finding in plan.findings if finding.severity == "error"]
    raise PlanError(
        f"this would not run: {errors[0].what}", hint=errors[0].fix, findings=[one.what for one in errors[1:]]
    )


def _engine_name(deployment: Deployment, engines: Collection[str]) -> str:
    """The engine that the deployment names, without a version; "auto" if it leaves the choice to the plan."""
    name = deployment.engine.partition("==")[0]
    known = [*engines, "auto"]
    if name not in known:
        near = get_close_matches(name, known, n=1) or known
        raise SpecError(
            f"{deployment.name}: there is no engine {name!r}", hint=f"did you mean {near[0]}? Known: {', '.join(known)}"
        )
    return name


def _model_facts(deployment: Deployment, settings: Settings, *, elsewhere: bool) -> ModelFacts:
    """What is known of the model: from its files if they are here, else from the catalogue or its hub."""
    path = None if elsewhere else local_weights(deployment, settings)
    facts = find_model(deployment.model, path=path, form=deployment.quantization)
    return replace(facts, task=deployment.task) if deployment.task else facts
