"""Every way to place a model: engine x quantization on offer x devices x tensor, pipeline and expert ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from plimsoll.facts.engine import EngineFacts
from plimsoll.facts.hardware import Device, Host
from plimsoll.facts.model import ModelFacts
from plimsoll.plan.rules.options import options_from_args
from plimsoll.plan.types import Candidate, Parallel
from plimsoll.spec.deployment import Deployment

_RPC_CARDS = 15
"""That llama.cpp drives over the network: its scheduler has 16 backends, the CPU is one (GGML_SCHED_MAX_BACKENDS)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Devices on one host or several alike, and how the model is cut over them."""

    host: Host
    devices: tuple[Device, ...]
    parallel: Parallel
    nodes: int = 1


def unable(engine: EngineFacts, model: ModelFacts) -> str | None:
    """Why `engine` cannot load `model` at all, whatever the devices; None if it can."""
    if model.format not in engine.formats:
        return f"{engine.name} does not load {model.format} files"
    if model.task not in engine.tasks:
        return f"{engine.name} does not serve {model.task} models"
    method = model.quantization.method if model.quantization and model.format != "gguf" else None
    if method and engine.quantizations and method not in engine.quantizations:
        return f"{engine.name} {engine.version} does not load {method} weights"
    return None


def candidates(
    deployment: Deployment, model: ModelFacts, hosts: Sequence[Host], engine: EngineFacts
) -> Iterator[Candidate]:
    """All placements of `model` under `engine`, context and sequences still open (the least of both).

    What the user's own flags say of them counts as if the spec had said it.
    """
    options = options_from_args(engine.name, deployment.extra_args)
    deployment = _with_flags(deployment, engine, options)
    for place in placements(deployment, model, hosts, engine):
        yield Candidate(
            deployment=deployment,
            model=model,
            engine=engine,
            host=place.host,
            devices=place.devices,
            parallel=place.parallel,
            nodes=place.nodes,
            context_tokens=deployment.context or 4096,
            sequences=deployment.concurrency or 1,
            kv_dtype=deployment.kv_cache_dtype,
            dtype=deployment.dtype,
            memory_share=deployment.memory_share,
            options=options,
        )


_SPEC_KEYS: Mapping[str, Mapping[str, str]] = {
    "vllm": {
        "max_model_len": "context", "max_num_seqs": "concurrency", "gpu_memory_utilization": "memory_share",
        "kv_cache_dtype": "kv_cache_dtype",
    },
    "sglang": {
        "context_length": "context", "max_running_requests": "concurrency", "mem_fraction_static": "memory_share",
        "kv_cache_dtype": "kv_cache_dtype",
    },
}  # fmt: skip
"""Engine flags that say what a key of the spec says, by memory policy."""


def _with_flags(
    deployment: Deployment, engine: EngineFacts, options: Mapping[str, str | int | float | bool]
) -> Deployment:
    """`deployment` with the keys that its `extra_args` state for this engine; keys of the spec itself go first."""
    said: dict[str, object] = {}
    for flag, key in _SPEC_KEYS.get(engine.memory, {}).items():
        value = options.get(flag)
        unset = getattr(deployment, key) in (None, "auto")
        if not unset or value is None or isinstance(value, bool):
            continue
        if (key == "kv_cache_dtype") == isinstance(value, str):
            said[key] = value if isinstance(value, str) or key == "memory_share" else int(value)
    return deployment.model_copy(update=said) if said else deployment


def placements(
    deployment: Deployment, model: ModelFacts, hosts: Sequence[Host], engine: EngineFacts
) -> Iterator[Placement]:
    """Where and how `engine` can run on `hosts`: on one host's devices, on its CPU, over hosts that are alike."""
    for host in hosts:
        cards = usable_cards(deployment, host, engine)
        kinds = _alike(cards)
        for group in kinds:
            yield from _on_cards(deployment, model, host, group, engine)
        if len(kinds) > 1 and "layer" in engine.parallel and len({card.vendor for card in cards}) == 1:
            # Layers can be dealt out over cards of any size.
            yield Placement(host=host, devices=cards, parallel=Parallel())
        if "cpu" in engine.vendors and _cpu_wanted(deployment) and _ranks_allowed(deployment, Parallel()):
            yield Placement(host=host, devices=(host.cpu,), parallel=Parallel())
    if engine.multi_node and len(hosts) > 1:
        yield from _over_hosts(deployment, model, hosts, engine)


def usable_cards(deployment: Deployment, host: Host, engine: EngineFacts) -> tuple[Device, ...]:
    """The host's accelerators that the engine runs on and the deployment allows, those with most free memory first."""
    wanted = deployment.devices
    cards = [
        device
        for device in host.devices
        if device.vendor in engine.vendors
        and (wanted is None or device.index in wanted or str(device.index) in wanted or device.name in wanted)
    ]
    return tuple(sorted(cards, key=lambda device: (-device.free_bytes, device.index)))


def _cpu_wanted(deployment: Deployment) -> bool:
    return deployment.devices is None or "cpu" in deployment.devices


def _alike(cards: Sequence[Device]) -> list[tuple[Device, ...]]:
    groups: dict[tuple[str, str, int], list[Device]] = {}
    for card in cards:
        groups.setdefault((card.vendor, card.arch, card.memory_bytes), []).append(card)
    return [tuple(group) for group in groups.values()]


def _counts(most: int) -> list[int]:
    """1, 2, 4 ... and all of them."""
    powers = [1 << bit for bit in range(most.bit_length()) if 1 << bit <= most]
    return powers if most in powers else [*powers, most]


def _on_cards(
    deployment: Deployment, model: ModelFacts, host: Host, cards: Sequence[Device], engine: EngineFacts
) -> Iterator[Placement]:
    for count in _counts(len(cards)):
        devices = tuple(cards[:count])
        if "tensor" not in engine.parallel:
            if count == 1 or "layer" in engine.parallel:
                yield Placement(host=host, devices=devices, parallel=Parallel())
            continue
        for parallel in _cuts(deployment, model, count, engine):
            yield Placement(host=host, devices=devices, parallel=parallel)


def _over_hosts(
    deployment: Deployment, model: ModelFacts, hosts: Sequence[Host], engine: EngineFacts
) -> Iterator[Placement]:
    """The same cards of the first 2, 4 ... or all hosts: tensor ranks inside each, pipeline stages over them."""
    cards = [usable_cards(deployment, host, engine) for host in hosts]
    kinds = {(device.arch, device.memory_bytes) for group in cards for device in group}
    per_host = min(len(group) for group in cards)
    if len(kinds) != 1 or not per_host:
        return
    if "layer" in engine.parallel and _ranks_allowed(deployment, Parallel()):
        for nodes in _counts(len(hosts))[1:]:
            each = min(per_host, _RPC_CARDS // nodes)
            devices = tuple(device for group in cards[:nodes] for device in group[:each])
            if each:
                yield Placement(host=hosts[0], devices=devices, parallel=Parallel(), nodes=nodes)
    if "pipeline" not in engine.parallel:
        return
    for nodes in _counts(len(hosts))[1:]:
        devices = tuple(device for group in cards[:nodes] for device in group[:per_host])
        for tensor, pipeline in ((per_host, nodes), (per_host * nodes, 1)):
            parallel = Parallel(tensor=tensor, pipeline=pipeline)
            if _divides(model, tensor) and _ranks_allowed(deployment, parallel):
                yield Placement(host=hosts[0], devices=devices, parallel=parallel, nodes=nodes)


def _cuts(deployment: Deployment, model: ModelFacts, count: int, engine: EngineFacts) -> Iterator[Parallel]:
    """Tensor x pipeline (x data, if it is stated) = `count`; experts dealt out whole where that is stated or usual."""
    data = deployment.parallel.data or 1
    if count % data or (data > 1 and "data" not in engine.parallel):
        return
    ranks = count // data
    for tensor in _counts(ranks):
        if ranks % tensor or not _divides(model, tensor):
            continue
        pipeline = ranks // tensor
        if pipeline > 1 and ("pipeline" not in engine.parallel or pipeline > model.layers):
            continue
        plain = Parallel(tensor=tensor, pipeline=pipeline, data=data)
        if _ranks_allowed(deployment, plain):
            yield plain
        if model.moe and "expert" in engine.parallel and tensor * data >= 8 and not model.moe.experts % (tensor * data):
            dealt = Parallel(tensor=tensor, pipeline=pipeline, data=data, expert=tensor * data)
            if _ranks_allowed(deployment, dealt):
                yield dealt


def _divides(model: ModelFacts, tensor: int) -> bool:
    return not model.heads or model.heads % tensor == 0


def _ranks_allowed(deployment: Deployment, parallel: Parallel) -> bool:
    """Whether the ranks are those that the deployment states."""
    stated = deployment.parallel
    return all(
        want is None or want == have
        for want, have in (
            (stated.tensor, parallel.tensor),
            (stated.pipeline, parallel.pipeline),
            (stated.data, parallel.data),
            (stated.expert, parallel.expert),
        )
    )
