"""What is said about a file on its way here: what to expect, how far it is, what arrived."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Progress(Protocol):
    """Told often how far `name` is; `total_bytes` is None while unknown."""

    def __call__(self, name: str, done_bytes: int, total_bytes: int | None) -> None:
        """Called from the thread that fetches, about ten times a second."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the source says of a file, to be held against what arrives; None: not known."""

    size_bytes: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None
    """Of git's blob object, which is what the hubs give for small files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A file that arrived whole and is as it should be."""

    size_bytes: int
    sha256: str
    etag: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a failing line is borne: attempts in a row without a byte, and the waits between them."""

    attempts: int = 10
    attempts_before_an_answer: int = 3
    """While the server has never answered: it is more likely a wrong address than a bad moment."""
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0
