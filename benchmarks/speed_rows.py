"""Rows of measured speeds as candidates and loads: engine, model, devices and layout out of what people write.

Two tables are read: one of public reports of all kinds (`read_report`), one of a benchmark of data-centre GPUs
(`read_silicon`). Only input columns decide; what a row leaves open is filled with what is usual.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from benchmarks.memory_models import find

from plimsoll.errors import PlimsollError
from plimsoll.facts import catalogue
from plimsoll.facts.devices import find_device, match_driver
from plimsoll.facts.engine import EngineFacts, MemoryPolicy
from plimsoll.facts.hardware import Device, Host
from plimsoll.facts.model import ModelFacts
from plimsoll.facts.words import parse_hosts
from plimsoll.plan.ledger import Ledger
from plimsoll.plan.memory import account
from plimsoll.plan.memory.vllm_profile import default_sequences
from plimsoll.plan.speed import Load, Timing
from plimsoll.plan.types import Candidate, Parallel
from plimsoll.spec.deployment import Deployment
from plimsoll.units import GIB

Row = Mapping[str, str]

_POLICIES: tuple[tuple[str, str, MemoryPolicy], ...] = (
    ("ascend", "vllm-ascend", "vllm"), ("vllm", "vllm", "vllm"), ("sglang", "sglang", "sglang"),
    ("ktransformers", "ktransformers", "llamacpp"), ("ollama", "ollama", "llamacpp"),
    ("ik_llama", "ik_llama.cpp", "llamacpp"), ("llama.cpp", "llama.cpp", "llamacpp"),
    ("llama_cpp", "llama.cpp", "llamacpp"), ("koboldcpp", "koboldcpp", "llamacpp"),
    ("lm studio", "lmstudio", "llamacpp"), ("tensorrt-edge", "tensorrt-edge", "none"),
    ("tensorrt", "tensorrt-llm", "vllm"), ("trt", "tensorrt-llm", "vllm"), ("mindie", "mindie", "mindie"),
    ("transformers", "transformers", "transformers"), ("ipex", "transformers", "transformers"),
    ("autoawq", "transformers", "transformers"), ("openvino", "openvino", "openvino"), ("lmdeploy", "lmdeploy", "vllm"),
    ("mlx", "mlx", "none"), ("mlc", "mlc", "none"),
)  # fmt: skip
_USUAL_PROMPT, _USUAL_OUTPUT = 128.0, 256.0
_OFFLINE = 16
"""Requests at once behind a total that comes without their number: an assumption."""
_WAVES = 10
"""Requests per client in the silicon benchmark, whose script sends ten for each."""
_CHANNELS = re.compile(r"DDR(\d)-(\d+)\s+(\d+)\s*ch", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One measured number and everything that predicts it."""

    id: str
    quantity: str
    """tpot, ttft, tokens (all together), decode (per request), run (over the whole request), prefill."""
    measured: float
    candidate: Candidate
    load: Load
    ledger: Ledger
    source: str
    regime: str
    group: str
    """Rows that differ only in their load share it: pairs in it are ordered."""
    counts_prompt: bool = False

    def value(self, timing: Timing) -> float:
        """What a timing says of the measured quantity, in its own unit."""
        prompt, out = self.load.prompt_tokens, self.load.output_tokens
        match self.quantity:
            case "ttft":
                return timing.ttft_s
            case "tpot":
                return timing.tpot_s
            case "prefill":
                return timing.prefill_tokens_per_s
            case "decode":
                return 1.0 / timing.tpot_s
            case "run":
                tokens = out + prompt if self.counts_prompt else out
                return tokens / (timing.ttft_s + (out - 1) * timing.tpot_s)
            case _:
                return timing.tokens_per_s * ((out + prompt) / out if self.counts_prompt else 1.0)

    @property
    def kind(self) -> str:
        """Which of a Speed's ranges it falls under."""
        return {"prefill": "ttft", "decode": "tpot", "run": "tpot"}.get(self.quantity, self.quantity)


# --- reports ------------------------------------------------------------------------------------------------------


def read_report(row: Row) -> Case | str:
    """The case of one row of public reports, or why there is none."""
    quantity, measured, counts_prompt = _quantity(row)
    if not quantity:
        return f"metric {row['metric']!r} is not predicted"
    name, policy = _engine(row["engine"])
    flags = row.get("other_flags", "")
    serial = policy in ("llamacpp", "transformers")
    gguf = policy == "llamacpp"
    host, devices = _machine(row["hardware"])
    prompt, out = _real(row["input_len"]) or _USUAL_PROMPT, _real(row["output_len"]) or _USUAL_OUTPUT
    burst = row.get("request_rate", "") == "inf"
    concurrency = int(_real(row["concurrency"]) or (_OFFLINE if quantity == "tokens" else 1))
    try:
        model = _model(row["model"], row["weight_format"], flags, gguf=gguf)
    except PlimsollError as error:
        return str(error)
    if isinstance(model, str):
        return model
    count = int(_real(row["devices_count"]) or 0) or _fewest(model, devices[0])
    nodes = int(_real(row["nodes"]) or 1)
    pipeline = int(_real(row["pp"]) or 0) or 1
    tensor = int(_real(row["tp"]) or 0) or max(1, count // pipeline)
    if row.get("interconnect"):
        devices = tuple(_linked(device, row["interconnect"]) for device in devices)
    ranks = count if serial else tensor * pipeline
    cards = tuple(replace(devices[0], index=index) for index in range(max(1, ranks)))
    options = _options(name, flags)
    if gguf and cards[0].vendor != "cpu" and not options:
        options = _offloaded(model, cards)
    version = re.search(r"\d+\.\d+(?:\.\d+)?", row["engine_version"])
    engine = _facts(name, version[0] if version else "", policy)
    sequences = concurrency if serial or policy == "none" else default_sequences(engine.version or "0.10", cards[0])
    candidate = Candidate(
        deployment=Deployment(name="row", model=model.id),
        model=model,
        engine=engine,
        host=replace(host, devices=tuple(card for card in cards if card.vendor != "cpu")),
        devices=cards,
        parallel=Parallel() if serial else Parallel(tensor=tensor, pipeline=pipeline),
        nodes=nodes,
        context_tokens=int(prompt + out) if not serial else max(2048, int(prompt + out)),
        sequences=max(1, sequences),
        dtype="float32" if "fp32" in row["weight_format"] else "auto",
        eager="enforce-eager" in flags or "enforce_eager" in flags,
        options=options,
    )
    return Case(
        id=row["id"],
        quantity=quantity,
        measured=measured,
        candidate=candidate,
        load=Load(
            prompt_tokens=prompt, output_tokens=out, concurrency=concurrency, requests=concurrency if burst else None
        ),
        ledger=_ledger(candidate),
        source=_source(row["source"]),
        regime=row["regime"],
        group=f"{row['model']} {row['hardware']} {row['metric']}",
        counts_prompt=counts_prompt,
    )


def _quantity(row: Row) -> tuple[str, float, bool]:
    """(quantity, value in seconds or tokens per second, whether prompt tokens are counted)."""
    value, flags = float(row["value"]), row.get("other_flags", "")
    match row["metric"]:
        case "tpot_ms":
            return "tpot", value / 1e3, False
        case "ttft_ms":
            return "ttft", value / 1e3, False
        case "prefill_tok_s":
            return "prefill", value, False
        case "output_tok_s_total":
            return "tokens", value, False
        case "total_tok_s":
            whole = "tokens_prompt+tokens_generation" in flags
            return ("run", value, True) if whole else ("tokens", value, True)
        case "decode_tok_s_per_request":
            if "tokens_prompt+tokens_generation" in flags:
                return "run", value, True
            return ("run", value, False) if "over whole run" in flags else ("decode", value, False)
    return "", value, False


def _engine(text: str) -> tuple[str, MemoryPolicy]:
    word = text.strip().lower()
    return next(((name, policy) for part, name, policy in _POLICIES if part in word), (word, "none"))


def _facts(name: str, version: str, policy: MemoryPolicy) -> EngineFacts:
    return EngineFacts(
        name=name, version=version, formats=(), quantizations=(), vendors=(), tasks=(), parallel=(), memory=policy,
        routes=(), health_path="/health",
    )  # fmt: skip


@lru_cache(maxsize=512)
def _model(name: str, weight_format: str, flags: str, *, gguf: bool) -> ModelFacts | str:
    size = re.search(r"([\d.]+)\s*GiB", weight_format)
    plain = name
    if re.search(r"deepseek2", name):
        plain = "DeepSeek-R1"
    form = re.sub(r"q4f16\w*", "INT4", weight_format.replace("GGUF ", ""))
    if gguf and re.search(r"mixed|4bit|int4|^$", form.lower()):
        form = "q4_k_m"
    return find(
        plain, form, None, gguf=gguf, file_bytes=round(float(size[1]) * GIB) if size else None
    )  # fmt: skip


def _options(name: str, flags: str) -> dict[str, str | int | float | bool]:
    options: dict[str, str | int | float | bool] = {}
    if name == "ktransformers":
        options["cpu_moe"] = True
    layers = re.search(r"(?:-ngl|num_gpu|n_gpu_layers|GPU的模型层数为)\s*=?\s*(\d+)", flags)
    if layers:
        options["n_gpu_layers"] = int(layers[1])
    moved = re.search(r"n-cpu-moe\s*=?\s*(\d+)", flags, re.IGNORECASE)
    if moved:
        options["n_cpu_moe"] = int(moved[1])
    elif re.search(r"cpu-moe|exps=CPU|experts on CPU", flags, re.IGNORECASE):
        options["cpu_moe"] = True
    return options


def _offloaded(model: ModelFacts, cards: Sequence[Device]) -> dict[str, str | int | float | bool]:
    """The layers that the cards hold, where they cannot hold all: what Ollama does by itself, others by hand."""
    held = 0.87 * sum(card.memory_bytes for card in cards) / model.weight_bytes
    return {"n_gpu_layers": int(model.layers * held)} if held < 1.0 else {}


def _machine(text: str) -> tuple[Host, tuple[Device, ...]]:
    """The host and one of its devices; a CPU that is named with an accelerator is the host's."""
    memory = _CHANNELS.search(text)
    plain = re.sub(r"\([^)]*\)", "", text)
    parts = [part.strip() for part in plain.split(" + ") if part.strip()]
    found = [_device(part) for part in parts]
    cards = [device for device in found if device is not None and device.vendor != "cpu"]
    cpus = [host for part in parts if (host := _host(part)) is not None]
    host = cpus[0] if cpus else parse_hosts("cpu")[0]
    if memory:
        # Of one socket: engines that are not made for several gain little by the second.
        bandwidth = float(memory[2]) * 1e6 * 8 * float(memory[3])
        host = replace(host, cpu=replace(host.cpu, bandwidth=bandwidth))
    ram = 2048 * GIB
    cpu = replace(host.cpu, memory_bytes=ram, free_bytes=ram)
    host = replace(host, cpu=cpu, ram_bytes=ram, ram_free_bytes=ram, devices=())
    return host, (cards[0],) if cards else (cpu,)


def _device(part: str) -> Device | None:
    shorter = re.sub(r"\b\d+\s*GB\b", "", part)
    for word in (
        part, part.split("/")[0].strip(), shorter, re.sub(r"\b(?:SXM\d?|PCIe|HBM3e?)\b", "", shorter),
        re.sub(r"\b(\w+-core|\w+-Core|GPU|unified)\b", "", shorter),
    ):  # fmt: skip
        word = " ".join(word.split())
        entry = match_driver(word, None)
        if entry is not None:
            return entry.device
        try:
            host = parse_hosts(word)[0]
        except PlimsollError:
            continue
        if host.devices:
            return host.devices[0]
    chip = re.search(r"\bM\d(?: (?:Pro|Max|Ultra))?\b", part)
    return find_device(chip[0]).device if chip else None


def _host(part: str) -> Host | None:
    for word in (part, re.sub(r"\bx\s?\d\b|\b\d+-core\b", "", part).strip()):
        try:
            host = parse_hosts(word)[0]
        except PlimsollError:
            continue
        if not host.devices:
            return host
    return None


def _linked(device: Device, words: str) -> Device:
    lower = words.lower()
    if "no nvlink" in lower or lower.startswith("pcie"):
        return replace(device, link="pcie", link_bandwidth=0.0)
    if "nvlink" in lower and device.link != "nvlink":
        return replace(device, link="nvlink", link_bandwidth=56e9)
    return device


def _fewest(model: ModelFacts, device: Device) -> int:
    """Devices that hold the weights, a power of two."""
    count = 1
    while device.vendor != "cpu" and count < 64 and model.weight_bytes > 0.9 * count * device.memory_bytes:
        count *= 2
    return count


def _ledger(candidate: Candidate) -> Ledger:
    """The ledger; without a limit of the cache where the row's own statement says that it ran and we would not."""
    ledger = account(candidate)
    return ledger if ledger.fits or candidate.engine.memory == "llamacpp" else replace(ledger, kv_tokens=0)


def _source(text: str) -> str:
    """Where a row comes from, pages of one project together."""
    return re.split(r"[@ #]", text)[0]


# --- silicon ------------------------------------------------------------------------------------------------------


def read_silicon(row: Row) -> tuple[Case, ...] | str:
    """The two cases (TTFT and TPOT) of one row of the data-centre benchmark, or why there are none."""
    try:
        model = _silicon_model(row["model"], row["gemm_quant"] or row["precision"], row["moe_quant"])
    except PlimsollError as error:
        return str(error)
    if isinstance(model, str):
        return model
    device = _system(row["system"])
    parallel = layout(row)
    name, policy = _engine(row["engine"])
    version = re.fullmatch(r"\d+\.\d+(?:\.\d+)?\S*", row["engine_version"])
    engine = _facts(name, version[0] if version else "", policy)
    prompt, out = float(row["input_len"]), float(row["output_len"])
    concurrency = int(row["concurrency"])
    candidate = Candidate(
        deployment=Deployment(name="row", model=model.id),
        model=model,
        engine=engine,
        host=replace(_rack(), devices=(device,) * parallel.world),
        devices=tuple(replace(device, index=index) for index in range(parallel.world)),
        parallel=parallel,
        context_tokens=int(prompt + out),
        sequences=1024,
    )
    load = Load(prompt_tokens=prompt, output_tokens=out, concurrency=concurrency, requests=_WAVES * concurrency)
    ledger = _ledger(candidate)
    group = "/".join(row[key] for key in ("model", "system", "engine", "precision", "input_len", "output_len"))
    common = {
        "candidate": candidate, "load": load, "ledger": ledger, "source": row["model"], "regime": "datacenter",
    }  # fmt: skip
    return tuple(
        Case(id=row["id"], quantity=quantity, measured=float(row[column]) / 1e3, group=f"{group} {quantity}", **common)  # type: ignore[arg-type]
        for quantity, column in (("tpot", "tpot_ms"), ("ttft", "ttft_ms"))
        if _real(row[column])
    )


def layout(row: Row) -> Parallel:
    """GPUs and how they are used. The table writes expert parallelism twice over: rows of `tp` 16 with 4 x 4 experts
    carry the numbers of 4 GPUs, and attention-data ranks are the same GPUs that `tp` counts."""
    tensor, data = int(row["tp"]), int(row["attention_dp"] or 1)
    moe_tensor, expert = int(row["moe_tp"] or 1), int(row["moe_ep"] or 1)
    pipeline = int(row["pp"] or 1)
    if data > 1:
        world = tensor if data == tensor and expert == tensor * data else tensor * data
        return Parallel(tensor=max(1, world // data), data=data, pipeline=pipeline, expert=world if expert > 1 else 1)
    world = moe_tensor if moe_tensor == expert and moe_tensor * expert == tensor else tensor
    return Parallel(tensor=world, pipeline=pipeline, expert=world if expert > 1 else 1)


@lru_cache(maxsize=64)
def _silicon_model(name: str, gemm: str, experts: str) -> ModelFacts | str:
    form = "NVFP4" if "fp4" in gemm else "FP8" if "fp8" in gemm else "BF16"
    if "gpt-oss" in name:
        form = "MXFP4"
    facts = find(name, form, None)
    if form == "FP8" and "block" not in experts and not isinstance(facts, str) and find(name, "", None) != facts:
        # Published at 16 bits: NVIDIA's FP8 checkpoints of such models scale whole tensors, not blocks.
        return catalogue.model(f"{name}-FP8-dynamic")
    return facts


@lru_cache(maxsize=64)
def _system(text: str) -> Device:
    """The GPU of a system named like `b200_sxm`; an H100 where the catalogue has none of it."""
    words = (text.replace("_", " "), text.split("_")[0])
    for word in words:
        try:
            return find_device(word).device
        except PlimsollError:
            continue
    return find_device("h100").device


@lru_cache(maxsize=1)
def _rack() -> Host:
    return replace(parse_hosts("dgx-h100")[0], devices=())


def _real(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
