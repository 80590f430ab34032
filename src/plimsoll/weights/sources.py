"""Where a model can come from, and what a source says it has."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from plimsoll.errors import WeightError
from plimsoll.weights.types import Expected

Kind = Literal["path", "huggingface", "modelscope", "ollama", "pypi", "url"]

_PREFIXES: dict[str, Kind] = {
    "hf": "huggingface", "huggingface": "huggingface", "ms": "modelscope", "modelscope": "modelscope",
    "ollama": "ollama",
}  # fmt: skip
_HOSTS: dict[str, Kind] = {
    "huggingface.co": "huggingface", "hf.co": "huggingface", "hf-mirror.com": "huggingface",
    "modelscope.cn": "modelscope", "www.modelscope.cn": "modelscope", "modelscope.ai": "modelscope",
    "www.modelscope.ai": "modelscope", "ollama.com": "ollama", "registry.ollama.ai": "ollama",
}  # fmt: skip
_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
_GGUF_SPLIT = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ref:
    """A reference in parts: `id` on its source, the wanted `file` or GGUF `quant` there, and the `revision`."""

    kind: Kind
    id: str
    revision: str | None = None
    file: str | None = None
    quant: str | None = None

    @property
    def folder(self) -> tuple[str, ...]:
        """The names of its folder in a store; the two hubs share one, so that a fetch can go on from the other."""
        return (self.id,) if self.kind in ("huggingface", "modelscope") else (self.kind, *self.id.split("/"))


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file that a source offers: where, and what it says of it."""

    path: str
    urls: tuple[str, ...]
    expected: Expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Everything that a source has of one revision; `branch` is the name it was asked for by."""

    revision: str
    files: tuple[RemoteFile, ...]
    branch: str | None = None


def parse_ref(ref: str, *, environ: Mapping[str, str] = os.environ) -> Ref:
    """What `ref` names; WeightError if it is nothing that weights can come from.

    A path that exists; `ORG/NAME`, `ORG/NAME@REVISION`, `ORG/NAME:Q4_K_M`, `ORG/NAME/FILE` on a hub (`hf:` or `ms:`
    in front chooses it, else VLLM_USE_MODELSCOPE does); the page or file addresses of the hubs; `ollama:NAME:TAG`;
    `pypi:PACKAGE==VERSION/FILE`; any other http(s) address of a file.
    """
    path = Path(ref).expanduser()
    if ref.startswith("pypi:"):
        return Ref(kind="pypi", id=ref)
    if ref.startswith(("/", "./", "../", "~")) or (ref and path.exists()):
        return Ref(kind="path", id=str(path))
    if re.match(r"https?://", ref):
        return _parse_url(ref)
    prefix, colon, rest = ref.partition(":")
    kind = _PREFIXES.get(prefix.lower()) if colon else None
    if kind is None:
        truthy = environ.get("VLLM_USE_MODELSCOPE", "").lower() in ("1", "true", "yes")
        kind, rest = ("modelscope" if truthy else "huggingface"), ref
    return _parse_ollama(rest) if kind == "ollama" else _parse_id(kind, rest)


def _parse_id(kind: Kind, text: str) -> Ref:
    text, _, revision = text.partition("@")
    text, _, quant = text.partition(":")
    parts = text.split("/")
    id, file = "/".join(parts[:2]), "/".join(parts[2:])
    if not _ID.fullmatch(id) or ".." in parts:
        raise WeightError(
            f"{text!r} is neither a path that exists nor the name of a model",
            hint="a hub id looks like Qwen/Qwen2.5-7B-Instruct; a path starts with / or ./",
        )
    return Ref(kind=kind, id=id, revision=revision or None, file=file or None, quant=quant or None)


def _parse_ollama(text: str) -> Ref:
    name, _, tag = text.partition(":")
    id = name if "/" in name else f"library/{name}"
    if not _ID.fullmatch(id):
        raise WeightError(f"{text!r} is not a model of Ollama's registry", hint="it looks like ollama:smollm2:135m")
    return Ref(kind="ollama", id=id, revision=tag or "latest")


def _parse_url(url: str) -> Ref:
    parts = urlsplit(url)
    kind = _HOSTS.get(str(parts.hostname))
    names = [unquote(name) for name in parts.path.split("/") if name]
    if kind == "ollama":
        return _parse_ollama("/".join(names[-2:] if names[0] != "library" else names[1:]))
    if kind is None:
        return Ref(kind="url", id=url)
    if kind == "modelscope" and names[:1] == ["models"]:
        names = names[1:]
    if len(names) < 2:
        raise WeightError(f"{url} names no model", hint="a model's page ends in ORG/NAME")
    id, rest = "/".join(names[:2]), names[2:]
    if rest[:1] and rest[0] in ("resolve", "blob", "tree", "file"):
        rest = rest[1:]
        if rest[:1] == ["view"]:  # modelscope.cn/models/ORG/NAME/file/view/REVISION/FILE
            rest = rest[1:]
        revision, file = (rest[0] if rest else None), "/".join(rest[1:])
        return Ref(kind=kind, id=id, revision=revision, file=file or None)
    return Ref(kind=kind, id=id)


def split_parts(name: str) -> tuple[str, ...]:
    """All names of a split GGUF, whichever one is given; the name itself if it is not split."""
    match = _GGUF_SPLIT.search(name)
    if match is None:
        return (name,)
    stem, count = name[: match.start()], int(match[1])
    if not 0 < count <= 9999:
        raise WeightError(f"{name} claims to be one of {count} parts", hint="do not trust this source")
    return tuple(f"{stem}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1))
