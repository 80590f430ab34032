"""Coverage-guided fuzzing of every reader of foreign bytes; needs atheris, which is no dependency of the tests.

Whatever the bytes, a reader may only return or raise its own error; more than 64 MiB beyond the start, or more than
10 s for one input, is a failure. The first word is one of TARGETS, the rest are options of libFuzzer.

    python tests/weights/fuzz_headers.py gguf -max_total_time=600 -max_len=65536
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports():
    from plimsoll.errors import PlimsollError
    from plimsoll.facts.gguf import read_gguf
    from plimsoll.facts.safetensors import read_index, read_safetensors
    from plimsoll.weights.convert.pickle_machine import PickleMachine
    from plimsoll.weights.convert.safetensors_file import read_header
    from plimsoll.weights.convert.torch_file import read_checkpoint

_ALLOWED_BYTES = 64 << 20
_PLACE = Path(tempfile.mkdtemp()) / "input.bin"


def _gguf(data: bytes) -> None:
    # A claimed size beyond the bytes that are there: how a header is read over HTTP ranges.
    read_gguf(lambda offset, length: data[offset : offset + length], max(len(data), 1 << 40))


def _safetensors(data: bytes) -> None:
    read_safetensors(lambda offset, length: data[offset : offset + length], max(len(data), 1 << 40))


def _on_disk(reader: Callable[[Path], object]) -> Callable[[bytes], None]:
    def target(data: bytes) -> None:
        _PLACE.write_bytes(data)
        reader(_PLACE)

    return target


TARGETS: dict[str, Callable[[bytes], object]] = {
    "gguf": _gguf,
    "safetensors": _safetensors,
    "index": read_index,
    "safetensors_file": _on_disk(read_header),
    "torch_file": _on_disk(read_checkpoint),
    "pickle": lambda data: PickleMachine(data, name="fuzz").run(),
}


def main() -> None:
    """Run libFuzzer on the named target."""
    target = TARGETS[sys.argv.pop(1)]
    start = _peak_bytes()

    def one(data: bytes) -> None:
        with suppress(PlimsollError):
            target(data)
        if _peak_bytes() - start > _ALLOWED_BYTES + (128 << 20):  # libFuzzer's own tables grow too
            raise MemoryError(f"peak memory {(_peak_bytes() - start) >> 20} MiB above the start")

    atheris.Setup([*sys.argv, "-timeout=10", f"-rss_limit_mb={(start >> 20) + 512}"], one)
    atheris.Fuzz()


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    main()
