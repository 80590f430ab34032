"""Model facts from what lies on a disk: a GGUF file (also a split one) or a directory as downloaded from a hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from plimsoll.errors import FactError
from plimsoll.facts.config import facts_from_config
from plimsoll.facts.gguf import GgufHeader, ReadAt, read_gguf
from plimsoll.facts.gguf_facts import model_facts
from plimsoll.facts.model import ModelFacts
from plimsoll.facts.safetensors import SafetensorsHeader, read_index, read_safetensors
from plimsoll.units import MIB

MAX_JSON_BYTES = 32 * MIB  # the largest index, of a model with 90,000 tensors, takes 9 MB

_PART = re.compile(r"^(?P<stem>.*)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf$")
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "consolidated*.pth")


def read_model(path: Path, *, id: str) -> ModelFacts:
    """Facts of a .gguf file, or of a directory with a config.json or a .gguf file; FactError where it has neither."""
    if path.is_dir():
        if (path / "config.json").is_file():
            return read_directory(path, id=id)
        if (path / "adapter_config.json").is_file():
            base = _read_json(path / "adapter_config.json").get("base_model_name_or_path")
            raise FactError(
                f"{path} holds an adapter, not a model",
                hint=f"Name the model that it was made for{f': {base}' if isinstance(base, str) else ''}.",
                source=str(path),
            )
        return read_gguf_files(_first_gguf(path), id=id)
    if not path.is_file():
        raise FactError(f"{path} does not exist", hint="Name a .gguf file, a model directory or a hub id.", source=id)
    if path.suffix != ".gguf" and (path.parent / "config.json").is_file():
        return read_directory(path.parent, id=id)
    return read_gguf_files(path, id=id)


def read_directory(path: Path, *, id: str) -> ModelFacts:
    """Facts of a directory in the Hugging Face layout: config.json, and the headers of its safetensors files."""
    config = _read_json(path / "config.json")
    quantization = path / "hf_quant_config.json"
    headers = tuple(_read_header_of(file) for file in _safetensors(path))
    model = facts_from_config(
        config,
        id=id,
        source=str(path),
        quantization=_read_json(quantization) if quantization.is_file() else None,
        headers=headers,
        chat_template=_chat_template(path),
    )
    if headers:
        return model
    pickles = tuple((file.name, file.stat().st_size) for pattern in _PICKLES for file in sorted(path.glob(pattern)))
    return replace(model, format="pytorch", files=pickles) if pickles else model


def read_gguf_files(path: Path, *, id: str) -> ModelFacts:
    """Facts of a GGUF file and, when it is one of several, of all its parts."""
    headers = tuple(_read_gguf_header(part) for part in gguf_parts(path))
    return model_facts(headers, id=id, source=str(path))


def gguf_parts(path: Path) -> tuple[Path, ...]:
    """All files of a split GGUF, whichever one is named; the file itself when it is whole."""
    names = part_names(path.name)
    missing = [name for name in names if not path.with_name(name).is_file()]
    if missing:
        raise FactError(
            f"{path.name} is one of {len(names)} parts; {len(missing)} are missing, first {missing[0]}",
            hint="Fetch the missing parts into the same directory.",
            source=str(path.parent),
        )
    return tuple(path.with_name(name) for name in names)


def part_names(name: str) -> tuple[str, ...]:
    """The names of all parts of a split GGUF; the name itself when it is not one of several."""
    match = _PART.match(name)
    if match is None:
        return (name,)
    count = int(match["parts"])
    return tuple(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1))


def first_parts(names: Sequence[str]) -> tuple[str, ...]:
    """The names of whole models among GGUF files: whole ones, and first parts; not the files of vision towers."""
    return tuple(
        name
        for name in sorted(names)
        if not name.rsplit("/", 1)[-1].startswith("mmproj")
        and ((match := _PART.match(name)) is None or int(match["part"]) == 1)
    )


def _first_gguf(directory: Path) -> Path:
    firsts = first_parts([file.name for file in directory.glob("*.gguf")])
    if not firsts:
        raise FactError(
            f"{directory} holds no model", hint="A config.json or a .gguf file is needed.", source=str(directory)
        )
    if len(firsts) > 1:
        raise FactError(
            f"{directory} holds {len(firsts)} models: {', '.join(firsts[:5])}",
            hint="Name one of the files.",
            source=str(directory),
        )
    return directory / firsts[0]


def _safetensors(path: Path) -> tuple[Path, ...]:
    """The files that the index names, else all there are; FactError where one is missing."""
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return tuple(sorted(path.glob("*.safetensors")))
    names, _ = read_index(_read_bytes(index), name=str(index))
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise FactError(
            f"{path} lacks {len(missing)} of {len(names)} weight files, first {missing[0]}",
            hint="Fetch the model again; files that are there already are not fetched twice.",
            source=str(index),
        )
    return tuple(path / name for name in names)


def _chat_template(path: Path) -> bool | None:
    """Whether the tokenizer has a chat template; None where there is no tokenizer."""
    if (path / "chat_template.jinja").is_file() or (path / "chat_template.json").is_file():
        return True
    tokenizer = path / "tokenizer_config.json"
    return bool(_read_json(tokenizer).get("chat_template")) if tokenizer.is_file() else None


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        value = orjson.loads(_read_bytes(path))
    except orjson.JSONDecodeError as error:
        raise FactError(f"{path} is not JSON: {error}", hint="Fetch it again.", source=str(path)) from error
    if not isinstance(value, dict):
        raise FactError(f"{path} does not hold an object", hint="Fetch it again.", source=str(path))
    return value


def _read_bytes(path: Path) -> bytes:
    with open_ranges(path) as (read, size):
        if size > MAX_JSON_BYTES:
            raise FactError(f"{path} has {size} bytes; such a file is never so large", source=str(path))
        return read(0, size)


def _read_gguf_header(path: Path) -> GgufHeader:
    with open_ranges(path) as (read, size):
        return read_gguf(read, size, name=path.name)


def _read_header_of(path: Path) -> SafetensorsHeader:
    with open_ranges(path) as (read, size):
        return read_safetensors(read, size, name=path.name)


@contextmanager
def open_ranges(path: Path) -> Iterator[tuple[ReadAt, int]]:
    """A file as `read(offset, length)` and its size in bytes; FactError where it cannot be read."""
    try:
        number = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise FactError(f"{path} cannot be read: {error.strerror}", source=str(path)) from error
    try:
        yield (lambda offset, length: os.pread(number, length, offset)), os.fstat(number).st_size
    finally:
        os.close(number)
