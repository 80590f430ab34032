"""Where weights lie: the layout of the Hugging Face cache, so that other tools find what we fetched and we theirs.

<store>/models--ORG--NAME/blobs/<sha256>                       the bytes, once
                          snapshots/<revision>/<path>          links to them, under their own names
                          refs/<branch>                        the revision that a branch was at
                          plimsoll/<revision>.json             what was checked, when, from where
                          plimsoll/<revision>.durable          it has reached the disk
<store>/.locks/models--ORG--NAME.lock
<store>/.content/<sha256>                                      hard links: the same file in two models is one file
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from plimsoll.errors import WeightError
from plimsoll.units import MIB
from plimsoll.weights.part import boot_id

_WRITTEN_BACK_S = 60.0
"""The kernel writes dirty pages back after 30 s (vm.dirty_expire_centisecs) and some."""
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One checked file of a revision: `path` relative to the snapshot; `mtime_ns` when it was checked."""

    path: str
    size_bytes: int
    sha256: str
    mtime_ns: int
    source: str
    boot: str
    """The machine's start during which it was written (part.boot_id)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repo:
    """One model's folder in a store."""

    store: Path
    folder: str

    @property
    def root(self) -> Path:
        """The model's folder."""
        return self.store / self.folder

    @property
    def lock_path(self) -> Path:
        """The lock that whoever changes this folder holds."""
        return self.store / ".locks" / f"{self.folder}.lock"

    def blob(self, name: str) -> Path:
        """Where the bytes with that checksum lie."""
        return self.root / "blobs" / name

    def snapshot(self, revision: str) -> Path:
        """The folder that an engine is pointed at."""
        return self.root / "snapshots" / checked_revision(revision)

    def files(self, revision: str) -> dict[str, StoredFile]:
        """The checked files of a revision, by path; empty if there is no record or it is unreadable."""
        return self._read(revision)[0]

    def offered(self, revision: str) -> tuple[str, ...]:
        """All paths that the source had of a revision, fetched or not; empty if that was not noted."""
        return self._read(revision)[1]

    def revisions(self) -> tuple[str, ...]:
        """The revisions with a record, in order of name."""
        return tuple(sorted(path.stem for path in (self.root / "plimsoll").glob("*.json")))

    def branch(self, name: str) -> str | None:
        """The revision that a branch was at when it was fetched."""
        try:
            return checked_revision((self.root / "refs" / checked_path(name)).read_text().strip())
        except (OSError, UnicodeDecodeError, WeightError):
            return None

    def find(self, revision: str, path: str, *, sha256: str | None = None) -> Path | None:
        """The file if it is there, recorded, and unchanged since it was checked."""
        known = self.files(revision).get(path)
        if known is None or sha256 not in (None, known.sha256):
            return None
        return self.snapshot(revision) / path if self.has(revision, [path]) else None

    def has(self, revision: str, paths: Iterable[str]) -> bool:
        """Whether all of `paths` are there and unchanged since they were checked, by size and time of change.

        Fetched files are not forced to the disk, which would take longer than a fast fetch. A file that the machine
        was restarted over is therefore read again, once, and its checksum decides.
        """
        files = self.files(revision)
        durable = self._durable_path(revision).exists()
        if not all(path in files and self._unchanged(revision, files[path], durable=durable) for path in paths):
            return False
        if not durable:
            self._note_durable(revision, files)
        return True

    def _unchanged(self, revision: str, known: StoredFile, *, durable: bool) -> bool:
        place = self.snapshot(revision) / known.path
        try:
            status = place.stat()
            if status.st_size != known.size_bytes:
                return False
            if status.st_mtime_ns == known.mtime_ns and (durable or known.boot == boot_id()):
                return True
            return hash_file(place) == known.sha256
        except OSError:
            return False

    def _note_durable(self, revision: str, files: Mapping[str, StoredFile]) -> None:
        """Once the kernel has written it all back by itself, or it outlived a restart, that need not be asked again."""
        record = self._record_path(revision)
        try:
            if time.time() - record.stat().st_mtime < _WRITTEN_BACK_S:
                return
            for known in files.values():
                if known.boot == boot_id():
                    with (self.snapshot(revision) / known.path).open("rb") as file:
                        os.fdatasync(file.fileno())
                elif not self._unchanged(revision, known, durable=False):
                    return
            self._durable_path(revision).touch()
        except OSError:
            return  # a store that may only be read: it is asked again next time

    def add(self, revision: str, path: str, *, sha256: str, source: str) -> Path:
        """Link the blob `sha256` into the revision as `path` and record it. The caller holds the lock."""
        place = self.snapshot(revision) / checked_path(path)
        blob = self._shared(sha256)
        fresh = place.with_name(f".{place.name}.new")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(os.path.relpath(blob, place.parent))
            fresh.replace(place)
        except OSError as error:  # a list that has both `a` and `a/b`, a name that is too long
            raise WeightError(f"cannot make {place}: {error.strerror}", source=source) from None
        status = blob.stat()
        files, offered = self._read(revision)
        files[path] = StoredFile(
            path=path,
            size_bytes=status.st_size,
            sha256=sha256,
            mtime_ns=status.st_mtime_ns,
            source=source,
            boot=boot_id(),
        )
        self._durable_path(revision).unlink(missing_ok=True)
        self._record(revision, files, offered)
        return place

    def settle(self, revision: str, offered: Iterable[str], *, branch: str | None = None) -> None:
        """Note what the source has of a revision, and that `branch` is at it. The caller holds the lock."""
        files, _ = self._read(revision)
        self._record(revision, files, tuple(offered))
        if branch is not None:
            path = self.root / "refs" / checked_path(branch)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(revision)

    def _shared(self, sha256: str) -> Path:
        """The blob, with its hard link among the store's contents; another model's copy takes its place."""
        blob = self.blob(sha256)
        content = self.store / ".content" / sha256
        content.parent.mkdir(parents=True, exist_ok=True)
        try:
            if content.exists() and not content.samefile(blob):
                if hash_file(content) == sha256:
                    _replace_by_link(blob, content)
                else:  # it was changed after it was checked; the blob was checked just now
                    content.unlink()
            if not content.exists():
                content.hardlink_to(blob)
        except OSError:  # a file system without hard links: two copies, and both are right
            return blob
        return blob

    def _read(self, revision: str) -> tuple[dict[str, StoredFile], tuple[str, ...]]:
        try:
            record = json.loads(self._record_path(revision).read_text())
            return {row["path"]: StoredFile(**row) for row in record["files"]}, tuple(record["offered"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}, ()

    def _record(self, revision: str, files: Mapping[str, StoredFile], offered: Sequence[str]) -> None:
        path = self._record_path(revision)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".json.new")
        record = {"files": [asdict(files[name]) for name in sorted(files)], "offered": offered}
        fresh.write_text(json.dumps(record, indent=1) + "\n")
        fresh.replace(path)

    def _durable_path(self, revision: str) -> Path:
        return self.root / "plimsoll" / f"{checked_revision(revision)}.durable"

    def _record_path(self, revision: str) -> Path:
        return self.root / "plimsoll" / f"{checked_revision(revision)}.json"


def repo(store: Path, *names: str) -> Repo:
    """The folder of the model `names` (`"Qwen", "Qwen2.5-7B"`); WeightError if that is no name for a folder."""
    parts = [part for name in names for part in name.split("/")]
    if not parts or not all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", part) for part in parts):
        raise WeightError(f"{'/'.join(names)!r} is no model name", hint="a hub id looks like Qwen/Qwen2.5-7B-Instruct")
    return Repo(store=store, folder="--".join(("models", *parts)))


def checked_revision(revision: str) -> str:
    """`revision` if it can name a folder; WeightError otherwise."""
    if not _REVISION.fullmatch(revision):
        raise WeightError(f"{revision!r} is no revision", hint="a revision is a commit, a branch or a version")
    return revision


def checked_path(path: str) -> str:
    """`path` if it stays below where it is put; WeightError otherwise: file lists come from outside."""
    parts = PurePosixPath(path).parts
    hostile = path.startswith("/") or "\\" in path or "\0" in path or any(part in ("..", ".git") for part in parts)
    if hostile or not parts or any(len(part.encode()) > 255 for part in parts):
        raise WeightError(f"{path!r} is not a path inside a model", hint="do not trust this source")
    return path


def _replace_by_link(path: Path, other: Path) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    fresh.hardlink_to(other)
    fresh.replace(path)


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb", buffering=0) as file:
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(MIB))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()
