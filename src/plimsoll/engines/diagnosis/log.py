"""A log as text: escape codes gone, each line's number and severity, where the last failure begins."""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_ESCAPE = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[@-_])")
_LEVEL = re.compile(
    r"\b(?P<error>ERROR|FATAL|CRITICAL|PANIC|SEVERE|level=(?:error|fatal))\b"
    r"|\b(?P<warning>WARN|WARNING|level=warn(?:ing)?)\b|\b(?P<info>INFO|NOTICE|level=info)\b"
    r"|\b(?P<debug>DEBUG|TRACE|level=debug)\b"
    r"|^(?P<glog>[EFWI])\d{4} \d|^[\d.]+ (?P<letter>[EWID]) |\[(?P<bracket>error|warn(?:ing)?|info|debug)\]"
)
_ERROR_WORDS = re.compile(
    r"NCCL WARN|^(?:\S+: ){0,2}(?:error|fatal|panic|Error)\b|\b(?:error|Error|ERROR): |GGML_ASSERT|\bfatal\b"
)
_EXCEPTION = re.compile(
    r"^(?P<prefix>.{0,160}?)(?<![\w.])(?P<type>(?:[a-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt|Failure|Fault))"
    r"(?::\s+(?P<words>\S.*)|:?)$"
)
_CODE = re.compile(r"^(?:\S* ?){0,6}?\s*(?:File \"|raise |return |self\.|\^+$|~+|@)")
_READY = re.compile(
    r"Application startup complete|server is listening on|The server is fired up and ready to roll|Daemon start success"
    r"|llama runner started in|main: (?:server|model) (?:is listening|loaded)|all slots are idle"
    r"|\"(?:GET|POST) \S+ HTTP/[\d.]+\" 200"
)
_HEAD, _TAIL = 300_000, 1_500_000
"""Characters of a very long log that are read: its start (settings, versions) and its end (the failure)."""


@dataclass(slots=True)
class Log:
    """Lines without escape codes, joined into `text`; numbers count from 1."""

    lines: list[str]
    text: str
    starts: list[int] = field(repr=False)
    skipped: int = 0
    """Lines left out between head and tail of a very long log."""
    head: int = 0

    @classmethod
    def of(cls, raw: Sequence[str]) -> Log:
        """The log of `raw` lines, with or without line ends; docker's JSON lines are unwrapped."""
        lines = [_plain(line) for line in raw]
        head, skipped = len(lines), 0
        if sum(map(len, lines)) > _HEAD + _TAIL:
            first, last = _reach(lines, _HEAD), len(lines) - _reach(lines[::-1], _TAIL)
            if last > first:
                head, skipped = first, last - first
                lines = lines[:first] + lines[last:]
        starts, at = [], 0
        for line in lines:
            starts.append(at)
            at += len(line) + 1
        return cls(lines=lines, text="\n".join(lines), starts=starts, skipped=skipped, head=head)

    def line_at(self, offset: int) -> int:
        """Index of the line that holds the character at `offset`."""
        return bisect.bisect_right(self.starts, offset) - 1

    def number(self, index: int) -> int:
        """The line's number in the log as it was given."""
        return index + 1 + (self.skipped if index >= self.head else 0)

    def severity(self, index: int) -> str:
        """error, warning, info, debug, or plain where the line does not say."""
        line = self.lines[index]
        level = _LEVEL.search(line[:200])
        if level is not None:
            letter = level["glog"] or level["letter"]
            if letter:
                return {"E": "error", "F": "error", "W": "warning", "I": "info", "D": "debug"}[letter]
            word = level.lastgroup or ""
            named = level["bracket"][:4] if word == "bracket" else word
            return {"warn": "warning", "erro": "error", "debu": "debug"}.get(named, named)
        return "error" if _ERROR_WORDS.search(line) or self.exception(index) else "plain"

    def exception(self, index: int) -> re.Match[str] | None:
        """The line as the last one of a Python traceback ("ValueError: ..."), if it is one."""
        line = self.lines[index]
        if len(line) > 2000 or _CODE.match(line):
            return None
        found = _EXCEPTION.match(line)
        if found is None or "raise " in found["prefix"] or "except " in found["prefix"]:
            return None
        return found

    def last_failure(self) -> int:
        """Index where the last failure begins: after the last sign that the server was up, if errors follow it."""
        for index in range(len(self.lines) - 1, -1, -1):
            if _READY.search(self.lines[index]):
                after = range(index + 1, len(self.lines))
                return index + 1 if any(self.severity(later) == "error" for later in after) else 0
        return 0


def _plain(line: str) -> str:
    line = _ESCAPE.sub("", line.rstrip("\r\n"))
    if line.startswith('{"'):
        line = _unwrapped(line)
    # A progress bar writes over itself with carriage returns: what it showed last is what counts.
    return line.rsplit("\r", 1)[-1].rstrip().replace("\0", "")


def _unwrapped(line: str) -> str:
    try:
        row = json.loads(line)
    except ValueError:
        return line
    words = next((row[key] for key in ("log", "message", "msg") if isinstance(row.get(key), str)), None)
    if words is None:
        return line
    level = row.get("level") or row.get("levelname")
    return f"{str(level).upper()} {words}".rstrip("\n") if level else str(words).rstrip("\n")


def _reach(lines: Sequence[str], characters: int) -> int:
    """How many of the first `lines` hold `characters`."""
    total = 0
    for index, line in enumerate(lines):
        total += len(line) + 1
        if total > characters:
            return index
    return len(lines)
