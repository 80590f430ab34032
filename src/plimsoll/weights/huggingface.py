"""Hugging Face, its mirrors, and whatever speaks its API: what a repository holds, and where to get it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from http.client import HTTPMessage
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from plimsoll.errors import WeightError
from plimsoll.weights.http import Session
from plimsoll.weights.json_api import get_json
from plimsoll.weights.sources import Listing, Ref, RemoteFile
from plimsoll.weights.store import checked_path, checked_revision
from plimsoll.weights.types import Expected


def endpoint(environ: Mapping[str, str] = os.environ) -> str:
    """The hub's address: HF_ENDPOINT, else huggingface.co."""
    return (environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def token(environ: Mapping[str, str] = os.environ) -> str | None:
    """The user's token as the hub's own tools find it: a variable, else the file of `hf auth login`."""
    if environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").lower() in ("1", "true", "yes", "on"):
        return None
    named = environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN")
    if named:
        return named.strip()
    path = Path(environ.get("HF_TOKEN_PATH") or hub_home(environ) / "token")
    try:
        return path.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def hub_home(environ: Mapping[str, str] = os.environ) -> Path:
    """HF_HOME, or where it is when it is not set."""
    cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(environ.get("HF_HOME") or f"{cache}/huggingface").expanduser()


def list_files(ref: Ref, session: Session, *, environ: Mapping[str, str] = os.environ) -> Listing:
    """What the repository holds at `ref.revision` (main if it names none), with the checksums the hub gives."""
    base, branch = endpoint(environ), ref.revision or "main"
    mine = token(environ)
    if mine:
        session.bearer = {**session.bearer, str(urlsplit(base).hostname): mine}
    url = f"{base}/api/models/{ref.id}/revision/{quote(branch, safe='')}?blobs=true"

    def refused(status: int, headers: HTTPMessage) -> WeightError | None:
        return _refused(ref, branch, base, status, headers.get("X-Error-Code", ""), has_token=mine is not None)

    answer = get_json(url, session, refused=refused)
    try:
        commit = checked_revision(answer["sha"])
        files = tuple(_file(entry, base, ref.id, commit) for entry in answer["siblings"])
    except (KeyError, TypeError, AttributeError):
        raise WeightError(
            f"{base} answers, but not as a model hub does", hint="check HF_ENDPOINT", source=url
        ) from None
    return Listing(revision=commit, files=files, branch=None if branch == commit else branch)


def _file(entry: dict[str, Any], base: str, id: str, commit: str) -> RemoteFile:
    path = checked_path(entry["rfilename"])
    large = entry.get("lfs") or {}
    sha256 = large.get("sha256") or large.get("oid")
    return RemoteFile(
        path=path,
        urls=(f"{base}/{id}/resolve/{commit}/{quote(path)}",),
        expected=Expected(
            size_bytes=large.get("size", entry.get("size")),
            sha256=sha256,
            git_sha1=None if sha256 else entry.get("blobId"),
        ),
    )


def _refused(ref: Ref, branch: str, base: str, status: int, code: str, *, has_token: bool) -> WeightError | None:
    page = f"{base}/{ref.id}"
    if code == "GatedRepo":
        do = "ask for access there with the account of your token" if has_token else "then set HF_TOKEN to your token"
        return WeightError(
            f"{ref.id} is gated: its terms must be accepted",
            hint=f"open {page}, accept; {do}",
            source=page,
        )
    if code == "RevisionNotFound":
        return WeightError(f"{ref.id} has no revision {branch}", hint=f"see {page}/commits", source=page)
    if status in (401, 404):
        why = "or your token may not see it" if has_token else "or it is private and HF_TOKEN is not set"
        return WeightError(
            f"{base} has no model {ref.id}, {why}",
            hint="check the name; if it is on ModelScope, write ms: in front",
            source=page,
        )
    return None
