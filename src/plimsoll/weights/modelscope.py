"""ModelScope: what a repository holds, and where to get it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from http.client import HTTPMessage
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from plimsoll.errors import WeightError
from plimsoll.weights.http import Session
from plimsoll.weights.json_api import get_json
from plimsoll.weights.sources import Listing, Ref, RemoteFile
from plimsoll.weights.store import checked_path
from plimsoll.weights.types import Expected

_LIST_LIMIT = 3000
"""The server silently leaves out what is beyond (modelscope_hub 0.5.1, REPO_FILES_TRUNCATION_LIMIT)."""


def endpoint(environ: Mapping[str, str] = os.environ) -> str:
    """The hub's address: MODELSCOPE_ENDPOINT, MODELSCOPE_DOMAIN, else modelscope.cn."""
    address = environ.get("MODELSCOPE_ENDPOINT") or environ.get("MODELSCOPE_DOMAIN") or "https://www.modelscope.cn"
    return (address if "://" in address else f"https://{address}").rstrip("/")


def list_files(ref: Ref, session: Session, *, environ: Mapping[str, str] = os.environ) -> Listing:
    """What the repository holds at `ref.revision` (master if it names none), with SHA-256 of every file.

    ModelScope has no one commit for a tree that its API would tell; the revision is named by what is in it.
    """
    base, branch = endpoint(environ), ref.revision or "master"
    mine = environ.get("MODELSCOPE_API_TOKEN")
    if mine:
        session.bearer = {**session.bearer, str(urlsplit(base).hostname): mine}
    root = f"{base}/api/v1/models/{ref.id}/repo"
    url = f"{root}/files?{urlencode({'Revision': branch, 'Recursive': 'True'})}"

    def refused(status: int, _: HTTPMessage) -> WeightError | None:
        if status not in (401, 403, 404):
            return None
        return WeightError(
            f"{base} has no model {ref.id} at {branch}, or it is private",
            hint="check the name; a private one needs MODELSCOPE_API_TOKEN",
            source=f"{base}/models/{ref.id}",
        )

    answer = get_json(url, session, refused=refused)
    try:
        entries = answer["Data"]["Files"]
        files = tuple(_file(entry, root, branch) for entry in entries if entry.get("Type") != "tree")
    except (KeyError, TypeError, AttributeError):
        said = answer.get("Message") if isinstance(answer, dict) else None
        raise WeightError(
            f"{base} does not list {ref.id}{f': {said}' if said else ''}", hint="check the name", source=url
        ) from None
    if len(entries) >= _LIST_LIMIT:
        raise WeightError(f"{ref.id} has more files than ModelScope lists ({_LIST_LIMIT})", hint="name one file")
    content = "\n".join(sorted(f"{file.path} {file.expected.sha256}" for file in files))
    return Listing(
        revision=hashlib.sha1(content.encode(), usedforsecurity=False).hexdigest(), files=files, branch=branch
    )


def _file(entry: dict[str, Any], root: str, branch: str) -> RemoteFile:
    path = checked_path(entry["Path"])
    return RemoteFile(
        path=path,
        urls=(f"{root}?Revision={quote(branch, safe='')}&FilePath={quote(path, safe='')}",),
        expected=Expected(size_bytes=entry.get("Size"), sha256=entry.get("Sha256") or None),
    )
