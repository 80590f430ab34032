"""`tune`: settings worth trying, each started the way `up` starts it and measured through the gateway."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from plimsoll.app import running as looking
from plimsoll.app.measuring import measure, of_deployment
from plimsoll.app.planning import Facts, gather_facts, refuse_unfit
from plimsoll.app.settings import Settings
from plimsoll.app.target import Overrides, spec_of
from plimsoll.app.up import start_service
from plimsoll.app.weights import fetch_weights
from plimsoll.bench.load import Load, Route
from plimsoll.bench.measure import Level
from plimsoll.bench.pace import Closed
from plimsoll.bench.summary import Slo
from plimsoll.bench.trials import measured_trial, trial_from_json, trial_to_json
from plimsoll.bench.tune import UNSET, Knob, Objective, Search, Trial, Tuning, Value, tune
from plimsoll.errors import BenchError, LaunchError, PlanError, PlimsollError, SpecError
from plimsoll.plan.enumerate import unable
from plimsoll.plan.rules import check
from plimsoll.plan.rules.mend import with_flag
from plimsoll.plan.solve import solve
from plimsoll.plan.speed import predict
from plimsoll.plan.types import Candidate, Plan
from plimsoll.spec.deployment import Deployment, GatewaySpec, Spec
from plimsoll.spec.dump import dump_spec
from plimsoll.weights.transfer import Progress

_USUAL_CLIENTS = 16
_ROUTES: Mapping[str, Route] = {"completion": "completions", "embed": "embeddings", "rerank": "rerank"}
_SEED = 1
"""The same prompts for every point. Each has an engine of its own, so none finds them in its prefix cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneRequest:
    """What `plimsoll tune` was asked for."""

    target: str | None
    objective: Objective
    overrides: Overrides = field(default_factory=Overrides)
    concurrency: int | None = None
    """Requests in flight; None: as many as the spec serves at once, or one for latency and 16 for the rest."""
    slo: Slo | None = None
    """None: the spec's own."""
    search: Search = field(default_factory=Search)
    knobs: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    """Further settings to try, by key of the spec (`memory_share`, `extra_args.FLAG`, `env.NAME`)."""
    prompt_tokens: int = 64
    output_tokens: int = 48
    anew: bool = False
    """Forget the trials of an earlier search for the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """The search's end: what was found, and the spec with the best settings (None: nothing could be measured)."""

    tuning: Tuning
    spec: Spec | None
    directory: Path
    """Trials, logs and records of the search."""


def tune_deployment(
    request: TuneRequest,
    settings: Settings,
    *,
    on_trial: Callable[[Trial], None],
    progress: Progress | None = None,
) -> Tuned:
    """Search for the best settings of the spec's one model; each trial is kept as soon as it is made.

    A search for the same that was ended early goes on where it stopped. SpecError, FactError, PlanError, WeightError or
    LaunchError where the spec as it is cannot be started; BenchError where another search for the same is under way.
    """
    spec = spec_of(request.target, request.overrides)
    if len(spec.models) != 1:
        raise SpecError(
            f"{len(spec.models)} models are tuned one at a time", hint="give each a spec of its own for this"
        )
    facts = gather_facts(spec, settings)
    plan = solve(spec, facts.models, facts.hosts, facts.engines, rules=check)
    refuse_unfit(plan)
    base = plan.replicas[0].candidate
    if not base.engine.installed:
        raise LaunchError(
            f"{base.engine.name} is not installed here", hint=f"`plimsoll engines install {base.engine.name}` does it"
        )
    slo = request.slo or _stated_slo(spec.models[0])
    if request.objective == "goodput" and slo is None:
        raise SpecError("goodput needs a service level", hint="such as --slo ttft=500ms,tpot=50ms")
    clients = request.concurrency or spec.models[0].concurrency
    clients = clients or (1 if request.objective == "latency" else _USUAL_CLIENTS)
    knobs = find_knobs(
        base, _other_engines(base, facts), clients=clients, lossy=request.search.lossy, more=request.knobs
    )
    load = Load(
        route=_ROUTES.get(base.model.task, "chat"), prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens, warmup=1, seed=_SEED,
    )  # fmt: skip
    # The context is the plan's from here on: a point that serves less is not faster.
    pinned: dict[str, object] = {"context": base.context_tokens}
    if spec.models[0].engine == "auto":
        pinned["engine"] = base.engine.name
    deployment = spec.models[0].model_copy(update=pinned)
    engines = sorted((one.name, one.version) for one in facts.engines if one.installed)
    asked = repr((request.objective, clients, slo, load, request.knobs, request.search.lossy, engines))
    directory = settings.state_dir / "tune" / hashlib.sha256((dump_spec(spec) + asked).encode()).hexdigest()[:12]
    road = _Road(
        facts=facts, base=base, deployment=deployment, knobs=knobs, objective=request.objective, clients=clients,
        slo=slo, load=load, settings=replace(settings, state_dir=directory),
        model_path=str(fetch_weights(base, settings, progress=progress)),
    )  # fmt: skip
    with open_journal(directory, anew=request.anew) as (done, keep):
        # What a killed search left behind would share the machine with what is measured now.
        for _ in looking.stop(road.settings, None, every=True):
            pass

        def note(trial: Trial) -> None:
            # What cannot run is found out anew in a moment, and there is much of it.
            if trial.status != "infeasible":
                keep(trial)
                on_trial(trial)

        tuning = asyncio.run(
            tune(
                knobs, measure=road.measure, infeasible=road.infeasible, predict=road.predict, search=request.search,
                done=[trial for trial in done if _within(trial, knobs)], on_trial=note,
            )
        )  # fmt: skip
    best = tuning.best
    tuned = spec.model_copy(update={"models": (road.changed(dict(best.point)),)}) if best else None
    return Tuned(tuning=tuning, spec=tuned, directory=directory)


def find_knobs(
    base: Candidate, others: Sequence[str], *, clients: int, lossy: bool, more: Mapping[str, tuple[Value, ...]]
) -> tuple[Knob, ...]:
    """What may be turned from `base`, each knob's present value first; `others`: engines to try beside its own.

    The least telling come first: the points that a short search begins with differ in the last ones.
    """
    engines = {base.engine.name, *others}
    offered = {key: values for key, owners, values in _offers(base.host.cores, clients) if engines & set(owners)}
    if lossy and "llamacpp" in engines:
        offered["kv_cache_dtype"] = ("q8_0",)
    offered |= {"concurrency": (clients, clients // 2 or 1), "engine": tuple(others)}
    # What the user names is what the user wants to know: it stands last.
    offered = {**{key: values for key, values in offered.items() if key not in more}, **more}
    knobs = []
    for key, values in offered.items():
        present = _present(base, key)
        new = [value for value in dict.fromkeys(values) if str(value) != str(present)]
        if new:
            knobs.append(Knob(name=key, values=(present, *new), lossy=key in ("kv_cache_dtype", "quantization")))
    return tuple(knobs)


def _offers(cores: int, clients: int) -> Iterator[tuple[str, tuple[str, ...], tuple[Value, ...]]]:
    """(key, engines that have it, values worth trying)."""
    llamacpp = ("llamacpp",)
    yield "extra_args.flash_attn", llamacpp, ("off",)
    yield "extra_args.batch_size", llamacpp, (512,)
    yield "extra_args.ubatch_size", llamacpp, (128,)
    yield "extra_args.max_num_batched_tokens", ("openvino", "vllm"), (1024, 8192)
    threads = tuple(dict.fromkeys(max(1, count) for count in (cores - 1, cores // 2, cores)))
    yield "extra_args.num_threads", ("openvino",), threads
    # How long OpenMP spins at a barrier before it sleeps: pays on idle cores, ruins shared ones.
    yield "env.GOMP_SPINCOUNT", llamacpp, ("0", "1000000")
    yield "extra_args.threads_batch", llamacpp, (cores,)
    # As many threads as cores leave none for the gateway and whatever else runs.
    yield "extra_args.threads", llamacpp, threads


def out_of_place(point: Mapping[str, Value], knobs: Sequence[Knob]) -> str | None:
    """The knob that is turned at this point though it is another engine's, as a reason; None if there is none."""
    engine = point.get("engine")
    owners = {key: engines for key, engines, _ in _offers(1, 1)} | {"kv_cache_dtype": ("llamacpp",)}
    for knob in knobs:
        if engine and point[knob.name] != knob.values[0] and engine not in owners.get(knob.name, (engine,)):
            return f"{knob.name} is not tried with {engine}"
    return None


def _present(base: Candidate, key: str) -> Value:
    """What the plan has for a knob; UNSET where that is left to the engine."""
    head, _, rest = key.partition(".")
    if head == "extra_args":
        return base.options.get(rest, UNSET)
    if head == "env":
        return base.deployment.env.get(rest, UNSET)
    planned: Mapping[str, Value] = {
        "engine": base.engine.name, "concurrency": base.sequences, "kv_cache_dtype": base.kv_dtype,
        "memory_share": base.memory_share or UNSET,
    }  # fmt: skip
    if key in planned:
        return planned[key]
    if head not in Deployment.model_fields:
        raise SpecError(f"there is no setting {key!r}", hint="such as extra_args.threads, env.NAME, memory_share")
    value = getattr(base.deployment, head)
    value = getattr(value, rest, None) if rest else value
    return UNSET if value is None else str(value)


def _other_engines(base: Candidate, facts: Facts) -> tuple[str, ...]:
    """Installed engines that can load the model too, where the spec leaves the engine open."""
    if base.deployment.engine != "auto" or base.deployment.extra_args:
        return ()
    can = (one for one in facts.engines if one.installed and not one.fake and unable(one, base.model) is None)
    return tuple(one.name for one in can if one.name != base.engine.name)


def _stated_slo(deployment: Deployment) -> Slo | None:
    stated = deployment.slo
    return Slo(ttft_s=stated.ttft, tpot_s=stated.tpot) if stated.ttft or stated.tpot else None


def _within(trial: Trial, knobs: Sequence[Knob]) -> bool:
    """Whether the trial is of these knobs: what the plan chooses may have changed since (less memory is free)."""
    return [name for name, _ in trial.point] == [knob.name for knob in knobs] and all(
        value in knob.values for knob, (_, value) in zip(knobs, trial.point, strict=True)
    )


@contextmanager
def open_journal(directory: Path, *, anew: bool) -> Iterator[tuple[list[Trial], Callable[[Trial], None]]]:
    """The trials made so far, and how to add one; a line that a kill cut off is dropped."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / "trials.jsonl"
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise BenchError("the same search is under way already", source=str(path)) from problem
        file.seek(0)
        data = b"" if anew else file.read()
        file.truncate(data.rfind(b"\n") + 1)
        yield (
            [trial_from_json(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")],
            partial(_append, file),
        )


def _append(file: IO[bytes], trial: Trial) -> None:
    file.write(trial_to_json(trial).encode() + b"\n")
    file.flush()


@dataclass(slots=True, kw_only=True)
class _Road:
    """From a point of the search to a running deployment and its figures."""

    facts: Facts
    base: Candidate
    deployment: Deployment
    knobs: tuple[Knob, ...]
    objective: Objective
    clients: int
    slo: Slo | None
    load: Load
    settings: Settings
    """With a state directory of the search's own: trials are no deployments of the user's."""
    model_path: str
    _plans: dict[tuple[tuple[str, Value], ...], Plan] = field(default_factory=dict)

    def changed(self, point: Mapping[str, Value]) -> Deployment:
        """The deployment with what the point has otherwise than the plan. SpecError if the spec forbids a value."""
        content = self.deployment.model_dump()
        for knob in self.knobs:
            value = point[knob.name]
            head, _, rest = knob.name.partition(".")
            if value == knob.values[0]:
                continue
            if head == "extra_args":
                engine = str(point.get("engine", self.base.engine.name))
                content[head] = with_flag(content[head], rest, value, engine=engine)
            elif rest:
                content[head] = {**content[head], rest: str(value) if head == "env" else value}
            else:
                content[head] = value
        try:
            return Deployment.model_validate(content)
        except ValidationError as problem:
            raise SpecError(f"{problem.errors()[0]['loc']}: {problem.errors()[0]['msg']}") from problem

    def spec(self, point: Mapping[str, Value]) -> Spec:
        """The point as a spec of its own, on any free port."""
        return Spec(models=(self.changed(point),), gateway=GatewaySpec(port=0))

    def plan(self, point: Mapping[str, Value]) -> Plan:
        """The point's plan, its weights in place."""
        key = tuple(point.items())
        if key not in self._plans:
            facts = self.facts
            plan = solve(self.spec(point), facts.models, facts.hosts, facts.engines, rules=check)
            placed = tuple(replace(one, model_path=self.model_path) for one in plan.replicas)
            self._plans[key] = replace(plan, replicas=placed)
        return self._plans[key]

    def infeasible(self, point: Mapping[str, Value]) -> str | None:
        """Why the point cannot run: a setting of another engine, the ledger, or a rule."""
        if reason := out_of_place(point, self.knobs):
            return reason
        try:
            refuse_unfit(self.plan(point))
        except (PlanError, SpecError) as problem:
            return problem.message
        return None

    def predict(self, point: Mapping[str, Value]) -> float | None:
        """The score that the speed model expects; None where it says nothing."""
        replica = self.plan(point).replicas[0]
        if replica.candidate.engine.fake or not self.load.generates:
            return None
        tokens_out = self.load.output_tokens
        speed = predict(
            replica.candidate, prompt_tokens=self.load.prompt_tokens, output_tokens=tokens_out,
            concurrency=self.clients, ledger=replica.ledger,
        )  # fmt: skip
        ttft_s, tpot_s = speed.ttft_s.expected, speed.tpot_s.expected
        if self.objective == "throughput":
            return speed.tokens_per_s.expected
        if self.objective == "latency":
            return -(ttft_s + (tokens_out - 1) * tpot_s)
        kept = self.slo is not None and all(
            limit is None or value <= limit
            for limit, value in (
                (self.slo.ttft_s, ttft_s), (self.slo.tpot_s, tpot_s),
                (self.slo.e2e_s, ttft_s + (tokens_out - 1) * tpot_s),
            )
        )  # fmt: skip
        return speed.requests_per_s.expected if kept and speed.requests_per_s else 0.0

    async def measure(self, point: Mapping[str, Value], seconds: float) -> Trial:
        """Start the point, measure it for so many seconds, stop it. What goes wrong is the trial's reason."""
        began = time.monotonic()
        levels: list[Level] = []
        name = self.deployment.name
        try:
            with start_service("tune", self.spec(point), self.plan(point), self.settings, detach=False) as service:
                running = await asyncio.to_thread(service.wait_ready)
                job = replace(
                    of_deployment(running, name), load=replace(self.load, seconds=seconds), slo=self.slo,
                    paces=(Closed(concurrency=self.clients),),
                )  # fmt: skip
                await asyncio.to_thread(partial(measure, job, settings=self.settings, on_level=levels.append))
        except PlimsollError as problem:
            cost_s = time.monotonic() - began
            return Trial(point=(), status="failed", seconds=seconds, cost_s=cost_s, reason=problem.message)
        cost_s = time.monotonic() - began
        return measured_trial(levels[-1].summary, self.objective, seconds=seconds, cost_s=cost_s)
