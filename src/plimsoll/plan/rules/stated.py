"""A spec taken at its word: the candidate that it states, whether or not it could run.

A plan leaves out what cannot run, and so has nothing to say of it; the rules are shown what was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from plimsoll.facts.engine import EngineFacts
from plimsoll.facts.hardware import Device, Host
from plimsoll.facts.model import ModelFacts
from plimsoll.plan.rules import check, check_all, errors_first
from plimsoll.plan.rules.options import Value, options_from_args
from plimsoll.plan.types import Candidate, Finding, Parallel
from plimsoll.spec.deployment import Deployment, Spec

_USUAL_CONTEXT = 8192
_FLAGS: Mapping[str, tuple[str, ...]] = {
    "tensor": ("tensor_parallel_size", "tp_size", "worldSize"),
    "pipeline": ("pipeline_parallel_size", "pp_size"),
    "data": ("data_parallel_size", "dp_size"),
    "expert": ("ep_size",),
    "context": ("max_model_len", "context_length", "maxSeqLen", "num_ctx"),
    "sequences": ("max_num_seqs", "max_running_requests", "parallel", "maxBatchSize"),
    "batched": ("max_num_batched_tokens", "chunked_prefill_size", "batch_size"),
    "share": ("gpu_memory_utilization", "mem_fraction_static"),
    "nodes": ("nnodes",),
}
"""Engine flags that say what the spec has a key for."""


def as_stated(deployment: Deployment, model: ModelFacts, hosts: Sequence[Host], engine: EngineFacts) -> Candidate:
    """The candidate that `deployment` and its extra_args state; what they leave open is one rank and one request.

    Devices are the first of the hosts' that the engine runs on, as many as there are ranks or as there are at all.
    """
    options = options_from_args(engine.name, deployment.extra_args)
    stated = deployment.parallel
    tensor = stated.tensor or _number(options, "tensor") or 1
    data = stated.data or (None if options.get("enable_dp_attention") else _number(options, "data")) or 1
    expert = stated.expert or _number(options, "expert") or _whole_experts(model, engine, tensor, data)
    if options.get("enable_expert_parallel"):
        expert = tensor * data
    parallel = Parallel(
        tensor=tensor, pipeline=stated.pipeline or _number(options, "pipeline") or 1, data=data, expert=expert
    )
    devices, nodes = _devices(deployment, hosts, engine, parallel.world)
    share = deployment.memory_share or _share(options)
    return Candidate(
        deployment=deployment,
        model=model,
        engine=engine,
        host=hosts[0],
        devices=devices,
        parallel=parallel,
        nodes=_number(options, "nodes") or nodes,
        context_tokens=deployment.context or _number(options, "context") or _context(model),
        sequences=deployment.concurrency or _number(options, "sequences") or 1,
        kv_dtype=deployment.kv_cache_dtype,
        dtype=deployment.dtype,
        memory_share=share,
        batched_tokens=_number(options, "batched"),
        eager=bool(options.get("enforce_eager")),
        options=options,
    )


def check_spec(
    spec: Spec, *, models: Mapping[str, ModelFacts], hosts: Sequence[Host], engines: Mapping[str, EngineFacts]
) -> tuple[Finding, ...]:
    """What the rules find in a spec taken at its word, errors first, whether or not any plan could be made of it.

    `models` by deployment name, `engines` by engine name (`vllm==0.11.0` is looked up as it stands, then as `vllm`).
    Deployments whose engine is left to the planner are passed over: there is nothing stated to check.
    """
    found: list[Finding] = []
    together: list[Candidate] = []
    for deployment in spec.models:
        engine = engines.get(deployment.engine) or engines.get(deployment.engine.partition("=")[0])
        if engine is None or deployment.name not in models:
            continue
        candidate = as_stated(deployment, models[deployment.name], hosts, engine)
        found += check(candidate)
        if _placed(deployment, candidate):
            together.append(candidate)
    return errors_first([*found, *check_all(together)])


def _placed(deployment: Deployment, candidate: Candidate) -> bool:
    """Whether the spec leaves no choice of devices: it names them, or needs all there are."""
    return deployment.devices is not None or candidate.parallel.world >= len(candidate.host.devices)


def _context(model: ModelFacts) -> int:
    return min(model.max_context_tokens, _USUAL_CONTEXT) if model.max_context_tokens else _USUAL_CONTEXT


def _whole_experts(model: ModelFacts, engine: EngineFacts, tensor: int, data: int) -> int:
    """Expert ranks where the spec leaves them open: as the planner, all ranks where experts cannot be cut, else one."""
    if model.moe is None or "expert" not in engine.parallel:
        return 1
    width, block = model.moe.intermediate_size, model.quantization.block if model.quantization else None
    cut_whole = width % tensor == 0 and (block is None or all((width // tensor) % size == 0 for size in block))
    if cut_whole:
        return 1
    return tensor if engine.name == "sglang" else tensor * data


def _number(options: Mapping[str, Value], key: str) -> int | None:
    for name in _FLAGS[key]:
        value = options.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _share(options: Mapping[str, Value]) -> float | None:
    values = (options.get(name) for name in _FLAGS["share"])
    return next((float(value) for value in values if isinstance(value, (int, float)) and 0 < value <= 1), None)


def _devices(
    deployment: Deployment, hosts: Sequence[Host], engine: EngineFacts, world: int
) -> tuple[tuple[Device, ...], int]:
    """The devices, and how many machines they are on."""
    wanted = deployment.devices
    taken: list[Device] = []
    nodes = 0
    for host in hosts:
        cards = [
            device
            for device in host.devices
            if device.vendor in engine.vendors
            and (wanted is None or device.index in wanted or str(device.index) in wanted or device.name in wanted)
        ]
        if cards and (not taken or len(taken) < world):
            # Engines without ranks use all cards of a machine, others as many as they have ranks.
            taken += cards if "tensor" not in engine.parallel else cards[: world - len(taken)]
            nodes += 1
    if not taken:
        return (hosts[0].cpu,), 1
    return tuple(taken), max(1, nodes)
