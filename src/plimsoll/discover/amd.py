"""AMD devices out of the JSON of amd-smi, or of rocm-smi where that is what there is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from plimsoll.discover.seen import Seen
from plimsoll.units import MIB


def parse_amd_smi(static: str, metric: str) -> tuple[Seen, ...]:
    """The devices of `amd-smi static --json` with the memory of `amd-smi metric --mem-usage --json`; () if garbled."""
    memory = {row.get("gpu"): row.get("mem_usage") for row in _gpus(metric)}
    seen: list[Seen] = []
    for row in _gpus(static):
        asic, usage = _mapping(row.get("asic")), _mapping(memory.get(row.get("gpu")))
        total = _megabytes(usage.get("total_vram")) or _megabytes(_mapping(row.get("vram")).get("size"))
        if not total:
            continue
        arch = str(asic.get("target_graphics_version") or "")
        seen.append(
            Seen(
                vendor="amd", name=str(asic.get("market_name") or "unknown AMD device"), index=len(seen),
                total_bytes=total, used_bytes=min(total, _megabytes(usage.get("used_vram"))), arch=arch or None,
                driver=_driver(row), source="amd-smi",
            )
        )  # fmt: skip
    return tuple(seen)


def parse_rocm_smi(text: str) -> tuple[Seen, ...]:
    """The cards of `rocm-smi --showproductname --showmeminfo vram --showdriverversion --json`; () if garbled."""
    cards = _mapping(_load(text))
    driver = _mapping(cards.get("system")).get("Driver version")
    seen: list[Seen] = []
    for key in sorted(cards, key=lambda key: (len(key), key)):
        row = _mapping(cards[key])
        total = _number(row.get("VRAM Total Memory (B)"))
        if not key.startswith("card") or not total:
            continue
        names = (row.get(field) for field in ("Card Series", "Card series", "Card Model", "Card model"))
        used = _number(row.get("VRAM Total Used Memory (B)"))
        gfx = row.get("GFX Version")
        seen.append(
            Seen(
                vendor="amd", name=str(next(filter(None, names), "unknown AMD device")), index=len(seen),
                total_bytes=total, used_bytes=min(total, used), arch=str(gfx) if gfx else None,
                driver=str(driver) if driver else None, source="rocm-smi",
            )
        )  # fmt: skip
    return tuple(seen)


def _gpus(text: str) -> Iterator[Mapping[str, Any]]:
    """The per-GPU objects of amd-smi: a list, or since ROCm 7 an object with `gpu_data`; warnings before it skipped."""
    start = min((at for at in (text.find("["), text.find("{")) if at >= 0), default=0)
    data = _load(text[start:])
    if isinstance(data, dict):
        data = data.get("gpu_data", [])
    yield from (row for row in data if isinstance(row, dict)) if isinstance(data, list) else ()


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> int:
    return int(value) if isinstance(value, (str, int)) and str(value).isdecimal() else 0


def _megabytes(value: Any) -> int:
    """Bytes of {"value": 196592, "unit": "MB"} or of a bare number; amd-smi's MB is 2^20."""
    return _number(value.get("value") if isinstance(value, dict) else value) * MIB


def _driver(row: Mapping[str, Any]) -> str | None:
    version = _mapping(row.get("driver")).get("version")
    return str(version) if version else None
