"""Ollama's registry: a model is a manifest of layers, each fetched by its SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from http.client import HTTPMessage

from plimsoll.errors import WeightError
from plimsoll.weights.http import Session
from plimsoll.weights.json_api import get_bytes
from plimsoll.weights.sources import Listing, Ref, RemoteFile
from plimsoll.weights.types import Expected

_ACCEPT = "application/vnd.docker.distribution.manifest.v2+json"
_NAMES = {
    "model": "model.gguf", "projector": "mmproj.gguf", "adapter": "adapter.gguf", "template": "template",
    "params": "params.json", "system": "system", "license": "LICENSE", "messages": "messages.json",
}  # fmt: skip


def endpoint(environ: Mapping[str, str] = os.environ) -> str:
    """The registry's address: OLLAMA_REGISTRY, else registry.ollama.ai."""
    return (environ.get("OLLAMA_REGISTRY") or "https://registry.ollama.ai").rstrip("/")


def list_files(ref: Ref, session: Session, *, environ: Mapping[str, str] = os.environ) -> Listing:
    """The layers of the model under plain names (`model.gguf`, `template`); the revision is the manifest's hash."""
    base, tag = endpoint(environ), ref.revision or "latest"
    url = f"{base}/v2/{ref.id}/manifests/{tag}"

    def refused(status: int, _: HTTPMessage) -> WeightError | None:
        if status not in (400, 401, 404):
            return None
        name = ref.id.removeprefix("library/")
        return WeightError(f"{base} has no {name}:{tag}", hint="check the name and the tag on ollama.com", source=url)

    body = get_bytes(url, session, headers={"Accept": _ACCEPT}, refused=refused)
    try:
        layers = json.loads(body)["layers"]
        files: dict[str, RemoteFile] = {}
        for layer in layers:
            kind = str(layer["mediaType"]).rpartition(".")[2]
            digest = re.fullmatch(r"sha256:([0-9a-f]{64})", layer["digest"])
            if kind not in _NAMES or digest is None or _NAMES[kind] in files:
                continue
            files[_NAMES[kind]] = RemoteFile(
                path=_NAMES[kind],
                urls=(f"{base}/v2/{ref.id}/blobs/{layer['digest']}",),
                expected=Expected(size_bytes=int(layer["size"]), sha256=digest[1]),
            )
    except (ValueError, KeyError, TypeError):
        raise WeightError(f"{url} is not an Ollama manifest", hint="check OLLAMA_REGISTRY", source=url) from None
    if "model.gguf" not in files:
        raise WeightError(f"{ref.id}:{tag} has no model layer", hint="choose another tag", source=url)
    return Listing(revision=hashlib.sha256(body).hexdigest()[:40], files=tuple(files.values()), branch=tag)
