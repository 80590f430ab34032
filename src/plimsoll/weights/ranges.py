"""The workers of one transfer: ranges fetched in parallel, hashed by the calling thread as they close up.

What has arrived without a gap is still in the page cache, so the checksum is ready when the last byte is.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import random
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from plimsoll.errors import WeightError
from plimsoll.units import MIB
from plimsoll.weights.answers import range_start, reason, refusal, retry_after_s, total_bytes
from plimsoll.weights.disk import check_disk
from plimsoll.weights.http import Response, Session, shown
from plimsoll.weights.part import Part, part_identity
from plimsoll.weights.types import Arrived, Expected, Patience, Progress

_FIRST_BYTES = 4 * MIB
_LEAST_BYTES = MIB
_MOST_BYTES = 64 * MIB
_RANGE_S = 2.0
"""A range is what a connection fetches in about this time, as fast as it was for the last one: long enough that the
round trip between two ranges does not count, short enough that none is left alone with a large one at the end."""
_RECORD_BYTES = 4 * MIB
_BUFFER_BYTES = MIB // 2
_RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)


class _Failed(Exception):  # noqa: N818 - an outcome, never seen outside
    """An attempt that may be repeated; `wait_s` is what the server asked for."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class _StartOver(Exception):  # noqa: N818 - an outcome, never seen outside
    """What has arrived cannot be continued: the server serves no ranges."""


@dataclass(slots=True)
class _Piece:
    """A range that one worker fetches: the bytes before `position` are there."""

    position: int
    end: int
    whole: bool = False


class _Gaps:
    """What no worker has taken yet, handed out from the front."""

    def __init__(self, gaps: Sequence[tuple[int, int]], *, workers: int) -> None:
        self._gaps = deque(gap for gap in gaps if gap[0] < gap[1])
        self._left = sum(end - start for start, end in self._gaps)
        self._guard = threading.Lock()
        self.workers = max(1, min(workers, -(-self._left // _LEAST_BYTES)))

    def take(self, wanted: int) -> _Piece | None:
        """The next range: `wanted` bytes, or less towards the end so that all workers end together."""
        with self._guard:
            if not self._gaps:
                return None
            start, end = self._gaps.popleft()
            length = min(end - start, max(_LEAST_BYTES, min(wanted, self._left // self.workers)))
            if start + length < end:
                self._gaps.appendleft((start + length, end))
            self._left -= length
            return _Piece(start, start + length)


@dataclass(slots=True, kw_only=True)
class Transfer:
    """`url` to `target`; shared by the worker threads under `news`."""

    url: str
    target: Path
    label: str
    session: Session
    expected: Expected
    progress: Progress | None
    connections: int
    patience: Patience
    cancelled: threading.Event
    """Set by another thread that no longer wants the file."""
    size: int | None = None
    etag: str | None = None
    moved: str | None = None
    """Where `url` redirects to: asked once, used by all."""
    ranged: bool = True
    answered: bool = False
    stuck: bool = False
    """A worker still hangs in a connect; told to stop, it writes nothing, but it must not be told to go on again."""
    error: BaseException | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    news: threading.Condition = field(default_factory=threading.Condition)

    def run(self) -> Arrived:
        """The whole transfer. WeightError if the file cannot be had or is not the expected one."""
        self.size = self.expected.size_bytes
        if self.expected.sha256 is None:
            return self._into_part(self._probe())
        return self._into_part(None)

    def _into_part(self, first: Response | None) -> Arrived:
        identity = part_identity(sha256=self.expected.sha256, etag=self.etag, size_bytes=self.size)
        try:
            with Part(self.target, identity=identity) as part:
                self.size = part.size if self.size is None else self.size
                if self.size is None and first is None:
                    first = self._probe()
                if self.size is not None:
                    part.note_size(self.size)
                # A part continued from an earlier run may be damaged, and a body without a length may be cut unseen.
                doubtful = part.have_bytes > 0 or self.size is None
                arrived = self._persist(part, first)
                if arrived is None and doubtful:
                    part.restart()
                    arrived = self._persist(part, None)
                if arrived is None:
                    part.discard()
                    raise WeightError(
                        f"{shown(self.url)} gave other bytes than the source announces for {self.label}",
                        hint="fetch again; if it stays so, the source or a proxy on the way is broken",
                        source=shown(self.url),
                    )
                part.finish(self.target)
                return arrived
        finally:
            if first:
                first.close()

    def _probe(self) -> Response:
        """The answer to the first range, its body unread: tells size, etag and whether ranges are served."""
        response = self._patiently(lambda: self._open(self.session, 0, _FIRST_BYTES))
        total = total_bytes(response)
        self.ranged = response.status == 206 and total is not None
        if self.expected.size_bytes is not None and total is not None and total != self.expected.size_bytes:
            response.close()
            raise WeightError(
                f"{shown(self.url)} has {total} bytes, expected {self.expected.size_bytes}", source=shown(self.url)
            )
        if total is None and self.expected.sha256 is None:
            response.close()
            raise WeightError(
                f"{shown(self.url)} tells neither size nor checksum, so nothing could show that it is whole",
                hint="give its sha256",
                source=shown(self.url),
            )
        self.size = total
        self.etag = response.headers.get("ETag") or response.headers.get("Last-Modified")
        return response

    def _persist(self, part: Part, first: Response | None) -> Arrived | None:
        """`_fetch_all`, again from the first byte as often as patience allows if the server serves no ranges."""
        failures = 0
        while True:
            try:
                return self._fetch_all(part, first)
            except _StartOver as cut:
                failures += 1
                self.ranged, first = False, None
                self._wait(failures, _Failed(str(cut)), self.cancelled)

    def _fetch_all(self, part: Part, first: Response | None) -> Arrived | None:
        """Fetch what is missing and hash it; None if the bytes are not the expected ones."""
        if self.stuck:
            raise WeightError(f"{shown(self.url)} does not answer any more", hint="fetch again", source=shown(self.url))
        self.error = None
        self.stop.clear()
        if not self.ranged:
            part.restart()
        if self.size is not None:
            check_disk(self.target.parent, self.size - part.have_bytes)
            gaps = part.missing(self.size)
        else:
            gaps = [(0, 1 << 62)]
        todo = _Gaps(gaps, workers=self.connections if self.ranged else 1)
        begun = todo.take(_FIRST_BYTES if self.ranged else 1 << 62) if first else None
        if first and (begun is None or begun.position > 0):
            first.close()
            first = None
        work = [(begun, first), *[(None, None)] * (todo.workers - 1)]
        sessions = [self.session.twin() for _ in work]
        threads = [
            threading.Thread(target=self._work, args=(part, session, todo, *begin), daemon=True)
            for session, begin in zip(sessions, work, strict=True)
        ]
        try:
            for thread in threads:
                thread.start()
            return self._hash(part, threads)
        finally:
            self.stop.set()
            for session in (self.session, *sessions) if first else sessions:
                session.abort()
            for thread in threads:
                thread.join(1.0)
            self.stuck = any(thread.is_alive() for thread in threads)

    def _hash(self, part: Part, threads: Sequence[threading.Thread]) -> Arrived | None:
        sha256 = hashlib.sha256()
        git_sha1 = None
        if self.expected.git_sha1 and self.size is not None:
            git_sha1 = hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)
        hashed = 0
        while True:
            working = any(thread.is_alive() for thread in threads)
            ready = part.prefix_bytes
            while hashed < ready and not self.error:
                data = part.read(hashed, min(_RECORD_BYTES, ready - hashed))
                sha256.update(data)
                if git_sha1:
                    git_sha1.update(data)
                hashed += len(data)
                self._tell(part)
            if self.error:
                raise self.error
            if self.cancelled.is_set():
                raise WeightError(f"{self.label} was not fetched to its end", hint="fetch again; it goes on from there")
            if not working:
                break
            with self.news:
                self.news.wait(0.1)
            self._tell(part)
        size = hashed if self.size is None else self.size
        good = (
            hashed == size
            and self.expected.size_bytes in (None, size)
            and self.expected.sha256 in (None, sha256.hexdigest())
            and (git_sha1 is None or git_sha1.hexdigest() == self.expected.git_sha1)
        )
        return Arrived(size_bytes=size, sha256=sha256.hexdigest(), etag=self.etag) if good else None

    def _tell(self, part: Part) -> None:
        if self.progress:
            self.progress(self.label, part.have_bytes, self.size)

    def _work(self, part: Part, session: Session, todo: _Gaps, piece: _Piece | None, first: Response | None) -> None:
        """A worker thread: ranges until there are none, from `piece` on, whose answer may be open already."""
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        wanted = _FIRST_BYTES if self.ranged else 1 << 62
        try:
            while not self.stop.is_set() and (piece := piece or todo.take(wanted)):
                started, before = time.monotonic(), piece.position
                self._fetch_range(part, session, piece, buffer, first)
                if self.ranged:
                    rate = (piece.position - before) / max(1e-3, time.monotonic() - started)
                    wanted = max(_LEAST_BYTES, min(round(rate * _RANGE_S), _MOST_BYTES))
                piece = first = None
        except BaseException as error:  # handed to the calling thread, which raises it
            self.error = self.error or error
            self.stop.set()
        finally:
            session.close()
            with self.news:
                self.news.notify()

    def _fetch_range(
        self, part: Part, session: Session, piece: _Piece, buffer: memoryview, first: Response | None
    ) -> None:
        failures = 0
        while not (piece.whole or self.stop.is_set()):
            before = piece.position
            try:
                response = first or self._open(session, piece.position, piece.end)
                first = None
                try:
                    self._drain(part, response, piece, buffer)
                finally:
                    response.close()
                cut: Exception = _Failed("the connection was cut")
            except (_Failed, OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise WeightError(
                        f"the disk is full: {self.target.parent}", hint="free some space; the fetch continues from here"
                    ) from None
                cut = error
            if piece.whole or self.stop.is_set():
                return
            if not self.ranged and piece.position > 0:
                raise _StartOver(reason(cut))
            failures = failures + 1 if before == piece.position else 1
            self._wait(failures, cut, self.stop)

    def _drain(self, part: Part, response: Response, piece: _Piece, buffer: memoryview) -> None:
        """Write the body to the part, as far as it comes."""
        recorded = piece.position
        try:
            while not (piece.whole or self.stop.is_set()):
                count = response.readinto(buffer[: min(len(buffer), piece.end - piece.position)])
                if count == 0:
                    # Without a length only the end of the body can say that it is whole; the checksum decides.
                    piece.whole = self.size is None
                    return
                part.write(buffer[:count], piece.position)
                piece.position += count
                piece.whole = piece.position == piece.end
                if piece.position - recorded >= _RECORD_BYTES:
                    part.record(recorded, piece.position)
                    recorded = piece.position
                    with self.news:
                        self.news.notify()
        finally:
            part.record(recorded, piece.position)

    def _open(self, session: Session, start: int, end: int) -> Response:
        headers = {"Range": f"bytes={start}-{end - 1}"} if self.ranged else {}
        response = session.open(self.moved or self.url, headers=headers)
        if response.status in (200, 206):
            try:
                self._check(response, start)
            except BaseException:
                response.close()
                raise
            if response.url != self.url:
                self.moved = response.url
            return response
        status = response.status
        wait_s = retry_after_s(response.headers.get("Retry-After"))
        empty = status == 416 and response.headers.get("Content-Range", "").strip() in ("bytes */0", "bytes 0/0")
        response.body.read(1 << 16)
        response.close()
        if empty:
            self.ranged = False
            return self._open(session, 0, end)
        if status in _RETRY_STATUS:
            raise _Failed(f"it answers {status}", wait_s)
        if self.moved and status in (400, 401, 403, 404, 410):
            self.moved = None  # a signed address that ran out: ask the hub for a new one
            raise _Failed(f"its download address answers {status}", 0.0)
        raise refusal(self.url, status)

    def _check(self, response: Response, start: int) -> None:
        """The answer must be the asked range of the same file as before."""
        etag = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if self.expected.sha256 is None and self.etag and etag and etag != self.etag:
            raise WeightError(
                f"{shown(self.url)} changed while it was being fetched", hint="fetch again", source=shown(self.url)
            )
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise WeightError(f"{shown(self.url)} is sent compressed, against what was asked", source=shown(self.url))
        total = total_bytes(response)
        if self.size is not None and total is not None and total != self.size:
            raise WeightError(
                f"{shown(self.url)} has {total} bytes, expected {self.size}",
                hint="fetch again, and check the revision",
                source=shown(self.url),
            )
        if response.status == 206 and range_start(response) != start:
            raise _Failed("it sent another range than was asked for")
        if response.status == 200 and start > 0:
            raise _StartOver("it serves no ranges")
        self.answered = True

    def _patiently(self, attempt: Callable[[], Response]) -> Response:
        failures = 0
        while True:
            try:
                return attempt()
            except (_Failed, OSError, http.client.HTTPException) as error:
                failures += 1
                self._wait(failures, error, self.cancelled)

    def _wait(self, failures: int, error: Exception, end: threading.Event) -> None:
        """Sleep before the next attempt, or until `end`; WeightError when there have been enough."""
        if isinstance(error, ssl.SSLCertVerificationError):
            raise WeightError(
                f"the certificate of {shown(self.url)} is not trusted: {error.verify_message}",
                hint="name your authority's certificate in SSL_CERT_FILE",
                source=shown(self.url),
            ) from None
        limit = self.patience.attempts if self.answered else self.patience.attempts_before_an_answer
        if failures >= limit:
            raise WeightError(
                f"cannot fetch {shown(self.url)}: {reason(error)} ({failures} attempts)",
                hint="check the network, the proxy and the address; what has arrived is kept",
                source=shown(self.url),
            ) from None
        asked = error.wait_s if isinstance(error, _Failed) else None
        wait_s = self.patience.first_wait_s * 2 ** (failures - 1) * random.uniform(0.75, 1.25)  # noqa: S311 - jitter
        end.wait(min(wait_s if asked is None else asked, self.patience.longest_wait_s))
