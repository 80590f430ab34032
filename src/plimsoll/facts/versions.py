"""Engine versions against ranges of versions, as PEP 440 writes them; llama.cpp's build numbers too (`b11434`)."""

from __future__ import annotations

import re
from functools import lru_cache

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

_NEWEST = Version("1000000")
_BUILD = re.compile(r"b(\d+)$")


def parse_version(text: str) -> Version:
    """The version that `text` names; one that cannot be ordered (a nightly's hash, nothing) counts as the newest."""
    build = _BUILD.match(text)
    try:
        return Version(build[1] if build else text)
    except InvalidVersion:
        return _NEWEST


@lru_cache(maxsize=4096)
def in_range(version: str, versions: str) -> bool:
    """Whether `version` lies in `versions` (`>=0.9.1,<0.18`); the empty range holds every version.

    Builds with a local part (`0.6.1+cu118`) and pre-releases lie where their public version lies.
    """
    return SpecifierSet(versions).contains(parse_version(version).public, prereleases=True)


def is_known(text: str) -> bool:
    """Whether `text` names a version that can be ordered."""
    return parse_version(text) != _NEWEST
