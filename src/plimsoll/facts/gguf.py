"""Reads the header of a GGUF file: metadata and tensor list, never the weights.

The file may be hostile or cut short. Every count and length is bounded before anything is allocated, arrays (the
tokenizer) are walked but not kept, so memory stays small whatever the file claims.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, both byte orders).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

from plimsoll.errors import FactError
from plimsoll.facts.ggml_types import BY_NUMBER, GgmlType
from plimsoll.units import KIB, MIB, format_bytes

ReadAt = Callable[[int, int], bytes]
"""`read(offset, length)`: the bytes there, fewer only where the file ends."""

Scalar = str | int | float | bool

MAX_HEADER_BYTES = 128 * MIB  # the largest tokenizers (262,144 tokens with merges) take about 16 MiB
MAX_KEYS = 4096
MAX_TENSORS = 1 << 16
MAX_NAME_BYTES = 4 * KIB
MAX_TEXT_BYTES = MIB
MAX_KEPT_TEXT_BYTES = 8 * MIB
MAX_KEPT_ELEMENTS = 2048  # per-layer numbers are kept, token lists are not
MAX_ELEMENTS = 1 << 26

_SCALARS = {
    0: ("B", 1), 1: ("b", 1), 2: ("H", 2), 3: ("h", 2), 4: ("I", 4), 5: ("i", 4), 6: ("f", 4), 7: ("?", 1),
    10: ("Q", 8), 11: ("q", 8), 12: ("d", 8),
}  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """One tensor: `shape` in ggml's order (row length first), `offset` from the start of the data, `bytes` stored."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    offset: int
    bytes: int

    @property
    def params(self) -> int:
        """Number of weights."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """What a GGUF file says before its weights begin at `data_offset`; `size` is the file's own."""

    name: str
    version: int
    big_endian: bool
    metadata: Mapping[str, Scalar | tuple[Scalar, ...]]
    array_lengths: Mapping[str, int]
    """Elements of every array, also of those too long to keep in `metadata` (the tokenizer's)."""
    tensors: tuple[GgufTensor, ...]
    data_offset: int
    size: int


def read_gguf(read: ReadAt, size: int, *, name: str = "file.gguf") -> GgufHeader:
    """The header of a GGUF file of `size` bytes; FactError where it is not one, is broken, or is cut short."""
    if size < 24:
        raise FactError(f"{name} is not a GGUF file: it has only {size} bytes", source=name)
    magic = read(0, 8)
    if magic[:4] != b"GGUF" or len(magic) < 8:
        raise FactError(
            f"{name} is not a GGUF file: it begins with {magic[:4]!r}, not b'GGUF'",
            hint="An HTML page or a Git LFS pointer is often saved in its place; download the file again.",
            source=name,
        )
    version = int.from_bytes(magic[4:], "little")
    big_endian = version & 0xFFFF == 0
    if big_endian:
        version = int.from_bytes(magic[4:], "big")
    if version not in (2, 3):
        raise FactError(
            f"{name} is GGUF version {version}; versions 2 and 3 are known",
            hint="Convert the model again with a current llama.cpp.",
            source=name,
        )
    cursor = _Cursor(read, min(size, MAX_HEADER_BYTES), name=name, order=">" if big_endian else "<")
    cursor.skip(8)
    tensor_count = cursor.count("tensors", MAX_TENSORS)
    key_count = cursor.count("metadata keys", MAX_KEYS)
    metadata, lengths = _read_metadata(cursor, key_count)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= MIB or alignment & (alignment - 1):
        raise cursor.broken(f"general.alignment is {alignment!r}, not a power of two")
    tensors = _read_tensors(cursor, tensor_count, alignment)
    data_offset = _pad(cursor.position, alignment)
    _check_extent(tensors, data_offset=data_offset, size=size, name=name)
    return GgufHeader(
        name=name, version=version, big_endian=big_endian, metadata=metadata, array_lengths=lengths, tensors=tensors,
        data_offset=data_offset, size=size,
    )  # fmt: skip


def _pad(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _read_metadata(cursor: _Cursor, count: int) -> tuple[dict[str, Scalar | tuple[Scalar, ...]], dict[str, int]]:
    metadata: dict[str, Scalar | tuple[Scalar, ...]] = {}
    lengths: dict[str, int] = {}
    kept = 0
    for _ in range(count):
        key = cursor.text("a metadata key", MAX_NAME_BYTES)
        if key in metadata or key in lengths:
            raise cursor.broken(f"the metadata key {key!r} comes twice")
        kind = int(cursor.number("I", 4))
        if kind == _STRING:
            text = cursor.text(key, MAX_TEXT_BYTES)
            kept += len(text)
            if kept > MAX_KEPT_TEXT_BYTES:
                raise cursor.broken(f"its metadata holds more than {format_bytes(MAX_KEPT_TEXT_BYTES)} of text")
            metadata[key] = text
        elif kind == _ARRAY:
            lengths[key], values = _read_array(cursor, key)
            if values is not None:
                metadata[key] = values
        elif kind in _SCALARS:
            metadata[key] = cursor.number(*_SCALARS[kind])
        else:
            raise cursor.broken(f"the metadata key {key!r} is of the unknown type {kind}")
    return metadata, lengths


def _read_array(cursor: _Cursor, key: str) -> tuple[int, tuple[Scalar, ...] | None]:
    kind = int(cursor.number("I", 4))
    count = cursor.count(f"elements of {key!r}", MAX_ELEMENTS)
    if kind == _STRING:
        cursor.skip_texts(count)
        return count, None
    if kind not in _SCALARS:
        raise cursor.broken(f"the array {key!r} holds elements of the unknown type {kind}")
    code, width = _SCALARS[kind]
    if count > MAX_KEPT_ELEMENTS:
        cursor.skip(count * width)
        return count, None
    return count, struct.unpack(f"{cursor.order}{count}{code}", cursor.take(count * width))


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> tuple[GgufTensor, ...]:
    tensors: list[GgufTensor] = []
    seen: set[str] = set()
    expected = 0
    for _ in range(count):
        name = cursor.text("a tensor's name", 256)
        if name in seen:
            raise cursor.broken(f"the tensor {name!r} comes twice")
        seen.add(name)
        dims = int(cursor.number("I", 4))
        if not 1 <= dims <= 4:
            raise cursor.broken(f"the tensor {name!r} has {dims} dimensions; 1 to 4 are possible")
        shape = struct.unpack(f"{cursor.order}{dims}Q", cursor.take(8 * dims))
        number = int(cursor.number("I", 4))
        offset = int(cursor.number("Q", 8))
        kind = BY_NUMBER.get(number)
        if kind is None:
            raise FactError(
                f"{cursor.name}: the tensor {name!r} is of the unknown ggml type {number}",
                hint="The file was made by a newer llama.cpp or by a fork of it.",
                source=cursor.name,
            )
        if any(side == 0 for side in shape) or prod(shape) >= 1 << 62 or shape[0] % kind.values:
            raise cursor.broken(f"the tensor {name!r} cannot have the shape {shape} as {kind.name}")
        if offset != expected:
            raise cursor.broken(f"the tensor {name!r} lies at {offset}, not at {expected} where the one before it ends")
        size = kind.size_of(shape[0], prod(shape[1:]))
        tensors.append(GgufTensor(name=name, shape=shape, type=kind, offset=offset, bytes=size))
        expected = _pad(offset + size, alignment)
    return tuple(tensors)


def _check_extent(tensors: tuple[GgufTensor, ...], *, data_offset: int, size: int, name: str) -> None:
    for tensor in tensors:
        if data_offset + tensor.offset + tensor.bytes > size:
            last = tensors[-1]
            missing = data_offset + last.offset + last.bytes - size
            raise FactError(
                f"{name} is cut short: it has {size} bytes, {missing} are missing; "
                f"the first tensor not wholly there is {tensor.name!r}",
                hint="The download stopped early; fetch the file again (a resumed download continues where it ended).",
                source=name,
            )


class _Cursor:
    """Walks forward through the header in windows of at most 4 MiB."""

    def __init__(self, read: ReadAt, limit: int, *, name: str, order: str) -> None:
        self.name = name
        self.order = order
        self._read = read
        self._limit = limit
        self._window = b""
        self._start = 0
        self._at = 0
        self._step = 256 * KIB
        self._number = {code: struct.Struct(order + code) for code, _ in _SCALARS.values()}

    @property
    def position(self) -> int:
        return self._start + self._at

    def broken(self, what: str) -> FactError:
        return FactError(
            f"{self.name} is not a sound GGUF file: {what}",
            hint="Fetch or convert it again; do not load it.",
            source=f"{self.name} at byte {self.position}",
        )

    def take(self, length: int) -> bytes:
        self._need(length)
        self._at += length
        return self._window[self._at - length : self._at]

    def skip(self, length: int) -> None:
        if self.position + length > self._limit:
            raise self._past_end()
        if self._at + length <= len(self._window):
            self._at += length
        else:
            self._start, self._at, self._window = self.position + length, 0, b""

    def number(self, code: str, width: int) -> int | float | bool:
        value: int | float | bool = self._number[code].unpack(self.take(width))[0]
        return value

    def count(self, what: str, most: int) -> int:
        value = int(self.number("Q", 8))
        if value > most:
            raise self.broken(f"it claims {value} {what}; more than {most} are never needed")
        return value

    def text(self, what: str, most: int) -> str:
        length = int(self.number("Q", 8))
        if length > most:
            raise self.broken(f"{what} claims a length of {length} bytes; more than {most} are never needed")
        return self.take(length).decode("utf-8", "replace")

    def skip_texts(self, count: int) -> None:
        """Walk over `count` strings: half a million of them in a large tokenizer, hence the tight loop."""
        unpack = self._number["Q"].unpack_from
        done = 0
        while done < count:
            self._need(8)
            window, at, last = self._window, self._at, len(self._window) - 8
            while done < count and at <= last:
                at += 8 + unpack(window, at)[0]
                done += 1
            step = at - self._at
            self.skip(step)

    def _need(self, length: int) -> None:
        if self._at + length <= len(self._window):
            return
        start = self.position
        if start + length > self._limit:
            raise self._past_end()
        self._window = self._read(start, min(max(length, self._step), self._limit - start))
        self._start, self._at = start, 0
        self._step = min(self._step * 2, 4 * MIB)
        if len(self._window) < length:
            raise self._past_end()

    def _past_end(self) -> FactError:
        if self._limit == MAX_HEADER_BYTES:
            return self.broken(f"its header does not end within {format_bytes(MAX_HEADER_BYTES)}")
        return FactError(
            f"{self.name} is cut short: it ends within its header, after {format_bytes(self._limit)}",
            hint="The download stopped early; fetch the file again.",
            source=self.name,
        )
