"""Shares of devices for deployments that live on the same ones, in tenths: what people can read and add up."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from plimsoll.facts.hardware import Device, Host
from plimsoll.plan.ledger import DeviceLedger, Ledger
from plimsoll.plan.memory import account
from plimsoll.plan.settle import AT_ONCE, Settled
from plimsoll.plan.types import Candidate
from plimsoll.units import GIB

ALL = 0.9
"""Of a device, for all deployments together: the rest is for contexts, and for graphs where they are not counted."""
_HEADROOM = GIB
"""For a small deployment above its bare need: batches of long inputs, workspaces."""


def least_share(candidate: Candidate) -> float:
    """The share that a deployment needs at the least on its devices, in whole tenths."""
    alone = account(replace(candidate, memory_share=1.0))
    needs = []
    for device in alone.devices:
        fixed = sum(entry.bytes for entry in device.entries if entry.inside and entry.name not in ("kv_cache", "state"))
        others = sum(entry.bytes for entry in device.entries if entry.inside and entry.name == "other_processes")
        cache = device.of("kv_cache") - max(0, alone.spare_bytes)
        at_once = candidate.deployment.concurrency or AT_ONCE
        needs.append((fixed - others + max(0, cache) * at_once + _HEADROOM) / device.total_bytes)
    return math.ceil(max(needs) * 10 - 1e-9) / 10


def booked_bytes(settled: Settled, device: DeviceLedger) -> int:
    """What a deployment takes of a device: its share where it books one, and what lies outside of it."""
    own = [entry for entry in device.entries if entry.name != "other_processes"]
    return sum(entry.bytes for entry in own)


def after(hosts: Iterable[Host], taken: Settled) -> list[Host]:
    """`hosts` with what `taken` books gone from what is free; a replica over several lies on the first of them."""
    there = list(hosts)
    nodes = taken.candidate.nodes
    used = {host.name for host in there[:nodes]} if nodes > 1 else {taken.candidate.host.name}
    return [_after_on(host, taken) if host.name in used else host for host in there]


def _after_on(host: Host, taken: Settled) -> Host:
    candidate = taken.candidate
    booked: dict[tuple[str, int], int] = {}
    ram = 0
    for device, ledger in zip(candidate.devices, taken.ledger.devices, strict=False):
        if device.vendor == "cpu":
            ram += booked_bytes(taken, ledger)
        else:
            booked[device.name, device.index] = booked_bytes(taken, ledger)
    for ledger in taken.ledger.devices[len(candidate.devices) :]:
        ram += booked_bytes(taken, ledger)
    left = max(0, host.ram_free_bytes - ram)
    cpu = replace(host.cpu, free_bytes=max(0, host.cpu.free_bytes - ram))
    return replace(host, cpu=cpu, ram_free_bytes=left, devices=tuple(_less(device, booked) for device in host.devices))


def _less(device: Device, booked: dict[tuple[str, int], int]) -> Device:
    taken = booked.get((device.name, device.index), 0)
    return replace(device, free_bytes=max(0, device.free_bytes - taken)) if taken else device


def with_neighbours(settled: Settled, hosts: Iterable[Host]) -> Settled:
    """`settled` accounted again on devices as all other deployments leave them: the ledger that is shown.

    `hosts` have the other deployments' bookings gone from what is free.
    """
    by_name = {host.name: host for host in hosts}
    host = by_name[settled.candidate.host.name]
    cards = {(device.name, device.index): device for device in host.devices}
    devices = tuple(
        host.cpu if device.vendor == "cpu" else cards.get((device.name, device.index), device)
        for device in settled.candidate.devices
    )
    if settled.candidate.nodes > 1:
        devices = settled.candidate.devices
    candidate = replace(settled.candidate, host=host, devices=devices)
    ledger: Ledger = account(candidate)
    return Settled(candidate=candidate, ledger=ledger)
