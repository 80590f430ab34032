"""Puts models on the hub of the tests in the ways that Hugging Face, ModelScope and Ollama's registry show theirs."""

from __future__ import annotations

import hashlib
import json
from urllib.parse import quote

from fake_hub import File, Hub


def put_huggingface(
    hub: Hub, id: str, files: dict[str, bytes], *, commit: str = "c" * 40, branch: str = "main"
) -> None:
    """Large files (over 1 KiB) are LFS: a SHA-256, and a redirect to another address with a signature."""
    siblings = []
    for path, data in files.items():
        sha1 = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        entry: dict[str, object] = {"rfilename": path, "size": len(data), "blobId": sha1}
        address = f"/{id}/resolve/{commit}/{quote(path)}"
        if len(data) > 1024:
            sha256 = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
            hub.files[address] = File(b"", redirect=f"/cdn/{sha256}?sig=s", headers={"X-Linked-Etag": f'"{sha256}"'})
            hub.files[f"/cdn/{sha256}?sig=s"] = File(data)
        else:
            hub.files[address] = File(data, etag=f'"{sha1}"')
        siblings.append(entry)
    answer = File(json.dumps({"id": id, "sha": commit, "siblings": siblings}).encode(), kind="application/json")
    for name in (branch, commit):
        hub.files[f"/api/models/{id}/revision/{name}?blobs=true"] = answer


def put_modelscope(hub: Hub, id: str, files: dict[str, bytes]) -> None:
    listed: list[dict[str, object]] = [{"Path": "sub", "Type": "tree", "Size": 0, "Sha256": ""}]
    for path, data in files.items():
        listed.append({"Path": path, "Type": "blob", "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest()})
        hub.files[f"/api/v1/models/{id}/repo?Revision=master&FilePath={quote(path, safe='')}"] = File(data)
    answer = {"Code": 200, "Success": True, "Data": {"Files": listed}}
    hub.files[f"/api/v1/models/{id}/repo/files?Revision=master&Recursive=True"] = File(json.dumps(answer).encode())


def put_ollama(hub: Hub, id: str, tag: str, layers: dict[str, bytes]) -> None:
    listed = []
    for kind, data in layers.items():
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        listed.append({"mediaType": f"application/vnd.ollama.image.{kind}", "digest": digest, "size": len(data)})
        hub.files[f"/v2/{id}/blobs/{digest}"] = File(data)
    hub.files[f"/v2/{id}/manifests/{tag}"] = File(json.dumps({"schemaVersion": 2, "layers": listed}).encode())
