"""The accelerators of this machine, by whichever vendor's library or tool answers."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from plimsoll.discover.amd import parse_amd_smi, parse_rocm_smi
from plimsoll.discover.apple import parse_system_profiler
from plimsoll.discover.ascend import parse_npu_smi
from plimsoll.discover.nvidia import parse_nvidia_smi, parse_topology, read_nvml
from plimsoll.discover.seen import Seen, device_of
from plimsoll.discover.tools import RunTool
from plimsoll.facts.devices import match_driver
from plimsoll.facts.hardware import Device

_VISIBLE = {
    "nvidia": ("CUDA_VISIBLE_DEVICES",),
    "amd": ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
    "ascend": ("ASCEND_RT_VISIBLE_DEVICES", "ASCEND_VISIBLE_DEVICES"),
}
_ROCM_SMI = ("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--showdriverversion", "--json")


def load_nvml() -> Any:
    """The pynvml module, a dependency of ours, loaded when first asked for."""
    return importlib.import_module("pynvml")


def read_devices(
    run: RunTool, *, nvml: Any, ram_bytes: int, ram_free_bytes: int, environment: Mapping[str, str]
) -> tuple[Device, ...]:
    """Every device that this process may use, free memory as it is now; () where there is none.

    `*_VISIBLE_DEVICES` in `environment` is obeyed: what it hides, the engines will not see either. A unified device has
    no more free than the machine.
    """
    seen = _seen(run, nvml=nvml, ram_bytes=ram_bytes)
    devices = [_bounded(device_of(one), ram_free_bytes) for one in _visible(seen, environment)]
    topology = parse_topology(run(("nvidia-smi", "topo", "-m"))) if len(devices) > 1 and _nvidia(seen) else {}
    return tuple(_joined(device, topology) for device in devices)


def _seen(run: RunTool, *, nvml: Any, ram_bytes: int) -> tuple[Seen, ...]:
    return (
        read_nvml(nvml)
        or parse_nvidia_smi(run(("nvidia-smi",)))
        or parse_npu_smi(run(("npu-smi", "info")))
        or parse_amd_smi(run(("amd-smi", "static", "--json")), run(("amd-smi", "metric", "--mem-usage", "--json")))
        or parse_rocm_smi(
            run(("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--showdriverversion", "--json"))
        )
        or parse_system_profiler(run(("system_profiler", "-json", "SPDisplaysDataType")), ram_bytes)
    )


def _visible(seen: Sequence[Seen], environment: Mapping[str, str]) -> Sequence[Seen]:
    """Those that the vendor's variable lists by index; all where it is not set or lists UUIDs."""
    if not seen:
        return seen
    value = next((environment[name] for name in _VISIBLE.get(seen[0].vendor, ()) if name in environment), None)
    if value is None or (value.strip() and not re.fullmatch(r"[\d,\s-]+", value)):
        return seen
    wanted = []
    for part in value.split(","):
        if not part.strip().isdecimal():
            break  # CUDA stops at the first entry that is no device ("-1")
        wanted.append(int(part))
    return [one for index in wanted for one in seen if one.index == index]


def _bounded(device: Device, ram_free_bytes: int) -> Device:
    entry = match_driver(device.name, None)
    if entry is None or not entry.unified or device.free_bytes <= ram_free_bytes:
        return device
    return replace(device, free_bytes=ram_free_bytes, others_bytes=device.memory_bytes - ram_free_bytes)


def _joined(device: Device, topology: Mapping[tuple[int, int], str]) -> Device:
    """A note where the devices are not all joined alike: the slowest path counts for tensor parallelism."""
    kinds = {kind for (one, _), kind in topology.items() if one == device.index}
    linked = {kind for kind in kinds if kind.startswith("NV")}
    if linked and linked != kinds:
        note = f"NVLink reaches only some of the other devices (nvidia-smi topo: {', '.join(sorted(kinds))})"
        return replace(device, notes=(*device.notes, note))
    return device


def _nvidia(seen: Sequence[Seen]) -> bool:
    return any(one.vendor == "nvidia" for one in seen)
