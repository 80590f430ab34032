"""The field notes replayed: every launch that people noted, what came of it, and what Plimsoll says of it.

`python -m plimsoll.app.field_notes > docs/field-notes.md` writes the whole table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any, Literal

import yaml

from plimsoll.discover.engines import reference_engines
from plimsoll.engines.translate import Note, translate
from plimsoll.errors import PlanError
from plimsoll.facts.catalogue import model
from plimsoll.facts.engine import EngineFacts
from plimsoll.facts.hardware import Host
from plimsoll.facts.model import ModelFacts
from plimsoll.facts.words import parse_hosts
from plimsoll.plan.memory import account
from plimsoll.plan.rules import check, check_all
from plimsoll.plan.rules.mend import mend_spec
from plimsoll.plan.rules.stated import as_stated
from plimsoll.plan.solve import solve
from plimsoll.plan.types import Candidate, Finding
from plimsoll.spec.deployment import Deployment, ParallelSpec, Spec
from plimsoll.spec.dump import dump_spec
from plimsoll.units import format_bytes

_ROUNDS = 5
Says = Literal["runs", "refused", "unsure"]
"""unsure: it is short of memory by less than what the account only assumes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the rules and the ledger say of one launch for one version of its engine."""

    says: Says
    why: str
    """The first error, or what is short; with "runs" the first warning, or ""."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One noted launch and what Plimsoll makes of it."""

    id: str
    hardware: str
    launch: str
    outcome: str
    engine_then: str
    then: Verdict
    engine_today: str
    today: Verdict
    notes: tuple[Note, ...]
    """What became of its flags since."""
    spec: str
    """That works today, as YAML; "" where nothing does."""
    how: str
    """as noted, mended, or planned anew."""


def replay() -> Iterator[Replayed]:
    """All noted launches, in the order of the notes."""
    cases = {case["id"]: case for case in _cases()}
    for case in cases.values():
        yield _replay_group(case, [cases[name] for name in case["together"]]) if "together" in case else _replay(case)


def _replay(case: Mapping[str, Any]) -> Replayed:
    hosts = parse_hosts(case["hardware"])
    facts = _model(case)
    name, _, version = str(case["then"]).partition(" ")
    translation = translate(_launch(case), model=case["model"])
    [deployment] = translation.spec().models
    # The note's path is on its writer's machine; the catalogue knows what lay there.
    context = deployment.context or case.get("context")
    deployment = deployment.model_copy(update={"model": case["model"], "context": context})
    known = {engine.name: engine for engine in (one.facts for one in reference_engines().values())}
    today = known.get(deployment.engine, known[name])
    nodes = int(case.get("nodes", translation.nodes))
    then = _verdict(_candidate(deployment, facts, hosts, replace(today, version=version), nodes), hosts)
    now = _verdict(_candidate(deployment, facts, hosts, today, nodes), hosts)
    spec, how = _spec_today(deployment, facts, hosts, today, nodes)
    return Replayed(
        id=case["id"],
        hardware=case["hardware"],
        launch=_launch(case),
        outcome=case["outcome"],
        engine_then=case["then"],
        then=then,
        engine_today=f"{today.name} {today.version}",
        today=now,
        notes=translation.notes,
        spec=spec,
        how=how,
    )


def _replay_group(case: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> Replayed:
    """Several launches on the same devices: rules on all together, and one plan for all."""
    hosts = parse_hosts(case["hardware"])
    text = "\n".join(_launch(part) for part in parts)
    translation = translate(text)
    by_name = {one.name: _model(part) for one, part in zip(translation.deployments, parts, strict=True)}
    deployments = [
        one.model_copy(update={"model": part["model"]})
        for one, part in zip(translation.deployments, parts, strict=True)
    ]
    engine = reference_engines()["vllm"].facts
    version = str(case["then"]).partition(" ")[2]
    spec = Spec(models=tuple(deployments), gateway=translation.gateway)

    def verdict(facts: EngineFacts) -> Verdict:
        candidates = [as_stated(one, by_name[one.name], hosts, facts) for one in deployments]
        errors = [one for one in check_all(candidates) if one.severity == "error"]
        errors += [one for candidate in candidates for one in check(candidate) if one.severity == "error"]
        plan = solve(spec, by_name, hosts, (facts,), rules=check)
        short = next((one.name for one in plan.replicas if not one.ledger.fits), None)
        if errors or short:
            return Verdict(says="refused", why=errors[0].what if errors else f"{short} does not fit")
        shares = " + ".join(f"{one.candidate.memory_share or 0:g}" for one in plan.replicas)
        return Verdict(says="runs", why=f"shares of {shares}")

    return Replayed(
        id=case["id"],
        hardware=case["hardware"],
        launch=text,
        outcome=case["outcome"],
        engine_then=case["then"],
        then=verdict(replace(engine, version=version)),
        engine_today=f"{engine.name} {engine.version}",
        today=verdict(engine),
        notes=(),
        spec=dump_spec(spec),
        how="as noted",
    )


def _cases() -> list[dict[str, Any]]:
    return list(yaml.safe_load((files("plimsoll.facts") / "data" / "field_notes.yaml").read_text()))


def _launch(case: Mapping[str, Any]) -> str:
    text = str(case["launch"])
    if count := case.get("rpc_servers"):
        text += " --rpc " + ",".join(f"10.10.10.{2 + n // 8}:{50052 + n % 8}" for n in range(count))
    return text


def _model(case: Mapping[str, Any]) -> ModelFacts:
    facts = model(case["model"])
    return replace(facts, dtype=case.get("dtype", facts.dtype), format=case.get("format", facts.format))


def _candidate(
    deployment: Deployment, facts: ModelFacts, hosts: Sequence[Host], engine: EngineFacts, nodes: int
) -> Candidate:
    return replace(as_stated(deployment, facts, hosts, engine), nodes=nodes)


def _verdict(candidate: Candidate, hosts: Sequence[Host]) -> Verdict:
    # One rpc server lends one card of another machine; the machine that asks uses all of its own.
    servers = str(candidate.options.get("rpc", "")).count(":")
    lent = [device for host in hosts[1:] for device in host.devices][:servers]
    try:
        ledger = account(replace(candidate, devices=(*candidate.devices, *lent)))
    except PlanError as problem:
        return Verdict(says="refused", why=problem.message)
    findings = check(candidate, ledger=ledger)
    short = -ledger.margin_bytes
    if 0 < short <= ledger.assumed_bytes:
        findings = tuple(one for one in findings if one.rule != "any.out_of_memory")
    if errors := [one for one in findings if one.severity == "error"]:
        # What no smaller size mends says more than that it is too large.
        return Verdict(says="refused", why=min(errors, key=lambda one: one.rule == "any.out_of_memory").what)
    if 0 < short <= ledger.assumed_bytes:
        what = f"{format_bytes(short)} short, of which {format_bytes(ledger.assumed_bytes)} are only assumed"
        return Verdict(says="unsure", why=what)
    if not ledger.fits:
        return Verdict(says="refused", why="; ".join(ledger.notes) or "it does not fit")
    return Verdict(says="runs", why=_first_warning(findings))


def _first_warning(findings: Sequence[Finding]) -> str:
    return next((f"warned: {one.what}" for one in findings if one.severity == "warning"), "")


def _spec_today(
    deployment: Deployment, facts: ModelFacts, hosts: Sequence[Host], engine: EngineFacts, nodes: int
) -> tuple[str, str]:
    """A spec that runs today, and how it was found: as noted, mended rule by rule, or planned anew."""
    spec = Spec(models=(deployment,))
    for round_ in range(_ROUNDS):
        candidate = _candidate(spec.models[0], facts, hosts, engine, nodes)
        if _verdict(candidate, hosts).says == "runs":
            return dump_spec(spec), "mended" if round_ else "as noted"
        mended = mend_spec(spec, check(candidate, ledger=None))
        if mended == spec:
            break
        spec = mended
    free = Deployment(name=deployment.name, model=deployment.model, context=deployment.context)
    engines = tuple(one.facts for one in reference_engines().values() if not one.facts.fake)
    plan = solve(Spec(models=(free,)), {free.name: facts}, hosts, engines, rules=check)
    if not plan.fits:
        return "", "nothing fits"
    chosen = plan.replicas[0].candidate
    parallel = chosen.parallel
    planned = free.model_copy(
        update={
            "engine": chosen.engine.name,
            "context": chosen.context_tokens,
            "concurrency": chosen.sequences,
            "memory_share": chosen.memory_share,
            "parallel": ParallelSpec(tensor=parallel.tensor, pipeline=parallel.pipeline),
        }
    )
    return dump_spec(Spec(models=(planned,))), "planned anew"


def as_markdown(replayed: Sequence[Replayed]) -> str:
    """The table of all launches, then each one with its launch, its flags' fate and the spec that works today."""
    lines = [
        "# The field notes, replayed",
        "",
        "Every launch that the five notes record, what came of it then, what Plimsoll says before it starts - for the",
        "engine of that time and for today's - and the spec that works today. Generated by",
        "`python -m plimsoll.app.field_notes > docs/field-notes.md`.",
        "",
        "| case | hardware | noted | then | today | spec today |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| [{one.id}](#{one.id}) | {one.hardware} | {_cell(one.outcome)} | {one.then.says}: {_cell(one.then.why)} |"
        f" {one.today.says}: {_cell(one.today.why)} | {one.how} |"
        for one in replayed
    ]
    for one in replayed:
        lines += ["", f"## {one.id}", "", "```", one.launch.strip(), "```", ""]
        lines += [f"- {note.fate}: `{note.what}`: {note.why}" for note in one.notes]
        lines += [f"- for {one.engine_then}: {one.then.says}{': ' * bool(one.then.why)}{one.then.why}"]
        lines += [f"- for {one.engine_today}: {one.today.says}{': ' * bool(one.today.why)}{one.today.why}"]
        if one.spec:
            lines += ["", f"Today ({one.how}):", "", "```yaml", one.spec.rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    sys.stdout.write(as_markdown(list(replay())))
