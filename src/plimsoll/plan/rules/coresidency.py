"""Several replicas on the same machine: ports, shares of memory, and devices that cannot be shared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from plimsoll.plan.rules.case import Case
from plimsoll.plan.rules.registry import Example, Fault
from plimsoll.plan.types import Severity

Found = Iterator[tuple[str, Fault]]
"""The name of the deployment to change ("" for none in particular), and what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRule:
    """A rule about replicas that run together; its examples are tuples of overrides."""

    id: str
    title: str
    severity: Severity
    cause: str
    source: str
    check: Callable[[Sequence[Case]], Found]
    fires: tuple[Example, ...]
    passes: tuple[Example, ...]


def _by_device(cases: Sequence[Case]) -> dict[tuple[str, str, int], list[Case]]:
    """Cases by host, vendor and index of each accelerator they use; each case once, over however many machines."""
    found: dict[tuple[str, str, int], list[Case]] = defaultdict(list)
    for case in cases:
        for vendor, index in {(device.vendor, device.index) for device in case.devices if device.vendor != "cpu"}:
            found[case.candidate.host.name, vendor, index].append(case)
    return dict(sorted(found.items()))


def _ports(case: Case) -> dict[int, str]:
    """The ports that a case names itself, and what for."""
    names = ("port", "managementPort", "metricsPort", "grpc_port", "master_port", "multiNodesInferPort")
    found = {int(port): f"--{name}" for name in names if (port := case.number(name)) is not None}
    host = case.env.get("OLLAMA_HOST", "").rpartition(":")[2]
    if host.isdigit():
        found[int(host)] = "OLLAMA_HOST"
    port = case.number("port")
    if case.engine == "sglang" and port is not None and (case.number("attn_dp_size") or 1) > 1:
        found |= {int(port) + offset: "attention data parallelism" for offset in range(233, 240)}
    return found


def ports_collide(cases: Sequence[Case]) -> Found:
    """Two replicas on one port."""
    seen: dict[tuple[str, int], tuple[Case, str]] = {}
    for case in cases:
        for port, what in _ports(case).items():
            first = seen.setdefault((case.candidate.host.name, port), (case, what))
            if first[0] is not case:
                yield (
                    case.candidate.deployment.name,
                    Fault(
                        what=f"port {port} is used by {first[0].candidate.deployment.name} ({first[1]}) and "
                        f"{case.candidate.deployment.name} ({what})",
                        fix="leave ports out: plimsoll chooses free ones",
                        mend=(("extra_args.port", None),),
                    ),
                )


def shares_exceed_device(cases: Sequence[Case]) -> Found:
    """Shares of one device's memory add up to more than it has."""
    told: set[tuple[str, ...]] = set()
    for (_, _, index), users in _by_device(cases).items():
        booked = [case for case in users if case.share is not None]
        total = sum(case.share or 0.0 for case in booked)
        names = tuple(case.candidate.deployment.name for case in booked)
        if len(booked) > 1 and total > 0.98 and names not in told:
            told.add(names)
            last = booked[-1]
            left = max(0.01, round(0.95 - (total - (last.share or 0.0)), 2))
            fits = total - (last.share or 0.0) < 0.93
            yield (
                last.candidate.deployment.name,
                Fault(
                    what=f"device {index}: {' + '.join(names)} book {total:.0%} of its memory",
                    fix=f"a memory share of {left:g} for {names[-1]}" if fits else "fewer models on this device",
                    mend=(("memory_share", left), ("extra_args.gpu_memory_utilization", None)) if fits else (),
                ),
            )


def device_in_two_containers(cases: Sequence[Case]) -> Found:
    """One NPU for two replicas."""
    for (_, vendor, index), users in _by_device(cases).items():
        if vendor == "ascend" and len(users) > 1:
            names = [case.candidate.deployment.name for case in users]
            yield (
                "",
                Fault(what=f"NPU {index} is given to {' and '.join(names)}", fix="different `devices` for each"),
            )


def start_one_after_the_other(cases: Sequence[Case]) -> Found:
    """Two replicas that measure one device's memory while they start."""
    for (_, _, index), users in _by_device(cases).items():
        measuring = [case for case in users if case.engine in ("vllm", "sglang", "vllm_ascend")]
        if len(measuring) > 1:
            names = [case.candidate.deployment.name for case in measuring]
            yield "", Fault(what=f"{' and '.join(names)} share device {index}", fix="start them one after the other")
            return


def models_take_turns(cases: Sequence[Case]) -> Found:
    """More Ollama models than it keeps in memory."""
    models = [case for case in cases if case.engine == "ollama"]
    if not models:
        return
    text = models[0].env.get("OLLAMA_MAX_LOADED_MODELS", "0")
    devices = sum(1 for device in models[0].candidate.host.devices if device.vendor != "cpu")
    most = int(text) if text.isdigit() and int(text) else 3 * max(1, devices)
    if len({case.candidate.deployment.model for case in models}) > most:
        yield (
            models[0].candidate.deployment.name,
            Fault(
                what=f"{len(models)} models, and Ollama keeps {most} in memory: they are loaded in turns",
                fix=f"OLLAMA_MAX_LOADED_MODELS={len(models)} if memory allows",
                mend=(("env.OLLAMA_MAX_LOADED_MODELS", str(len(models))),),
            ),
        )


_NPU: Example = {"engine": "mindie", "vendor": "ascend"}

GROUP_RULES = (
    GroupRule(
        id="any.ports_collide",
        title="Two replicas on one port",
        severity="error",
        cause="a port is listened on by one process",
        source="vllm 0.33.0: launchers/launcher.py:301; sglang 0.5.23: sglang/srt/server_args.py:886 (derived ports)",
        check=ports_collide,
        fires=({"name": "a", "options": {"port": 8001}}, {"name": "b", "options": {"port": 8001}}),
        passes=({"name": "a", "options": {"port": 8001}}, {"name": "b", "options": {"port": 8002}}),
    ),
    GroupRule(
        id="any.shares_exceed_device",
        title="Shares of one device's memory add up to more than it has",
        severity="error",
        cause="each share is of the whole memory, and what the others hold is not free",
        source="vllm 0.33.0: vllm/v1/worker/utils.py:766",
        check=shares_exceed_device,
        fires=({"name": "a", "memory_share": 0.9}, {"name": "b", "memory_share": 0.2}),
        passes=({"name": "a", "memory_share": 0.7}, {"name": "b", "memory_share": 0.1}),
    ),
    GroupRule(
        id="any.device_in_two_containers",
        title="One NPU for two replicas",
        severity="error",
        cause="an NPU can be mapped into one container at a time",
        source="a field note (Atlas 800I A2)",
        check=device_in_two_containers,
        fires=(
            {"name": "a", "engine": "mindie", "vendor": "ascend"},
            {"name": "b", "engine": "mindie", "vendor": "ascend"},
        ),
        passes=({"name": "a", **_NPU}, {"name": "b", "engine": "vllm"}),
    ),
    GroupRule(
        id="any.start_one_after_the_other",
        title="Two replicas that measure one device's memory while they start",
        severity="info",
        cause="each takes what the other does meanwhile for its own",
        source="vllm 0.33.0: vllm/v1/worker/gpu_worker.py:733",
        check=start_one_after_the_other,
        fires=({"name": "a", "memory_share": 0.4}, {"name": "b", "memory_share": 0.4}),
        passes=({"name": "a", "memory_share": 0.4}, {"name": "b", "engine": "llamacpp", "format": "gguf"}),
    ),
    GroupRule(
        id="ollama.models_take_turns",
        title="More Ollama models than it keeps in memory",
        severity="warning",
        cause="the model used longest ago is unloaded for the next",
        source="ollama fb30760: envconfig/config.go:277",
        check=models_take_turns,
        fires=(
            {"name": "a", "engine": "ollama", "model_id": "a", "env": {"OLLAMA_MAX_LOADED_MODELS": "1"}},
            {"name": "b", "engine": "ollama", "model_id": "b"},
        ),
        passes=(
            {"name": "a", "engine": "ollama", "model_id": "a", "env": {"OLLAMA_MAX_LOADED_MODELS": "2"}},
            {"name": "b", "engine": "ollama", "model_id": "b"},
        ),
    ),
)
