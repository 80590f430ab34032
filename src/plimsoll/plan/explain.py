"""The sums of a plan, line by line: every entry with its formula, its basis, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterator

from plimsoll.facts.model import AttentionGroup, ModelFacts
from plimsoll.plan.ledger import DeviceLedger, Entry, Ledger
from plimsoll.plan.rank import describe
from plimsoll.plan.types import Candidate, Plan, Replica
from plimsoll.units import format_bytes

_KINDS = {
    "full": "every token", "sliding": "a window", "chunked": "a chunk", "mla": "one latent a token",
    "linear": "a fixed state", "encoder": "nothing",
}  # fmt: skip


def explain(plan: Plan) -> tuple[str, ...]:
    """The whole plan as lines of text: model, choice, one account for each kind of device, verdict, alternatives."""
    lines: list[str] = []
    for replica in plan.replicas:
        lines += explain_replica(replica)
    if plan.rejected:
        lines.append("not taken:")
        lines += [f"  {rejected.what}: {rejected.why}" for rejected in plan.rejected]
    lines += [f"note: {note}" for note in plan.notes]
    return tuple(lines)


def explain_replica(replica: Replica) -> tuple[str, ...]:
    """One replica: what is known of the model, how it is cut, each device's sum, what the cache comes to."""
    candidate, ledger = replica.candidate, replica.ledger
    return (
        f"{replica.name}: {describe(candidate)}",
        *_model(candidate.model),
        *_settings(candidate),
        *_devices(ledger),
        *_cache(candidate, ledger),
        *_verdict(ledger),
    )


def _model(model: ModelFacts) -> Iterator[str]:
    stored = format_bytes(model.weight_bytes)
    yield f"  model: {model.params / 1e9:.3g} B parameters, {stored} as stored ({model.source})"
    for group in model.attention:
        yield f"  cache of {group.layers} layers: {_group(group)}"


def _group(group: AttentionGroup) -> str:
    text = _KINDS[group.kind]
    if group.window_tokens:
        text += f" of {group.window_tokens} tokens"
    if group.kind == "linear":
        return f"{text}, {format_bytes(group.state_bytes)} a layer and sequence"
    if group.kind == "encoder":
        return text
    if group.kind == "mla":
        return f"{text}: {group.head_dim} values"
    each = group.kv_heads * (group.head_dim + group.v_head_dim)
    heads = f"{group.kv_heads} heads x ({group.head_dim} K + {group.v_head_dim} V)"
    return f"{text}: {heads} = {each} values a token and layer"


def _settings(candidate: Candidate) -> Iterator[str]:
    share = f", share {candidate.memory_share:.2f}" if candidate.memory_share is not None else ""
    yield (
        f"  asked: {candidate.context_tokens} tokens of context, {candidate.sequences} sequences, "
        f"KV cache in {candidate.kv_dtype}{share}"
    )


def _devices(ledger: Ledger) -> Iterator[str]:
    """Each device's sum; devices with the same sum are told once."""
    told: dict[tuple[object, ...], list[DeviceLedger]] = {}
    for device in ledger.devices:
        told.setdefault((device.total_bytes, device.limit_bytes, device.entries), []).append(device)
    for group in told.values():
        yield from _sum(group)


def _sum(group: list[DeviceLedger]) -> Iterator[str]:
    device = group[0]
    others = f" and {len(group) - 1} alike" if len(group) > 1 else ""
    yield f"  {device.device}{others}: {format_bytes(device.total_bytes)} in all"
    if device.limit_bytes != device.total_bytes:
        yield f"    {format_bytes(device.limit_bytes):>10}  limit of the engine"
    for entry in device.entries:
        yield _entry(entry)
    yield f"    {format_bytes(device.used_bytes):>10}  sum, {format_bytes(device.free_bytes)} left"


def _entry(entry: Entry) -> str:
    outside = "" if entry.inside else ", outside the limit"
    return f"    {format_bytes(entry.bytes):>10}  {entry.name} ({entry.basis}{outside}): {entry.source}"


def _cache(candidate: Candidate, ledger: Ledger) -> Iterator[str]:
    if not ledger.kv_tokens:
        return
    blocks = f" in {ledger.kv_blocks} blocks" if ledger.kv_blocks is not None else ""
    yield (
        f"  cache: {ledger.kv_tokens} tokens{blocks}; {ledger.max_concurrency:.2f} requests of "
        f"{candidate.context_tokens} tokens at once, or one of {ledger.longest_context_tokens}"
    )


def _verdict(ledger: Ledger) -> Iterator[str]:
    margin = ledger.margin_bytes
    if ledger.fits:
        spare = f" and {format_bytes(ledger.spare_bytes)} of cache beyond one request" if ledger.spare_bytes else ""
        yield f"  fits, {format_bytes(margin)} left on the tightest device{spare}"
    else:
        yield f"  does not fit: {format_bytes(-margin)} are missing"
    if ledger.tight:
        yield f"  this hangs on {format_bytes(ledger.assumed_bytes)} that are assumed, not derived"
    for note in ledger.notes:
        yield f"  {note}"
