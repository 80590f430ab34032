"""Checkpoints of torch.save (.bin, .pt, .pth) to safetensors, without torch and without running anything of them.

The bytes of a tensor are copied inside the kernel from one file to the other and compared afterwards, so memory stays
small whatever the size, and every tensor is bit-equal.
"""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Literal

from plimsoll.errors import WeightError
from plimsoll.units import MIB
from plimsoll.weights.convert.output import Draft, Step, carry_over, new_directory
from plimsoll.weights.convert.progress import Tally
from plimsoll.weights.convert.safetensors_file import (
    COPY_BYTES,
    Planned,
    copy_range,
    header_bytes,
    read_header,
    same_range,
)
from plimsoll.weights.convert.torch_file import Checkpoint, TorchTensor, read_checkpoint
from plimsoll.weights.disk import check_disk
from plimsoll.weights.tree import model_files
from plimsoll.weights.types import Progress

_INDEX = re.compile(r"pytorch_model.*\.bin\.index\.json$")
_PIECE_BYTES = 64 * MIB
_SUFFIXES = (".bin", ".pt", ".pth")
_CODES: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}


@dataclass(frozen=True, slots=True)
class _Shard:
    """A file to convert: the new name, and the tensors to write, in order."""

    checkpoint: Checkpoint
    name: str
    tensors: tuple[TorchTensor, ...]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a tensor, from its byte `start` on, that goes to `position` of the new file."""

    tensor: TorchTensor
    start: int
    position: int


def pickle_to_safetensors(source: Path, target: Path, *, progress: Progress | None = None, jobs: int = 2) -> Step:
    """Write the model directory `source` to `target` with its .bin files as safetensors; `target` must not exist.

    `jobs` threads work on each file. WeightError if a file is refused, broken or does not fit on the disk; then
    nothing is left of `target`.
    """
    files = model_files(source)
    old = _weight_files(files)
    checkpoints = [read_checkpoint(files[name]) for name in old]
    tied, notes = _tied(checkpoints, files)
    shards = [
        _Shard(checkpoint, name, tuple(tensor for tensor in checkpoint.tensors if tensor.name not in tied))
        for checkpoint, name in zip(checkpoints, _new_names(old), strict=True)
    ]
    names = [tensor.name for shard in shards for tensor in shard.tensors]
    _check_index(files, {tensor.name for one in checkpoints for tensor in one.tensors})
    if len(set(names)) != len(names):
        raise WeightError(f"{source}: two files hold a tensor of the same name", hint="fetch the model again")
    total = sum(tensor.size_bytes for shard in shards for tensor in shard.tensors)
    check_disk(target.parent, total)
    with new_directory(target, source=source) as draft:
        tally = Tally(source.name, total, progress)
        with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
            for shard in shards:
                _convert(shard, draft, tied, tally, pool)
        if len(shards) > 1:
            _write_index(shards, total, draft)
        carry_over(files, draft, but=[*old, *(name for name in files if _INDEX.search(name))])
        skipped = [f"left out {name}: no tensor" for checkpoint in checkpoints for name in checkpoint.skipped]
        step = Step(what="pickle to safetensors", tensors=len(names), bytes=total, notes=(*notes, *skipped[:20]))
        draft.steps.append(step)
    return step


def _weight_files(files: Mapping[str, Path]) -> list[str]:
    """The .bin files to convert, which are those of the index where there is one."""
    names = [name for name in files if name.startswith("pytorch_model") and name.endswith(".bin")]
    names = names or [name for name in files if "/" not in name and name.endswith(_SUFFIXES)]
    names = [name for name in names if PurePosixPath(name).name not in ("training_args.bin", "optimizer.bin")]
    if not names:
        raise WeightError("there is no .bin, .pt or .pth file to convert", hint="is the model safetensors already?")
    return names


def _new_names(old: Sequence[str]) -> list[str]:
    stems = [re.sub(r"^pytorch_model", "model", name.rpartition(".")[0]) for name in old]
    return ["model.safetensors"] if len(stems) == 1 else [f"{stem}.safetensors" for stem in stems]


def _tied(checkpoints: Sequence[Checkpoint], files: Mapping[str, Path]) -> tuple[dict[str, str], list[str]]:
    """Tensors to leave out because another of the same bytes stands for them, with that one's name.

    Only where config.json says that embedding and output layer are one; any other shared tensor is written under each
    of its names, which is right for every loader.
    """
    try:
        config = json.loads(files["config.json"].read_bytes())
        tie = isinstance(config, dict) and config.get("tie_word_embeddings") is True
    except (KeyError, ValueError, OSError, RecursionError):
        tie = False
    left_out: dict[str, str] = {}
    notes = []
    for checkpoint in checkpoints:
        seen: dict[tuple[int, tuple[int, ...], str], str] = {}
        for tensor in sorted(checkpoint.tensors, key=lambda one: "lm_head" in one.name):
            first = seen.setdefault((tensor.start, tensor.shape, tensor.dtype), tensor.name)
            if first == tensor.name or tensor.size_bytes == 0:
                continue
            if tie and "lm_head" in tensor.name:
                left_out[tensor.name] = first
            else:
                notes.append(f"{tensor.name} shares its bytes with {first}: written twice")
    return left_out, [*notes[:20], *(f"left out {name}: tied to {other}" for name, other in left_out.items())]


def _check_index(files: Mapping[str, Path], names: set[str]) -> None:
    """Every tensor that the old index names must be there."""
    for index in (name for name in files if _INDEX.search(name)):
        try:
            wanted = json.loads(files[index].read_bytes())["weight_map"]
            missing = sorted(set(wanted) - names)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise WeightError(f"{index} is not an index of weights", hint="fetch it again") from None
        if missing:
            raise WeightError(
                f"{index} names {len(missing)} tensors that are in no file, first {missing[0][:100]}",
                hint="a shard is missing: fetch the model again",
            )


def _convert(shard: _Shard, draft: Draft, tied: Mapping[str, str], tally: Tally, pool: ThreadPoolExecutor) -> None:
    planned = [Planned(name=one.name, dtype=one.dtype, shape=one.shape) for one in shard.tensors]
    head = header_bytes(planned, {"format": "pt", **tied})
    path = draft.folder / shard.name
    path.parent.mkdir(parents=True, exist_ok=True)
    source = os.open(shard.checkpoint.path, os.O_RDONLY | os.O_CLOEXEC)
    target = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    os.pwrite(target, head, 0)
    futures = [pool.submit(_write, source, target, piece, tally) for piece in _pieces(shard, len(head))]
    try:
        for future in futures:
            future.result()
    finally:
        for future in futures:
            future.cancel()
        wait(futures)
        os.close(source)
        os.close(target)
    written = {tensor.name: (tensor.dtype, tensor.shape) for tensor in read_header(path).tensors}
    if written != {tensor.name: (tensor.dtype, tensor.shape) for tensor in shard.tensors}:
        raise WeightError(f"{shard.name} did not come out as planned", hint="please report this")


def _pieces(shard: _Shard, position: int) -> list[_Piece]:
    """The tensors in pieces that threads can share; one whose elements lie apart stays whole."""
    pieces = []
    for tensor in shard.tensors:
        step = _PIECE_BYTES if tensor.contiguous else max(1, tensor.size_bytes)
        pieces += [_Piece(tensor, start, position + start) for start in range(0, tensor.size_bytes, step)]
        position += tensor.size_bytes
    return pieces


def _write(source: int, target: int, piece: _Piece, tally: Tally) -> None:
    tensor = piece.tensor
    if not tensor.contiguous:
        _gather(source, target, tensor, piece.position)
        tally.add(tensor.size_bytes)
        return
    end = min(piece.start + _PIECE_BYTES, tensor.size_bytes)
    for done in range(piece.start, end, COPY_BYTES):  # compared while the bytes are still in the CPU's cache
        length, position = min(COPY_BYTES, end - done), piece.position + done - piece.start
        copy_range(source, tensor.start + done, target, position, length)
        if not same_range(source, tensor.start + done, target, position, length):
            raise WeightError(f"{tensor.name} was not written as it was read", hint="check the disk")
        tally.add(length)


def _gather(source: int, target: int, tensor: TorchTensor, position: int) -> None:
    """Write a tensor whose elements lie apart, row by row."""
    size, item = tensor.size_bytes, tensor.item_bytes
    if size == 0:
        return
    page = tensor.start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    *outer, width = tensor.shape
    *outer_strides, step = tensor.stride
    extent = sum((count - 1) * stride for count, stride in zip(tensor.shape, tensor.stride, strict=True)) + 1
    with (
        mmap.mmap(source, tensor.start - page + extent * item, prot=mmap.PROT_READ, offset=page) as mapped,
        memoryview(mapped) as raw,
        raw[tensor.start - page :] as view,
        view[: extent * item].cast(_CODES[item]) as items,
    ):
        pending = bytearray()
        for row in range(prod(outer)):
            start = 0
            for count, stride in zip(reversed(outer), reversed(outer_strides), strict=True):
                row, index = divmod(row, count)
                start += index * stride
            with items[start : start + (width - 1) * step + 1 : step or 1] as elements:
                pending += elements.tobytes() if step else elements.tobytes() * width
            if len(pending) >= COPY_BYTES:
                position += os.pwrite(target, pending, position)
                pending.clear()
        os.pwrite(target, pending, position)


def _write_index(shards: Sequence[_Shard], total: int, draft: Draft) -> None:
    weight_map = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (draft.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
