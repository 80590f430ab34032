"""Which package indexes the user's own tools would ask: the settings of pip and uv, from variables and files."""

from __future__ import annotations

import configparser
import os
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PYPI = "https://pypi.org/simple"


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexes:
    """`urls` are Simple API roots, `find_links` folders or pages of links; asked in this order: links, then urls."""

    urls: tuple[str, ...]
    find_links: tuple[str, ...] = ()
    cafile: str | None = None


def read_indexes(
    environ: Mapping[str, str] = os.environ, *, home: Path | None = None, prefix: str = sys.prefix
) -> Indexes:
    """The indexes that pip and uv are set up to use; pypi.org if nothing says otherwise.

    Precedence as in pip (variable, environment, user, machine) and, where pip says nothing, uv.
    """
    home = home or Path.home()
    pip = _pip_settings(environ, home, prefix)
    uv = _uv_settings(environ, home)
    main = _first(pip.get("index-url"), environ.get("UV_DEFAULT_INDEX"), environ.get("UV_INDEX_URL"), uv.get("default"))
    forbidden = _true(pip.get("no-index")) or _true(environ.get("UV_NO_INDEX"))
    extras = [
        *_words(pip.get("extra-index-url")),
        *_words(environ.get("UV_INDEX")),
        *_words(environ.get("UV_EXTRA_INDEX_URL")),
        *uv.get("extra", ()),
    ]
    urls = [] if forbidden else [main or PYPI, *(word.partition("=")[2] if _named(word) else word for word in extras)]
    links = [
        *_words(pip.get("find-links")),
        *_words((environ.get("UV_FIND_LINKS") or "").replace(",", " ")),
        *uv.get("links", ()),
    ]
    return Indexes(
        urls=tuple(dict.fromkeys(url.rstrip("/") for url in urls)),
        find_links=tuple(dict.fromkeys(links)),
        cafile=pip.get("cert") or None,
    )


def _pip_settings(environ: Mapping[str, str], home: Path, prefix: str) -> dict[str, str]:
    settings: dict[str, str] = {}
    for path in _pip_files(environ, home, prefix):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError, OSError):
            continue  # pip would complain; here another index may still have the file
        for section in ("global", "install", "download"):
            if parser.has_section(section):
                settings.update((key.replace("_", "-"), value) for key, value in parser.items(section))
    for name, value in environ.items():
        if name.startswith("PIP_") and value:
            settings[name[4:].lower().replace("_", "-")] = value
    return settings


def _pip_files(environ: Mapping[str, str], home: Path, prefix: str) -> Iterator[Path]:
    """pip's configuration files, the least specific first."""
    named = environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return
    for folder in (environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":"):
        yield Path(folder) / "pip" / "pip.conf"
    yield Path("/etc/pip.conf")
    if not (named and Path(named).exists()):
        yield home / ".pip" / "pip.conf"
        yield Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"
    yield Path(prefix) / "pip.conf"
    if named:
        yield Path(named)


def _uv_settings(environ: Mapping[str, str], home: Path) -> dict[str, Any]:
    for path in (
        Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "uv" / "uv.toml",
        Path("/etc/uv/uv.toml"),
    ):
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        table = {**table.get("pip", {}), **table}
        listed = [entry for entry in table.get("index", ()) if isinstance(entry, dict) and "url" in entry]
        return {
            "default": _first(*(entry["url"] for entry in listed if entry.get("default")), table.get("index-url")),
            "extra": [
                *(entry["url"] for entry in listed if not entry.get("default")),
                *table.get("extra-index-url", ()),
            ],
            "links": list(table.get("find-links", ())),
        }
    return {}


def _first(*values: str | None) -> str | None:
    return next((value.strip() for value in values if value and value.strip()), None)


def _words(value: str | None) -> list[str]:
    return (value or "").split()


def _true(value: str | None) -> bool:
    return (value or "").strip().lower() in ("1", "true", "yes", "on", "y", "t")


def _named(word: str) -> bool:
    """uv's `name=https://...`."""
    return "=" in word and "://" not in word.partition("=")[0]
