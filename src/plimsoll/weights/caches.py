"""What other tools fetched before us: what is right in their caches is linked or copied, not fetched."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from plimsoll.units import MIB
from plimsoll.weights.disk import check_disk
from plimsoll.weights.huggingface import hub_home
from plimsoll.weights.sources import Ref, RemoteFile
from plimsoll.weights.store import Repo, hash_file


def adopt(file: RemoteFile, ref: Ref, place: Repo, *, environ: Mapping[str, str] = os.environ) -> str | None:
    """Link `file` into the store's blobs from wherever it lies on this machine; its SHA-256, or None.

    A copy is taken only if size and checksum are the source's own: it is read once from end to end.
    """
    expected = file.expected
    if expected.sha256 is None and expected.git_sha1 is None:
        return None
    for path in _copies(file, ref, place, environ):
        try:
            if not path.is_file() or expected.size_bytes not in (None, path.stat().st_size):
                continue
            if expected.sha256 is None and _git_sha1(path) != expected.git_sha1:
                continue
            sha256 = hash_file(path)
            if expected.sha256 in (None, sha256):
                _link(path.resolve(), place.blob(sha256))
                return sha256
        except OSError:
            continue  # not readable for us: as if it were not there
    return None


def _copies(file: RemoteFile, ref: Ref, place: Repo, environ: Mapping[str, str]) -> Iterator[Path]:
    """Where a copy may be, the surest first."""
    home = Path(environ.get("HOME") or Path.home())
    if file.expected.sha256:
        yield place.blob(file.expected.sha256)
        yield place.store / ".content" / file.expected.sha256
        ollama = environ.get("OLLAMA_MODELS") or home / ".ollama" / "models"
        yield Path(ollama) / "blobs" / f"sha256-{file.expected.sha256}"
    if ref.kind not in ("huggingface", "modelscope"):
        return
    organisation, _, name = ref.id.rpartition("/")
    folder = "--".join(("models", *ref.id.split("/")))
    hub = Path(environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or hub_home(environ) / "hub")
    scope = Path(environ.get("MODELSCOPE_CACHE") or home / ".cache" / "modelscope")
    for snapshots in (hub / folder / "snapshots", scope / "models" / ref.id.replace("/", "--") / "snapshots"):
        if snapshots.is_dir():
            yield from (snapshot / file.path for snapshot in sorted(snapshots.iterdir()))
    for old in (scope / "hub" / "models", scope / "hub", scope / "models", scope):
        yield old / organisation / name.replace(".", "___") / file.path


def _link(path: Path, blob: Path) -> None:
    if path == blob or (blob.exists() and path.samefile(blob)):
        return
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.unlink(missing_ok=True)
    try:
        blob.hardlink_to(path)
    except OSError:  # another file system: still faster than the network
        check_disk(blob.parent, path.stat().st_size)
        fresh = blob.with_name(blob.name + ".copying")
        shutil.copyfile(path, fresh)
        fresh.replace(blob)


def _git_sha1(path: Path) -> str:
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while data := file.read(MIB):
            digest.update(data)
    return digest.hexdigest()
