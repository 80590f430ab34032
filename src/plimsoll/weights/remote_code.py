"""Code that a model brings along and asks an engine to run: listed, hashed, and only trusted as it was seen.

Engines run it with `trust_remote_code`. Plimsoll never does; it shows what would run, records the hash of what was
accepted, and asks again when a file changed. Chat templates are code of a smaller kind: Plimsoll renders none, the
engines do so in their own sandboxes; they count here, so that a changed template is seen too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plimsoll.errors import WeightError
from plimsoll.weights.lock import locked
from plimsoll.weights.tree import model_files

_CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
_LIMIT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeFile:
    """A file of code in a model."""

    path: str
    sha256: str
    lines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteCode:
    """What a model would have run: `entries` are the names in auto_map, `elsewhere` other repositories they load."""

    files: tuple[CodeFile, ...]
    entries: tuple[str, ...]
    elsewhere: tuple[str, ...]
    digest: str
    """Of all of it: the same digest is the same code."""


def remote_code(model: Path) -> RemoteCode | None:
    """The code that `model` brings along, if its configuration asks for any; None if it needs none."""
    files = model_files(model)
    entries = sorted({entry for name in _CONFIGS if name in files for entry in _auto_map(files[name])})
    if not entries:
        return None
    code = tuple(
        CodeFile(path=name, sha256=hashlib.sha256(data).hexdigest(), lines=data.count(b"\n") + 1)
        for name, place in files.items()
        if name.endswith((".py", ".jinja", ".so"))
        for data in [_read(name, place)]
    )
    elsewhere = sorted({entry.partition("--")[0] for entry in entries if "--" in entry})
    seen = json.dumps([entries, [[file.path, file.sha256] for file in code]])
    return RemoteCode(
        files=code,
        entries=tuple(entries),
        elsewhere=tuple(elsewhere),
        digest=hashlib.sha256(seen.encode()).hexdigest(),
    )


def check_remote_code(name: str, code: RemoteCode, *, store: Path) -> None:
    """WeightError unless exactly this code was accepted for `name`; it lists what would run, or what changed."""
    accepted = _accepted(store).get(name)
    if accepted is not None and accepted.get("digest") == code.digest:
        return
    before = accepted.get("files", {}) if accepted else {}
    changed = [file.path for file in code.files if before.get(file.path) != file.sha256]
    what = "changed since it was accepted" if accepted else "would be run by the engine"
    listed = ", ".join(f"{file.path} ({file.lines} lines)" for file in code.files if file.path in changed)
    other = f"; it loads code from {', '.join(code.elsewhere)} too, unseen" if code.elsewhere else ""
    raise WeightError(
        f"{name} brings code that {what}: {listed or ', '.join(code.entries)}{other}",
        hint="read it, then accept it as it is now with --accept-code",
        source=code.digest,
    )


def accept_remote_code(name: str, code: RemoteCode, *, store: Path) -> None:
    """Note that this code of `name` may run."""
    with locked(store / ".locks" / "accepted-code.lock"):
        table = {
            **_accepted(store),
            name: {"digest": code.digest, "files": {file.path: file.sha256 for file in code.files}},
        }
        path = store / "accepted-code.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(table, indent=1) + "\n")
        fresh.replace(path)


def _accepted(store: Path) -> Mapping[str, Any]:
    try:
        table = json.loads((store / "accepted-code.json").read_text())
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def _auto_map(path: Path) -> list[str]:
    try:
        config = json.loads(path.read_bytes()[:_LIMIT_BYTES])
    except (OSError, ValueError, RecursionError):
        return []
    table = config.get("auto_map") if isinstance(config, dict) else None
    values = table.values() if isinstance(table, dict) else []
    flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
    return [value[:200] for value in flat if isinstance(value, str)]


def _read(name: str, place: Path) -> bytes:
    with place.open("rb") as file:
        data = file.read(_LIMIT_BYTES + 1)
    if len(data) > _LIMIT_BYTES:
        raise WeightError(f"{name} is code of more than {_LIMIT_BYTES >> 20} MiB", hint="do not trust this model")
    return data
