"""References to models on hubs, as people write them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["huggingface", "modelscope"]

PREFIXES: dict[str, Kind] = {
    "hf": "huggingface", "huggingface": "huggingface", "ms": "modelscope", "modelscope": "modelscope",
}  # fmt: skip
_PAGE = re.compile(
    r"https?://(?:www\.)?(?P<host>huggingface\.co|hf\.co|hf-mirror\.com|modelscope\.(?:cn|ai))/(?:models/)?"
    r"(?P<id>[^/?#]+/[^/?#]+)(?:/(?:blob|resolve|tree|file/view)/(?P<revision>[^/?#]+)(?:/(?P<file>[^?#]+))?)?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubRef:
    """A model on a hub: `ORG/NAME`, and the revision, GGUF type or file that the reference asks for."""

    id: str
    kind: Kind | None = None
    revision: str | None = None
    quant: str | None = None
    file: str | None = None


def parse_hub_ref(ref: str) -> HubRef | None:
    """A reference such as `hf:Qwen/Qwen3-8B@main`, `ORG/NAME:Q4_K_M`, `ORG/NAME/FILE.gguf`, or a page's address.

    None if it is no such.
    """
    if page := _PAGE.match(ref):
        place: Kind = "modelscope" if page["host"].startswith("modelscope") else "huggingface"
        return HubRef(id=page["id"], kind=place, revision=page["revision"], file=page["file"])
    prefix, colon, rest = ref.partition(":")
    kind = PREFIXES.get(prefix.lower()) if colon else None
    text = rest if kind else ref
    text, _, revision = text.partition("@")
    text, _, quant = text.partition(":")
    parts = text.split("/")
    if len(parts) < 2 or not all(part and part not in (".", "..") for part in parts):
        return None
    file = "/".join(parts[2:]) or None
    return HubRef(id="/".join(parts[:2]), kind=kind, revision=revision or None, quant=quant or None, file=file)


def is_offline(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the user forbids the network to hub tools (HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE)."""
    return truthy(environ.get("HF_HUB_OFFLINE")) or truthy(environ.get("TRANSFORMERS_OFFLINE"))


def truthy(value: str | None) -> bool:
    """Whether an environment variable says yes."""
    return (value or "").lower() in ("1", "true", "yes", "on")
