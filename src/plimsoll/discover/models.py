"""Model facts from what lies on a disk: a GGUF file (also a split one) or a directory as downloaded from a hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plimsoll.errors import FactError
from plimsoll.facts.gguf import GgufHeader, ReadAt, read_gguf
from plimsoll.facts.gguf_facts import model_facts
from plimsoll.facts.model import ModelFacts

_PART = re.compile(r"^(?P<stem>.*)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf$")


def find_model(ref: str, *, path: Path | None = None) -> ModelFacts:
    """Facts of the model `ref`; FactError where they cannot be learnt.

    `ref`: a path, or any id when `path` says where its files lie.
    """
    return read_model(path if path is not None else Path(ref).expanduser(), id=ref)


def read_model(path: Path, *, id: str) -> ModelFacts:
    """Facts of a .gguf file, or of a directory that holds one."""
    if path.is_dir():
        return read_gguf_files(_first_gguf(path), id=id)
    if not path.is_file():
        raise FactError(f"{path} does not exist", hint="Name a .gguf file, a model directory or a hub id.", source=id)
    return read_gguf_files(path, id=id)


def read_gguf_files(path: Path, *, id: str) -> ModelFacts:
    """Facts of a GGUF file and, when it is the first of several, of all its parts."""
    headers = tuple(_read_header(part) for part in gguf_parts(path))
    return model_facts(headers, id=id, source=str(path))


def gguf_parts(path: Path) -> tuple[Path, ...]:
    """All files of a split GGUF, whichever one is named; the file itself when it is whole."""
    match = _PART.match(path.name)
    if match is None:
        return (path,)
    count = int(match["parts"])
    names = [path.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    missing = [name.name for name in names if not name.is_file()]
    if missing:
        raise FactError(
            f"{path.name} is one of {count} parts; {len(missing)} are missing, first {missing[0]}",
            hint="Fetch the missing parts into the same directory.",
            source=str(path.parent),
        )
    return tuple(names)


def _first_gguf(directory: Path) -> Path:
    files = sorted(file for file in directory.glob("*.gguf") if not file.name.startswith("mmproj"))
    firsts = [file for file in files if (match := _PART.match(file.name)) is None or int(match["part"]) == 1]
    if not firsts:
        raise FactError(f"{directory} holds no model", hint="A .gguf file is needed.", source=str(directory))
    if len(firsts) > 1:
        names = ", ".join(file.name for file in firsts[:5])
        raise FactError(
            f"{directory} holds {len(firsts)} models: {names}", hint="Name one of the files.", source=str(directory)
        )
    return firsts[0]


def _read_header(path: Path) -> GgufHeader:
    with open_ranges(path) as (read, size):
        return read_gguf(read, size, name=path.name)


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
