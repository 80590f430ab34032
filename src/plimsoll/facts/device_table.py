"""docs/devices.md out of the catalogues: `python -m plimsoll.facts.device_table > docs/devices.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from plimsoll.facts.cpus import cpus
from plimsoll.facts.devices import Entry, catalogue
from plimsoll.facts.words import systems
from plimsoll.units import GIB

_TITLES = {"nvidia": "NVIDIA", "amd": "AMD", "ascend": "Huawei Ascend", "apple": "Apple", "intel": "Intel"}
_DTYPES = ("fp32", "fp16", "bf16", "int8", "fp8", "fp4")
_HEAD = """# Devices

Generated from `src/plimsoll/facts/data/`; the source of every number stands beside it there.

`--on` takes these words, alone or counted: `3090`, `a6000:2`, `2x a100-80g`, `4x8 3090 pcie` (four machines of eight),
`a6000:2:nvlink` (with a bridge), `rtx5090 + 2x rtx4090` (different cards in one machine), `dgx-h100`,
`epyc-9654:768GiB`, `cpu:32c:256GiB`, `mac-studio-m2-ultra-192g`; several kinds of machines are parted by `;`. After a
comma: `ram=377GiB`, `cpu=2x xeon-6430`, `cores=32`, `disk=2TiB`, `net=100Gbps`, `free=20GiB` (per device), `desktop`,
`headless`. Upper case, "GB", spaces and the vendor's name do not matter. What the words leave open is assumed, and the
plan says so.

Usable is what the driver lets a process allocate, less than the box says: **m** measured (read off a real one),
d derived (from its siblings), a assumed. Bandwidth is the data sheet's peak. FLOPS are dense, never the sparse figure,
with fp32 accumulation. An empty cell: the device has no matrix units of that kind. The link is per device in one
direction.
"""


def render_table() -> str:
    """The whole page."""
    lines = [_HEAD]
    for vendor, title in _TITLES.items():
        lines += [f"## {title}", ""]
        lines += [f"| word | also | arch | box GB | usable GiB | GB/s | {' | '.join(_DTYPES)} | link GB/s | W |"]
        lines += ["|---" * (len(_DTYPES) + 8) + "|"]
        lines += [_row(entry) for entry in catalogue().values() if entry.device.vendor == vendor]
        lines.append("")
    lines += ["## CPUs, per socket", "", "| word | also | cores | arch | GB/s | fp32 TFLOPS | bf16 |", "|---" * 7 + "|"]
    for cpu in cpus().values():
        fp32, bf16 = (cpu.device.flops.get(dtype, 0) / 1e12 for dtype in ("fp32", "bf16"))
        lines.append(
            f"| {cpu.word} | {', '.join(cpu.aliases)} | {cpu.cores} | {cpu.device.arch} | "
            f"{cpu.device.bandwidth / 1e9:.0f} | {fp32:.2g} | {f'{bf16:.2g}' if bf16 else ''} |"
        )
    lines += ["", "## Machines", "", "| word | also | devices | CPU | RAM GiB |", "|---" * 5 + "|"]
    for word, row in systems().items():
        cpu_text = f"{row.get('sockets', 1)} x {row['cpu']}" if "cpu" in row else "assumed"
        lines.append(
            f"| {word} | {', '.join(row.get('aliases', ()))} | {row['count']} x {row['device']} | {cpu_text} | "
            f"{row['ram_gib']} |"
        )
    return "\n".join(lines) + "\n" + "\n".join(_notes()) + "\n"


def _row(entry: Entry) -> str:
    device = entry.device
    usable = f"{device.memory_bytes / GIB:.1f} {device.memory_basis[0]}".replace(" m", " **m**")
    sizes = "/".join(str(size // GIB) for size in entry.sizes) or str(device.box_bytes // GIB)
    peaks = " | ".join(f"{device.flops[dtype] / 1e12:.5g}" if dtype in device.flops else "" for dtype in _DTYPES)
    link = f"{device.link} {device.link_bandwidth / 1e9:g}" if device.link_bandwidth else device.link
    if entry.bridge_bandwidth:
        link += f" (bridge {entry.bridge_bandwidth / 1e9:g})"
    names = f"{entry.word} | {', '.join(entry.aliases)}"
    speed = f"{device.bandwidth / 1e9:g} | {peaks} | {link}"
    return f"| {names} | {device.arch} | {sizes} | {usable} | {speed} | {device.tdp_watts:g} |"


def _notes() -> Iterator[str]:
    yield "\n## Notes\n"
    for entry in catalogue().values():
        for note in entry.device.notes:
            yield f"- {entry.word}: {note}"


if __name__ == "__main__":
    sys.stdout.write(render_table())
