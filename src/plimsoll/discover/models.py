"""Model facts by reference: what lies on this machine first, then the catalogue, then a hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from plimsoll.discover.hub_ref import HubRef, is_offline, parse_hub_ref
from plimsoll.discover.local import read_model
from plimsoll.errors import FactError
from plimsoll.facts import catalogue
from plimsoll.facts.model import ModelFacts


def find_model(
    ref: str, *, path: Path | None = None, form: str | None = None, environ: Mapping[str, str] = os.environ
) -> ModelFacts:
    """Facts of the model `ref`; FactError where they cannot be learnt.

    `ref`: a path, a name of the catalogue, or a hub id (`ORG/NAME@REVISION`, `ORG/NAME:Q4_K_M`, `ORG/NAME/FILE.gguf`,
    `hf:` or `ms:` in front). `path`: where its files lie, when they are here already.
    `form`: how the weights are stored, where the name does not say (`awq`, `fp8`, `gguf-Q4_K_M`).
    A revision that is named is looked up on its hub; all else that the catalogue knows needs no network.
    """
    if path is not None:
        return read_model(path, id=ref)
    local = Path(ref).expanduser()
    if local.exists() or ref.startswith(("/", "./", "../", "~")):
        if not local.exists() and catalogue.find(ref, form=form) is not None:
            return catalogue.model(ref, form=form)
        return read_model(local, id=ref)
    hub_ref = parse_hub_ref(ref)
    if hub_ref is None or hub_ref.revision in (None, "main", "master"):
        name = _name(ref, hub_ref)
        if catalogue.find(name, form=form) is not None:
            return catalogue.model(name, form=form)
    if hub_ref is None:
        return catalogue.model(ref, form=form)
    if is_offline(environ):
        raise FactError(
            f"{ref} is neither on this machine nor in the catalogue, and HF_HUB_OFFLINE forbids the network",
            hint="Name a local directory or file, or unset HF_HUB_OFFLINE.",
            source=ref,
        )
    # httpx takes a tenth of a second to import, which a plan without network need not pay.
    from plimsoll.discover.hub import Hub

    with Hub.resolve(environ, kind=hub_ref.kind) as hub:
        return hub.read_model(hub_ref)


def _name(ref: str, hub_ref: HubRef | None) -> str:
    """What the catalogue is asked for: the reference without what only says where to look."""
    if hub_ref is None:
        return ref.removeprefix("ollama:")
    return hub_ref.file or (f"{hub_ref.id}:{hub_ref.quant}" if hub_ref.quant else hub_ref.id)
