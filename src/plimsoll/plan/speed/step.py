"""Seconds of one step: a roofline per device, launches, and what the ranks have to tell each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

from plimsoll.facts.hardware import Device
from plimsoll.plan.speed.coefficients import Coefficients
from plimsoll.plan.speed.work import Segment, Work

_LINKS = {"nvlink": 300e9, "pcie": 16e9, "xgmi": 64e9, "hccs": 30e9, "unified": 100e9, "none": 16e9}
"""Bytes/s in one direction where the device's own are not known."""
_NETWORK = {"nvlink": 200e9, "xgmi": 200e9, "hccs": 200e9}
"""Bytes/s between hosts where nothing is said: 200 Gbit/s for each of eight devices with a link of their own ..."""
_ETHERNET = 1.25e9
"""... and 10 Gbit/s for all others."""
_PER_LAYER = 2
"""Exchanges in a layer that is cut over ranks: behind attention and behind the feed-forward part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A segment with the coefficients of its own device."""

    segment: Segment
    peak: float
    """FLOP/s of the units that the weights are multiplied on."""
    rates: Coefficients


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Work with everything fitted put beside it: ready to be timed."""

    work: Work
    places: tuple[Place, ...]
    network_bandwidth: float = 0.0
    eager: float = 1.0

    @property
    def rates(self) -> Coefficients:
        """Those of the first device, which also drives the rest."""
        return self.places[0].rates


def decode_s(machine: Machine, sequences: float, context: float) -> float:
    """One token more for each of `sequences`, `context` tokens behind each."""
    work = machine.work
    batch = sequences if work.serial else max(1.0, sequences / work.stages)
    rates = machine.rates
    total = rates.step_s + rates.sequence_s * batch + _exchange_s(machine, batch) + _hops_s(machine, batch)
    per_rank = max(1.0, batch / work.attention_data)
    for place in machine.places:
        segment = place.segment
        total += _multiply_s(machine, place, batch, per_rank) + segment.launches * place.rates.layer_s * machine.eager
        cache = work.cache_bytes(context) * per_rank * segment.cache_share
        total += cache / (segment.device.bandwidth * place.rates.cache)
    return total


def prefill_s(machine: Machine, tokens: float, *, chunk: float, before: float = 0.0) -> float:
    """`tokens` of one prompt in chunks of at most `chunk`, in an engine that does nothing else."""
    if tokens <= 0:
        return 0.0
    steps = max(1.0, math.ceil(tokens / chunk))
    size = tokens / steps
    work, rates = machine.work, machine.rates
    total = steps * (rates.step_s + _exchange_s(machine, size) + _hops_s(machine, size))
    for place in machine.places:
        segment = place.segment
        each = _multiply_s(machine, place, size, size) + segment.launches * place.rates.layer_s * machine.eager
        total += steps * each
        plain = max(segment.device.flops.get("fp16", 0.0), segment.device.flops.get("bf16", 0.0)) or place.peak
        flops = work.attention_flops(tokens, before) * segment.cache_share
        total += flops / (plain * place.rates.attention)
    if work.stages > 1:
        # Chunks follow each other through the stages: all but the first cost one stage only.
        total *= (1 + (steps - 1) / work.stages) / steps
    return total


def touched(work: Work, tokens: float, spread: float) -> float:
    """Part of the experts that `tokens` reach in one layer; evenly and independently routed when `spread` is 1."""
    if not work.experts:
        return 0.0
    least = work.per_token / work.experts
    return max(least, 1.0 - math.pow(1.0 - least, max(1.0, tokens * spread)))


def _multiply_s(machine: Machine, place: Place, tokens: float, per_rank: float) -> float:
    """All weights of a segment against `tokens`, of which `per_rank` take part in what is not shared."""
    segment, rates, work = place.segment, place.rates, machine.work
    speed = segment.device.bandwidth * rates.bandwidth
    peak = place.peak * rates.compute
    read = segment.dense_bytes / speed
    compute = 2.0 * segment.dense_params * per_rank / peak
    total = _overlap(read, compute, rates.power)
    if segment.expert_bytes:
        read = segment.expert_bytes * touched(work, tokens, rates.spread) / (speed * rates.experts)
        compute = 2.0 * segment.expert_params * tokens / (peak * rates.expert_compute)
        total += _overlap(read, compute, rates.power)
    return total


def _overlap(read: float, compute: float, power: float) -> float:
    larger = max(read, compute)
    if larger <= 0.0:
        return 0.0
    return larger * math.pow(1.0 + math.pow(min(read, compute) / larger, power), 1.0 / power)


def _exchange_s(machine: Machine, tokens: float) -> float:
    """What the ranks that cut a layer exchange in one step."""
    work, rates = machine.work, machine.rates
    if work.ranks < 2:
        return 0.0
    device = machine.places[0].segment.device
    latency = rates.allreduce_s * (1.0 + math.log2(work.ranks)) / 2.0
    bandwidth = link_bandwidth(device)
    if work.nodes > work.stages:
        latency += rates.network_s
        bandwidth = min(bandwidth, _network(machine))
    moved = tokens * work.hidden_size * 2.0 * 2.0 * (work.ranks - 1) / work.ranks
    return _PER_LAYER * work.layers * (latency + moved / (bandwidth * rates.link))


def _hops_s(machine: Machine, tokens: float) -> float:
    """From stage to stage, over the network where a stage is another host."""
    work, rates = machine.work, machine.rates
    moved = tokens * work.hidden_size * 2.0
    if work.serial:
        hops = len(machine.places) - 1
        far = hops * (work.nodes - 1) / work.nodes
        far_s = rates.rpc_s + moved / _network(machine)
    else:
        hops = work.stages - 1
        far = float(min(hops, work.nodes - 1))
        far_s = rates.network_s + moved / _network(machine)
    near_s = moved / (link_bandwidth(machine.places[0].segment.device) * rates.link)
    return (hops - far) * near_s + far * far_s


def _network(machine: Machine) -> float:
    return machine.network_bandwidth or _NETWORK.get(machine.places[0].segment.device.link, _ETHERNET)


def link_bandwidth(device: Device) -> float:
    """Bytes/s between two devices, one direction, as stated or as usual for the link."""
    return device.link_bandwidth or _LINKS.get(device.link, _LINKS["pcie"])
