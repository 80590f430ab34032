"""What lies in a store: list it, check it again, count it, remove it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plimsoll.errors import WeightError
from plimsoll.weights.lock import locked
from plimsoll.weights.store import Repo, StoredFile, hash_file
from plimsoll.weights.types import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """One revision of a model in a store; `name` is how a user writes it, `refs` the branches that point at it."""

    name: str
    revision: str
    refs: tuple[str, ...]
    path: Path
    files: tuple[StoredFile, ...]
    repo: Repo

    @property
    def size_bytes(self) -> int:
        """Of all its files, shared ones too."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A file that is not as it was when it was fetched."""

    path: str
    what: str


def list_models(store: Path) -> tuple[StoredModel, ...]:
    """Every revision that was fetched into `store`, by name."""
    return tuple(sorted(_models(store), key=lambda model: (model.name, model.revision)))


def find_models(store: Path, name: str) -> tuple[StoredModel, ...]:
    """The revisions of the model `name` (`NAME` or `NAME@REVISION`); WeightError if there is none."""
    wanted, _, revision = name.partition("@")
    found = tuple(
        model
        for model in list_models(store)
        if model.name == wanted and (not revision or model.revision.startswith(revision) or revision in model.refs)
    )
    if not found:
        there = ", ".join(sorted({model.name for model in list_models(store)})) or "none"
        raise WeightError(f"{name} is not in the store {store}", hint=f"there are: {there}")
    return found


def verify_model(model: StoredModel, *, progress: Progress | None = None) -> tuple[Fault, ...]:
    """Read every file again and hold it against its checksum; what is wrong."""
    faults, done = [], 0
    for file in model.files:
        place = model.path / file.path
        try:
            if place.stat().st_size != file.size_bytes:
                faults.append(Fault(path=file.path, what=f"{place.stat().st_size} bytes, not {file.size_bytes}"))
            elif hash_file(place) != file.sha256:
                faults.append(Fault(path=file.path, what="other bytes than were fetched"))
        except OSError as error:
            faults.append(Fault(path=file.path, what=error.strerror or "unreadable"))
        done += file.size_bytes
        if progress:
            progress(model.name, done, model.size_bytes)
    return tuple(faults)


def remove_model(model: StoredModel) -> int:
    """Take a revision out of the store; the bytes that this frees (none for what another revision shares)."""
    place = model.repo
    with locked(place.lock_path):
        before = usage_bytes(place.store)
        kept = {
            file.sha256
            for revision in place.revisions()
            if revision != model.revision
            for file in place.files(revision).values()
        }
        shutil.rmtree(model.path, ignore_errors=True)
        for suffix in ("json", "durable"):
            (place.root / "plimsoll" / f"{model.revision}.{suffix}").unlink(missing_ok=True)
        for ref in model.refs:
            (place.root / "refs" / ref).unlink(missing_ok=True)
        for sha256 in {file.sha256 for file in model.files} - kept:
            place.blob(sha256).unlink(missing_ok=True)
            content = place.store / ".content" / sha256
            if content.exists() and content.stat().st_nlink == 1:
                content.unlink()
        if not place.revisions():
            shutil.rmtree(place.root, ignore_errors=True)
        return before - usage_bytes(place.store)


def usage_bytes(folder: Path) -> int:
    """Bytes on the disk below `folder`, each file once however many names it has."""
    seen: dict[tuple[int, int], int] = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            status = path.stat()
            seen[status.st_dev, status.st_ino] = status.st_size
    return sum(seen.values())


def _models(store: Path) -> Iterator[StoredModel]:
    for root in store.glob("models--*"):
        place = Repo(store=store, folder=root.name)
        refs_root = root / "refs"
        refs = [path.relative_to(refs_root).as_posix() for path in refs_root.rglob("*") if path.is_file()]
        for revision in place.revisions():
            yield StoredModel(
                name=_name(root.name),
                revision=revision,
                refs=tuple(sorted(ref for ref in refs if place.branch(ref) == revision)),
                path=place.snapshot(revision),
                files=tuple(place.files(revision).values()),
                repo=place,
            )


def _name(folder: str) -> str:
    kind, *rest = folder.split("--")[1:]
    if rest and kind in ("pypi", "ollama", "url"):
        return f"{kind}:{'/'.join(rest).removeprefix('library/')}"
    return "/".join((kind, *rest))
