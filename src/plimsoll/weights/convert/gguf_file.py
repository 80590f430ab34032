"""Splits a GGUF file into parts and merges parts into one, as llama.cpp's gguf-split does, bit-equal tensors checked.

Metadata is carried over as the bytes it is; only the three `split.*` keys are written anew.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from plimsoll.errors import FactError, WeightError
from plimsoll.facts.ggml_types import BY_NUMBER
from plimsoll.facts.gguf import GgufHeader, GgufTensor, read_gguf
from plimsoll.weights.convert.output import new_file
from plimsoll.weights.convert.progress import Tally
from plimsoll.weights.convert.safetensors_file import COPY_BYTES, copy_range, same_range
from plimsoll.weights.disk import check_disk
from plimsoll.weights.sources import split_parts
from plimsoll.weights.types import Progress

_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _UINT16, _INT32 = 8, 9, 2, 5
_NUMBERS = {kind: number for number, kind in BY_NUMBER.items()}


@dataclass(frozen=True, slots=True)
class _Piece:
    """A tensor to be written, and the open file its bytes come from."""

    tensor: GgufTensor
    file: int
    start: int


def merge_gguf(first: Path, target: Path, *, progress: Progress | None = None) -> None:
    """Write all parts of the split model that `first` belongs to as one file; WeightError if a part is missing."""
    names = split_parts(first.name)
    if len(names) == 1:
        raise WeightError(f"{first.name} is not a part of a split model", hint="its name ends in -00001-of-000NN.gguf")
    paths = [first.with_name(name) for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise WeightError(f"{len(missing)} of {len(paths)} parts are missing, first {missing[0]}", hint="fetch them")
    with ExitStack() as stack:
        pieces: list[_Piece] = []
        headers = []
        for number, path in enumerate(paths):
            file, header = open_gguf(path, stack)
            if header.metadata.get("split.no") != number or header.metadata.get("split.count") != len(paths):
                raise WeightError(f"{path.name} does not say that it is part {number + 1} of {len(paths)}")
            headers.append(header)
            pieces += _pieces(file, header)
        if len(pieces) != headers[0].metadata.get("split.tensors.count"):
            raise WeightError(f"the parts hold {len(pieces)} tensors, the first says otherwise", hint="fetch again")
        pairs = [pair for key, pair in metadata_entries(paths[0], headers[0]) if not key.startswith("split.")]
        _write(target, pairs, pieces, _alignment(headers[0]), Tally(target.name, _size(pieces), progress))


def split_gguf(source: Path, folder: Path, *, part_bytes: int, progress: Progress | None = None) -> tuple[Path, ...]:
    """Write `source` as parts with at most `part_bytes` of tensors each into `folder`; their paths, in order."""
    with ExitStack() as stack:
        file, header = open_gguf(source, stack)
        if header.metadata.get("split.count", 0):
            raise WeightError(f"{source.name} is a part of a split model", hint="merge its parts first")
        groups: list[list[_Piece]] = [[]]
        for piece in _pieces(file, header):
            if groups[-1] and _size(groups[-1]) + piece.tensor.bytes > part_bytes:
                groups.append([])
            groups[-1].append(piece)
        count, total = len(groups), sum(map(len, groups))
        stem = source.name.removesuffix(".gguf")
        paths = tuple(folder / f"{stem}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1))
        pairs = [(key, pair) for key, pair in metadata_entries(source, header) if not key.startswith("split.")]
        tally = Tally(source.name, _size(_pieces(file, header)), progress)
        written: list[Path] = []
        try:
            for number, (path, group) in enumerate(zip(paths, groups, strict=True)):
                kept = [pair for key, pair in pairs if number == 0 or key == "general.alignment"]
                own = [
                    _pair("split.no", _UINT16, struct.pack("<H", number)),
                    _pair("split.count", _UINT16, struct.pack("<H", count)),
                    _pair("split.tensors.count", _INT32, struct.pack("<i", total)),
                ]
                _write(path, [*kept, *own], group, _alignment(header), tally)
                written.append(path)
        except BaseException:
            for path in written:
                path.unlink()
            raise
    return paths


def read_gguf_header(path: Path) -> GgufHeader:
    """The header of a GGUF file on the disk; WeightError if it is not one."""
    with ExitStack() as stack:
        return open_gguf(path, stack)[1]


def open_gguf(path: Path, stack: ExitStack) -> tuple[int, GgufHeader]:
    """An open file, closed with `stack`, and its header; WeightError if it is no GGUF or big-endian."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, file)
        header = read_gguf(
            lambda offset, length: os.pread(file, length, offset), os.fstat(file).st_size, name=path.name
        )
    except OSError as error:
        raise WeightError(f"{path} cannot be read: {error.strerror}") from None
    except FactError as error:
        raise WeightError(error.message, hint=error.hint, source=error.source) from None
    if header.big_endian:
        raise WeightError(f"{path.name} is big-endian", hint="only little-endian files are converted")
    return file, header


def _pieces(file: int, header: GgufHeader) -> list[_Piece]:
    return [_Piece(tensor, file, header.data_offset + tensor.offset) for tensor in header.tensors]


def _size(pieces: Sequence[_Piece]) -> int:
    return sum(piece.tensor.bytes for piece in pieces)


def _alignment(header: GgufHeader) -> int:
    alignment = header.metadata.get("general.alignment", 32)
    return alignment if isinstance(alignment, int) else 32


def metadata_entries(path: Path, header: GgufHeader) -> list[tuple[str, bytes]]:
    """Each metadata key with the bytes of its whole entry; the header was checked, so all lengths are in the file."""
    with path.open("rb") as file:
        data = file.read(header.data_offset)
    (count,) = struct.unpack_from("<Q", data, 16)
    position = 24
    found = []
    for _ in range(count):
        start = position
        (length,) = struct.unpack_from("<Q", data, position)
        key = data[position + 8 : position + 8 + length].decode("utf-8", "replace")
        position += 8 + length
        (kind,) = struct.unpack_from("<I", data, position)
        position = _skip(data, position + 4, kind)
        found.append((key, data[start:position]))
    return found


def _skip(data: bytes, position: int, kind: int) -> int:
    """Where the value at `position` ends."""
    if kind == _STRING:
        return position + 8 + int.from_bytes(data[position : position + 8], "little")
    if kind != _ARRAY:
        return position + _SCALAR_BYTES[kind]
    inner = int.from_bytes(data[position : position + 4], "little")
    count = int.from_bytes(data[position + 4 : position + 12], "little")
    position += 12
    if inner != _STRING:
        return position + count * _SCALAR_BYTES[inner]
    for _ in range(count):
        position = _skip(data, position, inner)
    return position


def _pair(key: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value


def _write(target: Path, pairs: Sequence[bytes], pieces: Sequence[_Piece], alignment: int, tally: Tally) -> None:
    infos, offset, offsets = [], 0, []
    for piece in pieces:
        name = piece.tensor.name.encode()
        shape = piece.tensor.shape
        infos.append(
            struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
            + struct.pack("<IQ", _NUMBERS[piece.tensor.type], offset)
        )  # fmt: skip
        offsets.append(offset)
        offset += -(-piece.tensor.bytes // alignment) * alignment
    head = b"".join([b"GGUF", struct.pack("<IQQ", 3, len(pieces), len(pairs)), *pairs, *infos])
    head += bytes(-len(head) % alignment)
    check_disk(target.parent, len(head) + offset)
    with new_file(target) as fresh, fresh.open("x+b") as file:
        os.pwrite(file.fileno(), head, 0)
        os.ftruncate(file.fileno(), len(head) + offset)
        for piece, place in zip(pieces, offsets, strict=True):
            _copy(piece, file.fileno(), len(head) + place, tally)
        file.flush()
        written = [(one.name, one.shape, one.type, one.bytes) for one in read_gguf_header(fresh).tensors]
        if written != [(one.tensor.name, one.tensor.shape, one.tensor.type, one.tensor.bytes) for one in pieces]:
            raise WeightError(f"{target.name} did not come out as planned", hint="please report this")


def _copy(piece: _Piece, target: int, position: int, tally: Tally) -> None:
    for done in range(0, piece.tensor.bytes, COPY_BYTES):
        length = min(COPY_BYTES, piece.tensor.bytes - done)
        copy_range(piece.file, piece.start + done, target, position + done, length)
        if not same_range(piece.file, piece.start + done, target, position + done, length):
            raise WeightError(f"{piece.tensor.name} was not written as it was read", hint="check the disk")
        tally.add(length)
