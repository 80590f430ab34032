"""What one step has to move and to compute, device by device: bytes and FLOPs out of facts, nothing fitted."""

from __future__ import annotations

from dataclasses import dataclass

from plimsoll.facts.hardware import Device
from plimsoll.facts.model import AttentionGroup, ModelFacts
from plimsoll.plan.ledger import Ledger
from plimsoll.plan.memory.common import flag_option, value_bytes
from plimsoll.plan.speed.keys import format_of
from plimsoll.plan.types import Candidate

_WIDTH = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0}
_DENSE_KERNELS, _EXPERT_KERNELS = 10, 4
_MORE_KERNELS = {"mla": 3, "linear": 3}
_SERIAL = ("llamacpp", "ollama", "transformers", "openvino")
"""Policies whose engines put layers on devices one after another instead of cutting each layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A run of layers on equal devices that work at once; a token passes the segments one after another.

    Bytes and parameters are one rank's own.
    """

    device: Device
    dense_bytes: float
    expert_bytes: float
    """Of all routed experts that lie on the rank."""
    dense_params: float
    expert_params: float
    """That one token activates, divided by the ranks that share them."""
    launches: float
    """Kernels started one after another in a step, counted in layers of a plain dense model."""
    cache_share: float
    """Of the layers' KV cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One replica's work, apart from how many sequences there are."""

    segments: tuple[Segment, ...]
    ranks: int
    """That cut each layer (tensor x attention-data)."""
    attention_ranks: int
    attention_data: int
    stages: int
    serial: bool
    nodes: int
    experts: int
    per_token: int
    hidden_size: int
    layers: int
    groups: tuple[AttentionGroup, ...]
    value_bytes: float
    vocab_bytes: float

    def cache_bytes(self, tokens: float) -> float:
        """That one sequence of `tokens` makes one attention rank read in each step, all layers."""
        total = 0.0
        for group in self.groups:
            kept = min(tokens, group.window_tokens) if group.window_tokens else tokens
            total += kept * group.kv_bytes_per_token(value_bytes=self.value_bytes, tensor_parallel=self.attention_ranks)
            total += 2.0 * group.layers * group.state_bytes / self.attention_ranks
        return total

    def attention_flops(self, tokens: float, before: float) -> float:
        """Of scores and values for `tokens` new ones behind `before` cached ones, all heads of one rank."""
        total = 0.0
        for group in self.groups:
            if group.kind in ("linear", "encoder"):
                continue
            seen = before + tokens / 2
            seen = min(seen, group.window_tokens) if group.window_tokens else seen
            width = 320.0 if group.kind == "mla" else float(group.head_dim + group.v_head_dim)
            total += 2.0 * group.layers * group.heads * width * tokens * seen / self.attention_ranks
        return total


def work_of(candidate: Candidate, ledger: Ledger) -> Work:
    """The work of `candidate`, whose weights lie as `ledger` has them."""
    model, parallel = candidate.model, candidate.parallel
    serial = candidate.engine.memory in _SERIAL
    cards = tuple(device for device in candidate.devices if device.vendor != "cpu")
    tensor = 1 if serial else parallel.tensor
    ranks = tensor * parallel.data if model.moe and not serial else tensor
    dense_bytes, expert_bytes, dense_params, expert_params = _sums(model, tensor, ranks, candidate.dtype)
    segments: tuple[Segment, ...]
    if serial:
        shares = _shares(candidate, ledger, cards)
        segments = tuple(
            Segment(
                device=device, dense_bytes=dense_bytes * dense, expert_bytes=expert_bytes * expert,
                dense_params=dense_params * dense, expert_params=expert_params * expert,
                launches=launches(model) * dense, cache_share=dense,
            )
            for device, dense, expert in shares
        )  # fmt: skip
    else:
        slowest = min(candidate.devices, key=lambda device: device.bandwidth)
        segments = (
            Segment(
                device=slowest, dense_bytes=dense_bytes, expert_bytes=expert_bytes, dense_params=dense_params,
                expert_params=expert_params, launches=launches(model), cache_share=1.0,
            ),
        )  # fmt: skip
    return Work(
        segments=segments,
        ranks=ranks,
        attention_ranks=tensor,
        attention_data=1 if serial else parallel.data,
        stages=1 if serial else parallel.pipeline,
        serial=serial,
        nodes=candidate.nodes,
        experts=model.moe.experts if model.moe else 0,
        per_token=model.moe.per_token if model.moe else 0,
        hidden_size=model.hidden_size,
        layers=model.layers,
        groups=model.attention,
        value_bytes=value_bytes(candidate.kv_dtype, model_dtype="float16"),
        vocab_bytes=2.0 * model.vocab_size,
    )


def launches(model: ModelFacts) -> float:
    """Layers, each by the kernels that it starts against those of a dense one, which starts about ten.

    Counted in the engines' graphs: experts add routing, top-k, sorting, gathering and the shared expert; latent
    attention the projections to and from the latent; linear attention convolution, gates and the state's update.
    """
    kernels = 0.0
    for group in model.attention:
        kernels += group.layers * (_DENSE_KERNELS + _MORE_KERNELS.get(group.kind, 0))
    if model.moe:
        kernels += model.moe.layers * _EXPERT_KERNELS
    return kernels / _DENSE_KERNELS or float(model.layers)


def _sums(model: ModelFacts, tensor: int, ranks: int, dtype: str) -> tuple[float, float, float, float]:
    """One rank's (dense bytes, bytes of its experts, dense parameters, active expert parameters)."""
    dense_bytes = expert_bytes = dense_params = expert_params = 0.0
    headless = not any(part.role == "lm_head" for part in model.tensors)
    for part in model.tensors:
        if part.role in ("mtp", "vision", "other", "pooler") or (part.role == "embedding" and not headless):
            continue
        size = part.bytes * _cast(part.dtype, dtype)
        if part.role == "experts":
            expert_bytes += size / ranks
            used = model.moe.per_token / model.moe.experts if model.moe else 1.0
            expert_params += part.params * used / ranks
            continue
        over = 1 if part.sharding == "replicated" else ranks if part.role in ("mlp", "shared_experts") else tensor
        over = min(over, part.units) if part.units else over
        dense_bytes += size / over
        dense_params += part.params / over
    return dense_bytes, expert_bytes, dense_params, expert_params


def _cast(stored: str, wanted: str) -> float:
    return _WIDTH[wanted] / _WIDTH[stored] if wanted in _WIDTH and stored in _WIDTH else 1.0


def _shares(candidate: Candidate, ledger: Ledger, cards: tuple[Device, ...]) -> tuple[tuple[Device, float, float], ...]:
    """(device, share of the dense weights, share of the experts) in the order in which a token passes them."""
    if not cards:
        return ((candidate.host.cpu, 1.0, 1.0),)
    held = [device.of("weights") for device in ledger.devices]
    total = float(sum(held)) or 1.0
    on_cards = sum(held[: len(cards)]) / total
    moved = _experts_on_host(candidate)
    if moved:
        cut = 1.0 / len(cards)
        return (*((card, cut, (1.0 - moved) * cut) for card in cards), (candidate.host.cpu, 0.0, moved))
    if on_cards <= 0:
        return ((candidate.host.cpu, 1.0, 1.0),)
    parts = [(card, share / total, share / total) for card, share in zip(cards, held, strict=False) if share]
    return (*parts, (candidate.host.cpu, 1 - on_cards, 1 - on_cards)) if on_cards < 0.98 else tuple(
        (card, share / on_cards, share / on_cards) for card, share, _ in parts
    )  # fmt: skip


def _experts_on_host(candidate: Candidate) -> float:
    """Part of the experts that an option keeps in RAM while the layers' rest is on the cards."""
    if not candidate.model.moe:
        return 0.0
    moved = candidate.options.get("n_cpu_moe")
    if moved is not None:
        return min(1.0, int(moved) / candidate.model.moe.layers)
    return float(flag_option(candidate, "cpu_moe", default=False))


def peak_flops(device: Device, model: ModelFacts) -> float:
    """FLOP/s of the units that multiply the weights: fp8, fp4 and int8 where device and checkpoint both have them."""
    flops = device.flops
    plain = max((flops.get(name, 0.0) for name in ("fp16", "bf16")), default=0.0) or flops.get("fp32", 0.0)
    own = {"fp8": "fp8", "fp8-block": "fp8", "fp4": "fp4"}.get(format_of(model), "")
    scheme = model.quantization
    if scheme is not None and format_of(model) == "int8" and scheme.activation:
        own = "int8"
    return max(plain, flops.get(own, 0.0)) or 20.0 * device.bandwidth
