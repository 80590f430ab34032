"""Reads the header of a safetensors file: names, types and shapes, never the weights.

Format: 8 bytes with the length of a JSON object, the object, then the data
(https://huggingface.co/docs/safetensors). The file may be hostile or cut short; every length is bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import orjson

from plimsoll.errors import FactError
from plimsoll.facts.gguf import ReadAt
from plimsoll.units import MIB

MAX_HEADER_BYTES = 16 * MIB  # a shard of 5 GB holds a few thousand tensors, about 1 MiB of header
MAX_TENSORS = 1 << 17
MAX_SHARDS = 4096

BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32,
    "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "C64": 64,
}  # fmt: skip
"""Bits of one value of each type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor of a file: its type as the file names it, its shape, its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsHeader:
    """What a file says before its data; `size` is the file's own."""

    name: str
    tensors: tuple[StoredTensor, ...]
    size: int


def read_safetensors(read: ReadAt, size: int, *, name: str = "model.safetensors") -> SafetensorsHeader:
    """The header of a file of `size` bytes; FactError where it is not one, is broken, or is cut short."""
    start = read(0, 8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= MAX_HEADER_BYTES:
        raise _broken(name, f"its header claims {length} bytes")
    if 8 + length > size:
        raise _cut_short(name, size, 8 + length - size, "its header")
    try:
        table = orjson.loads(read(8, length))
    except orjson.JSONDecodeError as error:
        raise _broken(name, "its header is not JSON") from error
    if not isinstance(table, dict) or len(table) > MAX_TENSORS:
        raise _broken(name, "its header is no table of tensors")
    found = sorted((_offsets(name, key, entry), key, entry) for key, entry in table.items() if key != "__metadata__")
    end = 0
    tensors: list[StoredTensor] = []
    for (begin, stop), key, entry in found:
        tensors.append(_tensor(name, key, entry, begin, stop))
        if begin != end:
            raise _broken(name, f"the tensor {key!r} begins at {begin}, not at {end} where the one before it ends")
        end = stop
    if 8 + length + end > size:
        first = next(key for (_, stop), key, _ in found if 8 + length + stop > size)
        raise _cut_short(name, size, 8 + length + end - size, f"the tensor {first!r}")
    return SafetensorsHeader(name=name, tensors=tuple(tensors), size=size)


def _offsets(name: str, key: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(item) is int for item in offsets):
        raise _broken(name, f"the tensor {key!r} has no data offsets")
    begin, stop = offsets
    if not 0 <= begin <= stop < 1 << 62:
        raise _broken(name, f"the tensor {key!r} lies at {offsets}")
    return begin, stop


def _tensor(name: str, key: str, entry: Mapping[str, Any], begin: int, stop: int) -> StoredTensor:
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise FactError(
            f"{name}: the tensor {key!r} is of the unknown type {dtype!r}",
            hint="The file was made by a newer version of safetensors.",
            source=name,
        )
    if not isinstance(shape, list) or len(shape) > 16 or not all(type(side) is int and side >= 0 for side in shape):
        raise _broken(name, f"the tensor {key!r} has the shape {shape!r}")
    if (prod(shape) * BITS[dtype] + 7) // 8 != stop - begin:
        raise _broken(name, f"the tensor {key!r} of shape {shape} as {dtype} does not fill its {stop - begin} bytes")
    return StoredTensor(name=key, dtype=dtype, shape=tuple(shape), bytes=stop - begin)


def read_index(content: bytes, *, name: str = "model.safetensors.index.json") -> tuple[tuple[str, ...], int | None]:
    """The files of a sharded model in order, and the bytes of all tensors if the index states them."""
    try:
        index = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise _broken(name, "it is not JSON") from error
    weights = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise _broken(name, "it has no weight_map")
    files = sorted({str(file) for file in weights.values()})
    if len(files) > MAX_SHARDS or any("/" in file or "\\" in file or file.startswith(".") for file in files):
        raise _broken(name, "it names files outside the model's directory, or too many")
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return tuple(files), int(total) if isinstance(total, int | float) and 0 < total < 1 << 60 else None


def _broken(name: str, what: str) -> FactError:
    return FactError(
        f"{name} is not a sound safetensors file: {what}", hint="Fetch it again; do not load it.", source=name
    )


def _cut_short(name: str, size: int, missing: int, what: str) -> FactError:
    return FactError(
        f"{name} is cut short: it has {size} bytes, {missing} are missing; {what} is not wholly there",
        hint="The download stopped early; fetch the file again.",
        source=name,
    )
