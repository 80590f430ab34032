"""Which devices of a node a replica uses, and the variables that show an engine those and no others."""

from __future__ import annotations

from collections.abc import Mapping

from plimsoll.facts.hardware import Device, Vendor
from plimsoll.plan.types import Candidate

VARIABLES: Mapping[Vendor, str] = {
    "nvidia": "CUDA_VISIBLE_DEVICES",
    "amd": "HIP_VISIBLE_DEVICES",
    "ascend": "ASCEND_RT_VISIBLE_DEVICES",
    "intel": "ZE_AFFINITY_MASK",
}
_ORDER = "CUDA_DEVICE_ORDER"
"""CUDA counts the fastest first unless told to count as nvidia-smi does."""
HIDDEN_IN_CONTAINERS = frozenset({*VARIABLES.values(), _ORDER})
"""A container is given its devices and counts them from 0."""


def on_cpu(candidate: Candidate) -> bool:
    """Whether it runs without accelerators."""
    return not candidate.devices or candidate.devices[0].vendor == "cpu"


def node_devices(candidate: Candidate, node: int = 0) -> tuple[Device, ...]:
    """The devices of one node of a replica, in rank order."""
    each = len(candidate.devices) // candidate.nodes
    return candidate.devices[node * each : (node + 1) * each]


def visible_devices(candidate: Candidate, node: int = 0) -> dict[str, str]:
    """Variables that leave the replica's own devices visible; none where it uses all that there are, in order."""
    if on_cpu(candidate):
        return {VARIABLES[device.vendor]: "" for device in candidate.host.devices if device.vendor in VARIABLES}
    used = node_devices(candidate, node)
    vendor = used[0].vendor
    there = [device.index for device in candidate.host.devices if device.vendor == vendor]
    indices = [device.index for device in used]
    if vendor not in VARIABLES or indices == there:
        return {}
    order = {_ORDER: "PCI_BUS_ID"} if vendor == "nvidia" else {}
    return {**order, VARIABLES[vendor]: ",".join(str(index) for index in indices)}


def node_address(addresses: tuple[str, ...], node: int) -> str:
    """A node's address; where none is known, a name to be put into /etc/hosts."""
    return addresses[node] if node < len(addresses) else f"node{node}"
