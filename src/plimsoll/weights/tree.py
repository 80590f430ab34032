"""The files of a model directory, which may be hostile: no link may lead out of it."""

from __future__ import annotations

import os
from pathlib import Path

from plimsoll.errors import WeightError

_MAX_FILES = 100_000


def model_files(folder: Path) -> dict[str, Path]:
    """Every file below `folder` by its relative name, with the place of its bytes; hidden ones are left out.

    A link may lead to another place of the folder or to the blobs of the hub cache it lies in, nowhere else:
    WeightError, so that a model can never hand out a file of this machine.
    """
    if not folder.is_dir():
        raise WeightError(f"{folder} is not a model directory", hint="name the directory with config.json")
    top = folder.resolve()
    allowed = [top]
    if top.parent.name == "snapshots":
        allowed.append(top.parent.parent / "blobs")
        allowed.append(top.parent.parent.parent / "blobs")  # huggingface_hub >= 2.4 shares blobs between models
    found: dict[str, Path] = {}
    for root, folders, names in os.walk(top):
        folders[:] = [name for name in folders if not name.startswith(".") and not (Path(root) / name).is_symlink()]
        for name in names:
            if name.startswith("."):
                continue
            path = Path(root) / name
            place = path.resolve()
            if not any(place.is_relative_to(root) for root in allowed):
                raise WeightError(
                    f"{path.relative_to(top)} links to {place}, outside the model",
                    hint="remove the link, or copy the file into the model yourself if you trust it",
                    source=str(folder),
                )
            if place.is_file():
                found[path.relative_to(top).as_posix()] = place
            if len(found) > _MAX_FILES:
                raise WeightError(f"{folder} holds more than {_MAX_FILES} files: not a model", source=str(folder))
    return dict(sorted(found.items()))
