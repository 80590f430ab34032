"""From a spec to a plan: read the facts, then decide."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches

from plimsoll.app.environments import known_engines
from plimsoll.app.settings import Settings
from plimsoll.app.weights import local_weights
from plimsoll.discover.engines import reference_engines
from plimsoll.discover.machine import this_machine
from plimsoll.discover.models import find_model
from plimsoll.errors import PlanError, SpecError
from plimsoll.facts.engine import EngineFacts
from plimsoll.facts.hardware import Host
from plimsoll.facts.model import ModelFacts
from plimsoll.facts.words import parse_hosts
from plimsoll.plan.rules import check
from plimsoll.plan.solve import solve
from plimsoll.plan.types import Plan
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


def make_plan(spec: Spec, settings: Settings, *, on: str | None = None) -> Plan:
    """The plan for `gather_facts`. It may not fit: `Plan.fits` says. PlanError where no engine can load a model."""
    facts = gather_facts(spec, settings, on=on)
    return solve(spec, facts.models, facts.hosts, facts.engines, rules=check)


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
