"""Safetensors models with some tensors rewritten: float16 for devices without bfloat16, FP8 blocks unpacked.

Tensors stream through in pieces of a few MiB; those that stay as they are are copied inside the kernel.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from plimsoll.errors import WeightError
from plimsoll.units import MIB
from plimsoll.weights.convert.config import patched_config
from plimsoll.weights.convert.numbers import (
    Losses,
    bfloat16_to_float16,
    float32_array,
    fp8_blocks_to_bfloat16,
    numpy,
)
from plimsoll.weights.convert.output import Draft, Step, carry_over, new_directory
from plimsoll.weights.convert.progress import Tally
from plimsoll.weights.convert.safetensors_file import Header, Planned, Tensor, copy_range, header_bytes, read_header
from plimsoll.weights.disk import check_disk
from plimsoll.weights.tree import model_files
from plimsoll.weights.types import Progress

_PIECE_BYTES = 8 * MIB
_INDEX = "model.safetensors.index.json"

Stream = Callable[[int, Tensor], Iterator[bytes]]
"""The new bytes of a tensor, read from an open file."""


@dataclass(slots=True)
class _Rewrite:
    """How every tensor of a model comes out: `new` by name, or left out, or as it is."""

    headers: dict[str, Header]
    files: Mapping[str, Path]
    new: dict[str, tuple[Planned, Stream]] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)

    def planned(self, header: Header) -> list[Planned]:
        return [
            self.new[tensor.name][0]
            if tensor.name in self.new
            else Planned(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape)
            for tensor in header.tensors
            if tensor.name not in self.left_out
        ]

    @property
    def total_bytes(self) -> int:
        return sum(one.size_bytes for header in self.headers.values() for one in self.planned(header))


def to_float16(
    source: Path, target: Path, *, clamp: bool = False, progress: Progress | None = None, jobs: int = 2
) -> Step:
    """Write the model `source` to `target` with its bfloat16 tensors, and config.json's dtype, as float16.

    What float16 cannot hold is counted per tensor in the step's notes. Values too large for it are refused with
    WeightError, or made the largest finite one with `clamp`; values that round to zero are only counted.
    """
    work = _open(source)
    losses: dict[str, Losses] = {}
    for tensor in _tensors(work):
        if tensor.dtype == "BF16":
            losses[tensor.name] = Losses()
            planned = Planned(name=tensor.name, dtype="F16", shape=tensor.shape)
            work.new[tensor.name] = (planned, _float16_stream(losses[tensor.name], clamp=clamp))
    if not work.new:
        raise WeightError(f"{source} holds no bfloat16 tensors", hint="nothing needs to be rewritten")
    with new_directory(target, source=source) as draft:
        _write(work, draft, source.name, progress, jobs)
        lost = _loss_notes(losses)
        overflow = sum(one.overflow for one in losses.values())
        if overflow and not clamp:
            worst = max(losses, key=lambda name: losses[name].largest)
            raise WeightError(
                f"{overflow} values do not fit float16, the largest {losses[worst].largest:.4g} in {worst}",
                hint="use a device with bfloat16, or clamp them to 65504 knowing that the answers will change",
            )
        config = patched_config(work.files, draft, changes={"torch_dtype": "float16", "dtype": "float16"})
        step = Step(what="bfloat16 to float16", tensors=len(work.new), bytes=work.total_bytes, notes=(*lost, *config))
        draft.steps.append(step)
    return step


def fp8_to_bfloat16(source: Path, target: Path, *, progress: Progress | None = None, jobs: int = 2) -> Step:
    """Write an FP8-block model (DeepSeek's layout: `NAME` and `NAME_scale_inv`) to `target` as bfloat16."""
    work = _open(source)
    tensors = {tensor.name: tensor for tensor in _tensors(work)}
    where = {tensor.name: name for name, header in work.headers.items() for tensor in header.tensors}
    block = _block_size(work.files)
    for tensor in tensors.values():
        if tensor.dtype != "F8_E4M3":
            continue
        scale = tensors.get(f"{tensor.name}_scale_inv")
        if scale is None or len(tensor.shape) != 2 or scale.dtype not in ("F32", "BF16"):
            raise WeightError(f"{tensor.name} is FP8 without the scales of its blocks", hint="only DeepSeek's layout")
        if scale.shape != tuple(-(-size // step) for size, step in zip(tensor.shape, block, strict=True)):
            raise WeightError(f"{scale.name} has the shape {scale.shape}, blocks of {block} need another")
        planned = Planned(name=tensor.name, dtype="BF16", shape=tensor.shape)
        work.new[tensor.name] = (planned, _fp8_stream(work.headers[where[scale.name]].path, scale, block))
        work.left_out.add(scale.name)
    if not work.new:
        raise WeightError(f"{source} holds no FP8 tensors", hint="nothing needs to be rewritten")
    with new_directory(target, source=source) as draft:
        _write(work, draft, source.name, progress, jobs)
        notes = patched_config(
            work.files, draft, changes={"torch_dtype": "bfloat16"}, drop=("quantization_config", "compression_config")
        )
        step = Step(what="FP8 blocks to bfloat16", tensors=len(work.new), bytes=work.total_bytes, notes=notes)
        draft.steps.append(step)
    return step


def _open(source: Path) -> _Rewrite:
    numpy()
    files = model_files(source)
    headers = {
        name: read_header(place)
        for name, place in files.items()
        if name.endswith(".safetensors") and PurePosixPath(name).parent == PurePosixPath(".")
    }
    if not headers:
        raise WeightError(f"{source} holds no safetensors", hint="convert its weights to safetensors first")
    return _Rewrite(headers=headers, files=files)


def _tensors(work: _Rewrite) -> Iterator[Tensor]:
    for header in work.headers.values():
        yield from header.tensors


def _float16_stream(losses: Losses, *, clamp: bool) -> Stream:
    def stream(file: int, tensor: Tensor) -> Iterator[bytes]:
        for start in range(tensor.start, tensor.end, _PIECE_BYTES):
            data = os.pread(file, min(_PIECE_BYTES, tensor.end - start), start)
            yield bfloat16_to_float16(data, losses, clamp=clamp)

    return stream


def _fp8_stream(scale_path: Path, scale: Tensor, block: tuple[int, int]) -> Stream:
    def stream(file: int, tensor: Tensor) -> Iterator[bytes]:
        with scale_path.open("rb") as scale_file:
            data = os.pread(scale_file.fileno(), scale.size_bytes, scale.start)
        scales = float32_array(data, scale.shape, scale.dtype)
        rows, columns = tensor.shape
        step = max(1, _PIECE_BYTES // 4 // max(1, columns) // block[0]) * block[0]
        for row in range(0, rows, step):
            count = min(step, rows - row)
            piece = os.pread(file, count * columns, tensor.start + row * columns)
            yield fp8_blocks_to_bfloat16(piece, columns, scales[row // block[0] :], block)

    return stream


def _block_size(files: Mapping[str, Path]) -> tuple[int, int]:
    try:
        rows, columns = json.loads(files["config.json"].read_bytes())["quantization_config"]["weight_block_size"]
    except (KeyError, ValueError, TypeError, OSError, RecursionError):
        return (128, 128)  # what all published FP8-block checkpoints use
    if type(rows) is not int or type(columns) is not int or not (0 < rows <= 1 << 16 and 0 < columns <= 1 << 16):
        raise WeightError(f"weight_block_size [{rows}, {columns}] in config.json is impossible")
    return rows, columns


def _write(work: _Rewrite, draft: Draft, name: str, progress: Progress | None, jobs: int) -> None:
    total = work.total_bytes
    check_disk(draft.folder, total)
    tally = Tally(name, total, progress)
    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        for _ in pool.map(
            lambda item: _write_shard(work, draft.folder / item[0], item[1], tally), work.headers.items()
        ):
            pass
    if _INDEX in work.files:
        weight_map = {one.name: shard for shard, header in work.headers.items() for one in work.planned(header)}
        index: dict[str, Any] = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (draft.folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")
    carry_over(work.files, draft, but=[*work.headers, _INDEX, "config.json"])


def _write_shard(work: _Rewrite, path: Path, header: Header, tally: Tally) -> None:
    planned = work.planned(header)
    head = header_bytes(planned, header.metadata)
    source = os.open(header.path, os.O_RDONLY | os.O_CLOEXEC)
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(target, head, 0)
        position = len(head)
        for tensor in header.tensors:
            if tensor.name in work.left_out:
                continue
            if tensor.name not in work.new:
                copy_range(source, tensor.start, target, position, tensor.size_bytes)
                position += tensor.size_bytes
                tally.add(tensor.size_bytes)
                continue
            for data in work.new[tensor.name][1](source, tensor):
                position += os.pwrite(target, data, position)
                tally.add(len(data))
    finally:
        os.close(source)
        os.close(target)
    written = [(one.name, one.dtype, one.shape) for one in read_header(path).tensors if prod(one.shape)]
    if written != [(one.name, one.dtype, one.shape) for one in planned if prod(one.shape)]:
        raise WeightError(f"{path.name} did not come out as planned", hint="please report this")


def _loss_notes(losses: Mapping[str, Losses]) -> tuple[str, ...]:
    """A line in all, and one for each of the worst tensors."""
    total = Losses(
        overflow=sum(one.overflow for one in losses.values()),
        underflow=sum(one.underflow for one in losses.values()),
        subnormal=sum(one.subnormal for one in losses.values()),
        largest=max((one.largest for one in losses.values()), default=0.0),
    )
    worst = sorted(losses, key=lambda name: (losses[name].overflow, losses[name].underflow), reverse=True)[:10]
    return (
        f"{total.overflow} values too large for float16, {total.underflow} rounded to zero, "
        f"{total.subnormal} kept with fewer digits; the largest is {total.largest:.6g}",
        *(
            f"{name}: {losses[name].overflow} too large, {losses[name].underflow} rounded to zero"
            for name in worst
            if losses[name].overflow or losses[name].underflow
        ),
    )
