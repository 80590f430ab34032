"""Files of torch.save, both layouts (zip since torch 1.6, and the one before), as tensors with places in the file."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from plimsoll.errors import WeightError
from plimsoll.facts.safetensors import BITS
from plimsoll.weights.convert.pickle_machine import MAX_PICKLE_BYTES, PickleMachine, Storage, Strided

_LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
"""The pickle of 0x1950a86a20f9469cfc6c."""

_STORAGES = {
    "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "DoubleStorage": "F64",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "ComplexFloatStorage": "C64", "UntypedStorage": "U8",
}  # fmt: skip
_DTYPES = {
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e8m0fnu": "F8_E8M0", "uint16": "U16", "uint32": "U32", "uint64": "U64",
    "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "complex64": "C64",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchTensor:
    """A tensor of a checkpoint: its first element is at byte `start` of the file, strides are in elements."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    start: int

    @property
    def item_bytes(self) -> int:
        """Of one element."""
        return BITS[self.dtype] // 8

    @property
    def size_bytes(self) -> int:
        """Of all elements, without gaps."""
        return prod(self.shape) * self.item_bytes

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie one after the other, in order."""
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and stride != step:
                return prod(self.shape) == 0
            step *= size
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The tensors of one file, in its order; `skipped` are the names of entries that are no tensors."""

    path: Path
    tensors: tuple[TorchTensor, ...]
    skipped: tuple[str, ...]


def read_checkpoint(path: Path) -> Checkpoint:
    """What is in a file of torch.save. Runs nothing of it; WeightError if it is none or asks for more than tensors."""
    try:
        with path.open("rb") as file:
            head = file.read(len(_LEGACY_MAGIC))
        if head.startswith(b"PK"):
            state, places = _read_zip(path)
        elif head == _LEGACY_MAGIC:
            state, places = _read_legacy(path)
        else:
            raise WeightError(
                f"{path.name} is not a file of torch.save: it begins with {head[:4]!r}",
                hint="an HTML page or a Git LFS pointer is often saved in its place; fetch it again",
                source=str(path),
            )
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, ValueError, OverflowError) as error:
        raise WeightError(f"{path.name} is broken: {error}", hint="fetch it again", source=str(path)) from None
    state = _state_dict(state, path)
    tensors, skipped = [], []
    for name, value in state.items():
        if isinstance(value, Strided) and isinstance(name, str):
            tensors.append(_locate(name, value, places, path))
        else:
            skipped.append(str(name)[:100])
    if not tensors:
        raise WeightError(f"{path.name} holds no tensors", hint="is it the right file?", source=str(path))
    return Checkpoint(path=path, tensors=tuple(tensors), skipped=tuple(skipped))


def _state_dict(state: Any, path: Path) -> dict[Any, Any]:
    """The table of tensors, which trainers put one level down."""
    for key in (None, "state_dict", "model", "module"):
        inner = state if key is None else state.get(key) if isinstance(state, dict) else None
        if isinstance(inner, dict) and any(isinstance(value, Strided) for value in inner.values()):
            return inner
    raise WeightError(f"{path.name} holds no table of tensors", hint="is it the right file?", source=str(path))


Places = Mapping[str, tuple[int, int]]
"""Storage key to offset in the file and bytes."""


def _read_zip(path: Path) -> tuple[Any, Places]:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if not all(0 <= entry.header_offset < size for entry in entries.values()):
            raise WeightError(f"{path.name} is broken: its zip names places outside it", hint="fetch it again")
        name = next((name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1), None)
        if name is None:
            raise WeightError(f"{path.name} is a zip file, but not one of torch.save", source=str(path))
        folder = name.removesuffix("data.pkl")
        if entries[name].file_size > MAX_PICKLE_BYTES:
            raise WeightError(f"{path.name}: its pickle claims {entries[name].file_size} bytes", source=str(path))
        order = entries.get(f"{folder}byteorder")
        if order is not None:
            with archive.open(order) as file:
                if file.read(16) != b"little":
                    raise WeightError(f"{path.name} was written on a big-endian machine", hint="convert it there")
        with archive.open(name) as file:
            state = PickleMachine(file.read(MAX_PICKLE_BYTES), name=path.name).run()
        places: dict[str, tuple[int, int]] = {}
        for entry_name, entry in entries.items():
            if not entry_name.startswith(f"{folder}data/"):
                continue
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise WeightError(f"{path.name}: {entry_name} is compressed, which torch never does", source=str(path))
            raw.seek(entry.header_offset)
            local = raw.read(30)
            if len(local) < 30 or local[:4] != b"PK\3\4":
                raise WeightError(f"{path.name}: {entry_name} is not where the zip says", source=str(path))
            name_length, extra_length = struct.unpack("<HH", local[26:30])
            start = entry.header_offset + 30 + name_length + extra_length
            if entry.file_size != entry.compress_size or start + entry.file_size > size:
                raise WeightError(f"{path.name} is cut short at {entry_name}", hint="fetch it again", source=str(path))
            places[entry_name.removeprefix(f"{folder}data/")] = (start, entry.file_size)
    return state, places


def _read_legacy(path: Path) -> tuple[Any, Places]:
    """Five pickles (magic, version, machine, state, storage keys), then each storage: its count, then its bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        data = file.read(MAX_PICKLE_BYTES)
        position = 0
        values: list[Any] = []
        kinds: dict[str, Storage] = {}
        for _ in range(5):
            machine = PickleMachine(data, name=path.name, position=position)
            values.append(machine.run())
            position = machine.position
            kinds |= machine.storages
        *_, state, keys = values
        if not isinstance(keys, list):
            raise WeightError(f"{path.name} is broken: it does not list its storages", source=str(path))
        places: dict[str, tuple[int, int]] = {}
        for key in keys:
            file.seek(position)
            count = int.from_bytes(file.read(8), "little")
            kind = kinds.get(key) if isinstance(key, str) else None
            if kind is None:
                raise WeightError(f"{path.name} is broken: it lists a storage that no tensor has", source=str(path))
            length = count * BITS[_storage_dtype(kind, path)] // 8
            if position + 8 + length > size:
                raise WeightError(f"{path.name} is cut short", hint="fetch it again", source=str(path))
            places[key] = (position + 8, length)
            position += 8 + length
    return state, places


def _storage_dtype(storage: Storage, path: Path) -> str:
    dtype = _STORAGES.get(storage.kind)
    if dtype is None:
        raise WeightError(f"{path.name} holds a {storage.kind[:60]}, which is not known", source=str(path))
    return dtype


def _locate(name: str, tensor: Strided, places: Places, path: Path) -> TorchTensor:
    stored = _storage_dtype(tensor.storage, path)
    dtype = stored if tensor.dtype is None else _DTYPES.get(tensor.dtype)
    place = places.get(tensor.storage.key)
    if dtype is None or place is None:
        what = f"the dtype {tensor.dtype}" if dtype is None else "a storage that is not there"
        raise WeightError(f"{path.name}: {name[:100]} has {what}", source=str(path))
    start, length = place
    item = BITS[dtype] // 8
    last = tensor.offset + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True))
    beyond = all(tensor.shape) and (last + 1) * item > length
    if beyond or prod(tensor.shape) * item > length:
        raise WeightError(
            f"{path.name}: {name[:100]} is larger than its storage", hint="fetch it again", source=str(path)
        )
    return TorchTensor(
        name=name, dtype=dtype, shape=tensor.shape, stride=tensor.stride, start=start + tensor.offset * item
    )
