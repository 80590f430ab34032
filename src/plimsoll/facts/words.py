"""Machines by words: "4x8 3090 pcie", "a6000:2:nvlink", "atlas-800i-a2", "rtx3090:8,ram=377GiB", "cpu:32c:256GiB".

    fleet    = machines (";" machines)*
    machines = [HOSTS "x"] group ("+" group | "+" SIZE "ram")* ("," option)*
    group    = [COUNT "x"] DEVICE (":" COUNT | ":" LINK | ":" SIZE)*
    option   = ram=SIZE | cpu=WORD | cores=N | disk=SIZE | net=SPEED | free=SIZE | desktop | headless | LINK

What the words leave open (RAM, CPU, what a desktop takes) is assumed, and the host's notes say so.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import Any

from plimsoll.errors import FactError, SpecError
from plimsoll.facts.assumed import Group, Machine, fill_host
from plimsoll.facts.cpus import cpus, find_cpu
from plimsoll.facts.devices import catalogue, find_device, nearest
from plimsoll.facts.hardware import Host
from plimsoll.units import GIB, format_bytes, parse_bytes

_LINKS = {"nvlink": "nvlink", "nvswitch": "nvlink", "pcie": "pcie", "xgmi": "xgmi", "hccs": "hccs"}
_LINK_APART = re.compile(rf"\s*\b({'|'.join(_LINKS)})\b\s*")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([gt])i?b?|([mk])i?b)", re.IGNORECASE)
_SIZE_SUFFIX = re.compile(r"[\s\-_:]+(\d+)\s*g(?:i?b)?$", re.IGNORECASE)
_SPEED = re.compile(r"(\d+(?:\.\d+)?)\s*(?:(GB/s|GBps)|(?i:gbe|gbit/?s?|gbps|gb/s|g))?")
_RAM = re.compile(r"(\d.*?)\s+(?:of\s+)?ram")
_MACHINE_WORDS = re.compile(r"^(\d+)\s*(?:nodes?|hosts?|machines?|servers?)\s*(?:of|with|:|,)?\s*")
_MAC = re.compile(r"^(?:mac[\s-]?book(?:[\s-]?(?:pro|air))?|mac[\s-]?(?:mini|studio|pro)|i-?mac|mac)[\s-]*(?=m\d)")
_MOST_HOSTS, _MOST_DEVICES = 4096, 128


def parse_hosts(text: str) -> tuple[Host, ...]:
    """The machines that `text` describes; SpecError with the nearest words where it describes none."""
    machines = [_parse_machine(part.strip()) for part in re.split(r"[;\n]", text) if part.strip()]
    if not machines:
        raise SpecError("no machine is named", hint='write for example "4x8 3090 pcie", "a6000:2" or "dgx-h100"')
    if sum(machine.hosts for machine in machines) > _MOST_HOSTS:
        raise SpecError(f"{text!r} is more than {_MOST_HOSTS} machines")
    hosts = [host for machine in machines for host in [fill_host(machine)] * machine.hosts]
    if len(hosts) == 1:
        return (hosts[0],)
    return tuple(replace(host, name=f"{host.name}-{number}") for number, host in enumerate(hosts, start=1))


def known_words() -> list[str]:
    """Every word that names a machine, a device or a CPU."""
    words = [word for entry in catalogue().values() for word in (entry.word, *entry.aliases)]
    words += [name for word, row in systems().items() for name in (word, *row.get("aliases", ()))]
    return words + [word for cpu in cpus().values() for word in (cpu.word, *cpu.aliases)]


def _parse_machine(text: str) -> Machine:
    machine = Machine(text)
    head, *options = [part.strip() for part in text.split(",")]
    head = head.lower()
    hosts = _MACHINE_WORDS.match(head)
    if hosts:
        machine.hosts, head = _count(hosts[1], text), head[hosts.end() :]
    counts, head = _multipliers(head, text)
    if not head:
        raise SpecError(f"{text!r} names no device", hint='write for example "8x 3090" or "a6000:2"')
    if len(counts) == 2:
        machine.hosts *= counts.pop(0)
    if not _parse_system(machine, head, counts) and not _parse_cpu(machine, head, counts):
        for number, part in enumerate(part.strip() for part in head.split("+")):
            if number and (ram := _RAM.fullmatch(part)):
                machine.ram_bytes = _size(ram[1], text)
            else:
                machine.groups.append(_parse_group(machine, part, counts if number == 0 else []))
    for option in options:
        _parse_option(machine, option)
    if sum(group.count for group in machine.groups) > _MOST_DEVICES:
        raise SpecError(f"{text!r} puts more than {_MOST_DEVICES} devices into one machine")
    return machine


def _multipliers(head: str, text: str) -> tuple[list[int], str]:
    """The leading "4x8", "2x" or "8" of `head`, and what is left."""
    counts: list[int] = []
    while len(counts) < 2:
        match = re.match(r"(\d{1,3})\s*[x×*]\s*(?=\S)", head) or re.match(r"(\d{1,2})\s+(?=[a-z0-9])", head)
        if match is None:
            break
        counts.append(_count(match[1], text))
        head = head[match.end() :]
    return counts, head.strip()


def _parse_system(machine: Machine, head: str, counts: list[int]) -> bool:
    """Fill `machine` from the table of named systems; False if `head` is none."""
    word, _, rest = head.partition(":")
    row = _system_index().get(word.replace(" ", "-").replace("_", "-"))
    if row is None:
        return False
    machine.hosts *= counts.pop(0) if counts else 1
    if rest:
        if not rest.isdecimal():
            raise SpecError(f"{machine.text!r}: {rest!r} is no number of machines")
        machine.hosts *= _count(rest, machine.text)
    machine.groups.append(Group(find_device(row["device"]), count=row["count"], link=row.get("link")))
    if "cpu" in row:
        machine.cpu, machine.sockets = find_cpu(row["cpu"]), row.get("sockets", 1)
    machine.ram_bytes = round(row["ram_gib"] * GIB)
    machine.network_bandwidth = row.get("network_gb_s", 0) * 1e9
    machine.name, machine.source, machine.desktop = row["word"], row["source"], False
    return True


def _parse_cpu(machine: Machine, head: str, counts: list[int]) -> bool:
    """Fill `machine` as one without accelerators; False if `head` names no CPU."""
    word, *parts = head.split(":")
    if word != "cpu":
        try:
            machine.cpu = find_cpu(word)
        except FactError:
            return False
    machine.sockets = counts.pop(0) if counts else 1
    for part in parts:
        cores = re.fullmatch(r"(\d+)\s*c(?:ores?)?", part.strip())
        if cores:
            machine.cores = _count(cores[1], machine.text)
        elif part.strip().isdecimal():
            machine.sockets = _count(part.strip(), machine.text)
        else:
            machine.ram_bytes = _size(part, machine.text)
    return True


def _parse_group(machine: Machine, text: str, counts: list[int]) -> Group:
    if not counts:
        counts, text = _multipliers(text, machine.text)
    word, *parts = text.split(":")
    tokens = word.split()
    link = next((_LINKS[token] for token in tokens if token in _LINKS), None)
    # "a100 pcie" is another card than "a100", but "3090 pcie" is a 3090 without a bridge: the catalogue decides.
    group = _find_group(machine, " ".join(tokens), None) or (
        _find_group(machine, " ".join(token for token in tokens if token not in _LINKS), link) if link else None
    )
    if group is None:
        near = nearest(word, known_words())
        hint = f"did you mean {', '.join(near)}?" if near else "docs/devices.md lists the words"
        raise SpecError(f"{machine.text!r}: {word.strip()!r} is no device, machine or CPU that we know", hint=hint)
    if counts:
        group.count *= counts[-1]
    for part in (part.strip() for whole in parts for part in _LINK_APART.split(whole) if part.strip()):
        if part in _LINKS:
            group.link = _LINKS[part]
        elif part.isdecimal():
            # "4x rtx3090:8" is four machines of eight, "rtx3090:8" one machine of eight.
            machine.hosts *= group.count
            group.count = _count(part, machine.text)
        else:
            group = _replace_memory(group, _size(part, machine.text), machine.text)
    return group


def _find_group(machine: Machine, word: str, link: str | None) -> Group | None:
    word = _MAC.sub("", word)
    try:
        return Group(find_device(word), link=link)
    except FactError:
        pass
    trailing = re.fullmatch(r"(.*\S)\s*[x×*]\s*(\d{1,3})", word)
    if trailing:
        group = _find_group(machine, trailing[1], link)
        if group is not None:
            group.count = _count(trailing[2], machine.text)
            return group
    size = _SIZE_SUFFIX.search(word)
    if size is None:
        return None
    group = _find_group(machine, word[: size.start()], link)
    return _replace_memory(group, int(size[1]) * GIB, machine.text) if group else None


def _replace_memory(group: Group, box_bytes: int, text: str) -> Group:
    """`group` in the version with `box_bytes` of memory; SpecError if it is not made with that much."""
    entry = group.entry
    siblings = {
        size: other
        for other in catalogue().values()
        if other.word == entry.word or re.fullmatch(re.escape(_stem(entry.word)) + r"(-\d+g)?", other.word)
        for size in (other.sizes or (other.device.box_bytes,))
    }
    fitting = [size for size in siblings if abs(size - box_bytes) <= 0.04 * size]
    if not fitting:
        sizes = ", ".join(format_bytes(size) for size in sorted(siblings))
        raise SpecError(f"{text!r}: {entry.device.name} is made with {sizes}, not {format_bytes(box_bytes)}")
    group.entry = siblings[fitting[0]]
    group.box_bytes = fitting[0] if group.entry.sizes else 0
    return group


def _stem(word: str) -> str:
    return re.sub(r"-\d+g$", "", word)


def _parse_option(machine: Machine, option: str) -> None:
    key, sign, written = (part.strip() for part in option.partition("="))
    key, value = key.lower(), written.lower()
    if not sign:
        if key in ("desktop", "headless"):
            machine.desktop = key == "desktop"
        elif key in _LINKS and machine.groups:
            for group in machine.groups:
                group.link = _LINKS[key]
        else:
            raise SpecError(f"{machine.text!r}: {option!r} is no option", hint=_OPTIONS_HINT)
    elif key == "ram":
        machine.ram_bytes = _size(value, machine.text)
    elif key == "disk":
        machine.disk_bytes = _size(value, machine.text)
    elif key == "free":
        machine.free_bytes = _size(value, machine.text)
    elif key == "cores":
        machine.cores = _count(value, machine.text)
    elif key == "net":
        speed = _SPEED.fullmatch(written)
        if speed is None:
            raise SpecError(f"{machine.text!r}: {value!r} is no network speed", hint="write for example net=100Gbps")
        # Links are sold in bits; only who writes a capital B means bytes.
        machine.network_bandwidth = float(speed[1]) * 1e9 / (1 if speed[2] else 8)
    elif key == "cpu":
        counts, word = _multipliers(value, machine.text)
        try:
            machine.cpu, machine.sockets = find_cpu(word), counts[0] if counts else 1
        except FactError as error:
            raise SpecError(f"{machine.text!r}: {error.message}", hint=error.hint) from error
    else:
        raise SpecError(f"{machine.text!r}: {key!r} is no option", hint=_OPTIONS_HINT)


_OPTIONS_HINT = (
    "options are ram=, cpu=, cores=, disk=, net=, free=, desktop, headless, nvlink, pcie; "
    "a + joins other cards in the same machine, a ; other machines"
)


def _count(text: str, whole: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= _MOST_HOSTS:
        raise SpecError(f"{whole!r}: {text!r} is no count between 1 and {_MOST_HOSTS}")
    return int(text)


def _size(text: str, whole: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise SpecError(f"{whole!r}: {text.strip()!r} is no size", hint="write for example 377GiB or 24g")
    # A person's "24g", "24GB" and "24GiB" of memory chips are the same: memory is sold in binary gigabytes.
    return parse_bytes(f"{match[1]}{match[2] or match[3]}")


@cache
def systems() -> Mapping[str, dict[str, Any]]:
    """The rows of `data/systems.toml` by word, each with its word."""
    text = (resources.files("plimsoll.facts") / "data" / "systems.toml").read_text(encoding="utf-8")
    return {word: {**row, "word": word} for word, row in tomllib.loads(text).items()}


@cache
def _system_index() -> Mapping[str, dict[str, Any]]:
    return {name: row for word, row in systems().items() for name in (word, *row.get("aliases", ()))}
