"""Changes to config.json, made on purpose and on record: never silently, never in place."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plimsoll.errors import WeightError
from plimsoll.weights.convert.output import Draft, Step, carry_over, new_directory
from plimsoll.weights.tree import model_files

_INNER = ("text_config", "language_config", "llm_config", "thinker_config")


def patch_config(
    source: Path, target: Path, *, changes: Mapping[str, Any] | None = None, drop: Sequence[str] = ()
) -> Step:
    """Write the model `source` to `target` with keys of config.json set to `changes` or dropped; weights are linked."""
    files = model_files(source)
    with new_directory(target, source=source) as draft:
        notes = patched_config(files, draft, changes=dict(changes or {}), drop=drop, add=True)
        carry_over(files, draft, but=["config.json"])
        step = Step(what="config.json changed", notes=notes)
        draft.steps.append(step)
    return step


def patched_config(
    files: Mapping[str, Path], draft: Draft, *, changes: Mapping[str, Any], drop: Sequence[str] = (), add: bool = False
) -> tuple[str, ...]:
    """Write the changed config.json into the draft; each change as a note.

    Inner configs (`text_config` ...) are changed too where they have the key. A key that is nowhere is only set if
    `add`.
    """
    try:
        config = json.loads(files["config.json"].read_bytes())
    except KeyError:
        raise WeightError("there is no config.json to change", hint="is it a model directory?") from None
    except (ValueError, RecursionError) as error:
        raise WeightError(f"config.json is not JSON: {str(error)[:100]}", hint="fetch it again") from None
    if not isinstance(config, dict):
        raise WeightError("config.json is not a table", hint="fetch it again")
    notes: list[str] = []
    places = [("", config), *((f"{name}.", config[name]) for name in _INNER if isinstance(config.get(name), dict))]
    for prefix, table in places:
        for key in drop:
            if key in table:
                notes.append(f"config.json: {prefix}{key} dropped, was {_short(table.pop(key))}")
        for key, value in changes.items():
            if (key in table or (add and not prefix)) and table.get(key) != value:
                notes.append(f"config.json: {prefix}{key} set to {_short(value)}, was {_short(table.get(key))}")
                table[key] = value
    (draft.folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return tuple(notes)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
