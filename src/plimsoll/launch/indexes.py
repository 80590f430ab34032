"""pip's settings in uv's words: uv does not read pip.conf, and the user's index must hold for both."""

from __future__ import annotations

import configparser
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

_SECTIONS = ("global", "install")
_FROM_PIP = {"index_url": "default-index", "extra_index_url": "index", "find_links": "find-links"}
_UV_OWN = {
    "default-index": ("UV_DEFAULT_INDEX", "UV_INDEX_URL"),
    "index": ("UV_INDEX", "UV_EXTRA_INDEX_URL"),
    "find-links": ("UV_FIND_LINKS",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PipSettings:
    """What pip is told by its files and its environment; list settings in their order."""

    index_url: tuple[str, ...] = ()
    extra_index_url: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    trusted_host: tuple[str, ...] = ()
    no_index: bool = False
    cert: str = ""
    proxy: str = ""

    @property
    def own_sources(self) -> bool:
        """Whether the user named where packages come from."""
        return bool(self.index_url or self.extra_index_url or self.find_links or self.no_index)


def read_pip_settings(environment: Mapping[str, str], *, prefix: Path, root: Path = Path("/")) -> PipSettings:
    """pip's settings as pip reads them: system, user, environment (`prefix`), PIP_CONFIG_FILE, then PIP_ variables."""
    home = Path(environment.get("HOME", "/"))
    config_home = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    files = [
        root / "etc/xdg/pip/pip.conf", root / "etc/pip.conf", home / ".pip" / "pip.conf",
        config_home / "pip" / "pip.conf", prefix / "pip.conf",
    ]  # fmt: skip
    named = environment.get("PIP_CONFIG_FILE")
    files = [] if named == "/dev/null" else [*files, *([Path(named)] if named else [])]
    found: dict[str, str] = {}
    for section in _SECTIONS:
        for file in files:
            found |= _section(file, section)
    found |= {name[4:].lower(): text for name, text in environment.items() if name.startswith("PIP_") and text}
    return PipSettings(
        **{name: tuple(found.get(name, "").split()) for name in (*_FROM_PIP, "trusted_host")},
        no_index=found.get("no_index", "").lower() in ("1", "true", "yes", "on"),
        cert=found.get("cert", ""),
        proxy=found.get("proxy", ""),
    )


def uv_flags(settings: PipSettings, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The same for `uv pip install`; what the user told uv itself (UV_ variables) stands above it.

    pip takes the best version of all its indexes, where uv stops at the first that has the package: with several
    indexes uv is told to do as pip does.
    """
    flags: list[str] = []
    for name, flag in _FROM_PIP.items():
        if not any(environment.get(variable) for variable in _UV_OWN[flag]):
            flags += [word for value in getattr(settings, name) for word in (f"--{flag}", value)]
    if settings.no_index:
        flags.append("--no-index")
    if settings.extra_index_url:
        flags += ["--index-strategy", "unsafe-best-match"]
    return (*flags, *(word for host in settings.trusted_host for word in ("--allow-insecure-host", host)))


def uv_environment(settings: PipSettings, environment: Mapping[str, str]) -> dict[str, str]:
    """Certificates and proxy of pip's settings as the variables that uv reads, where those are not set."""
    wanted = {"SSL_CERT_FILE": settings.cert, "HTTPS_PROXY": settings.proxy, "HTTP_PROXY": settings.proxy}
    unset = {name for name in wanted if not (environment.get(name) or environment.get(name.lower()))}
    return {name: text for name, text in wanted.items() if text and name in unset}


def without_secrets(words: Iterable[str]) -> tuple[str, ...]:
    """Words in which no URL carries a user or a password."""
    return tuple(_plain(word) for word in words)


def _plain(word: str) -> str:
    parts = urlsplit(word)
    return word if "@" not in parts.netloc else parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _section(file: Path, section: str) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, configparser.Error):
        return {}
    if not parser.has_section(section):
        return {}
    return {name.replace("-", "_"): text for name, text in parser.items(section)}
