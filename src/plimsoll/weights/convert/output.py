"""The new directory of a conversion: made beside its place, checked, recorded, and only then given its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import plimsoll
from plimsoll.errors import WeightError
from plimsoll.units import MIB
from plimsoll.weights.disk import check_disk
from plimsoll.weights.lock import locked

_LINKED_BYTES = 64 * MIB
RECORD = "plimsoll-conversion.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One change that was made to a model, as recorded beside it: what, how much, and what is worth knowing."""

    what: str
    tensors: int = 0
    bytes: int = 0
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Draft:
    """A directory that is being written; `steps` is what will be recorded."""

    folder: Path
    steps: list[Step] = field(default_factory=list)


@contextmanager
def new_directory(target: Path, *, source: Path) -> Iterator[Draft]:
    """A draft that becomes `target` if the body ends well and is gone if it does not. WeightError if `target` exists.

    The steps of `source`, if it is a conversion itself, stay on record before the new ones.
    """
    with locked(target.with_name(f".{target.name}.lock")):
        if target.exists():
            raise WeightError(f"{target} exists", hint="nothing is overwritten: remove it or choose another place")
        folder = target.with_name(f".{target.name}.partial")
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed; its lock is ours now
        folder.mkdir(parents=True)
        draft = Draft(folder)
        try:
            yield draft
            record = {
                "plimsoll": plimsoll.__version__,
                "source": str(source),
                "steps": [*read_steps(source), *(asdict(step) for step in draft.steps)],
            }
            (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
            folder.replace(target)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise WeightError(f"cannot write {target}: {error.strerror or error}", hint="check the disk") from None
            raise


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A path to write to that becomes `target` if the body ends well and is gone if not. WeightError if it exists."""
    with locked(target.with_name(f".{target.name}.lock")):
        if target.exists():
            raise WeightError(f"{target} exists", hint="nothing is overwritten: remove it or choose another place")
        fresh = target.with_name(f".{target.name}.partial")
        fresh.unlink(missing_ok=True)
        try:
            yield fresh
            fresh.replace(target)
        except OSError as error:
            raise WeightError(f"cannot write {target}: {error.strerror or error}", hint="check the disk") from None
        finally:
            fresh.unlink(missing_ok=True)


def read_steps(folder: Path) -> list[Mapping[str, object]]:
    """The recorded steps of a converted model; none for one that was not converted."""
    try:
        steps = json.loads((folder / RECORD).read_text())["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [step for step in steps if isinstance(step, dict)]


def carry_over(files: Mapping[str, Path], draft: Draft, *, but: Sequence[str]) -> None:
    """Bring the files that stay as they are into the draft: large ones as hard links, small ones as copies.

    A small file may be edited later, and then the source must not change with it.
    """
    for name, place in files.items():
        if name in but or name == RECORD:
            continue
        path = draft.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if place.stat().st_size > _LINKED_BYTES:
            try:
                path.hardlink_to(place)
                continue
            except OSError:
                check_disk(draft.folder, place.stat().st_size)
        shutil.copyfile(place, path)
