"""A log as text: escape codes gone, each line's number and severity, where the last failure begins."""

from __future__ import annotations

import bisect
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

_ESCAPE = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[@-_])")
_LEVEL = re.compile(
    r"(?<![\w=])(?:(?P<error>ERROR|FATAL|CRITICAL|PANIC|SEVERE|level=(?:error|fatal))"
    r"|(?P<warning>(?<!NCCL )WARN|WARNING|level=warn(?:ing)?)|(?P<info>INFO|NOTICE|level=info)"
    r"|(?P<debug>DEBUG|TRACE|level=debug))\b"
    r"|(?:^|\[)(?P<glog>[EFWI])(?:\d{3,4} \d| \w+\.cpp)|^[\d.]+ (?P<letter>[EWID]) "
    r"|\[(?P<bracket>error|warn(?:ing)?|info|debug)\]|\b(?P<python>[A-Z]\w*Warning): "
)
_ERROR_WORDS = re.compile(
    r"NCCL WARN|^(?:\S+: ){0,2}(?:error|fatal|panic|Error)\b|\b(?:error|Error|ERROR): |GGML_ASSERT|\bfatal\b"
)
_ERROR_FIELD = re.compile(r"\b(?:error|err)=\"")
_NAMED = {"error": "error", "warning": "warning", "info": "info", "debug": "debug", "python": "warning"}
_LETTERS = {"E": "error", "F": "error", "W": "warning", "I": "info", "D": "debug",
            "e": "error", "w": "warning", "i": "info", "d": "debug"}  # fmt: skip
_EXCEPTION = re.compile(
    r"^(?P<prefix>.{0,160}?)(?<![\w.])(?P<type>(?:[a-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt|Failure|Fault))"
    r"(?::\s+(?P<words>\S.*)|:?)$"
)
_CODE = re.compile(
    r"^\s*+(?:\([^)]*\) ?)?(?:[A-Z]+ \S+ \S+ \[[^\]]*\] ?)?\s*+(?:File \"|raise |return |self\.|\^+$|~+|@)"
)
_READY = re.compile(
    r"Application startup complete|server is listening on|\blistening on http|Daemon start success"
    r"|The server is fired up and ready to roll"
    r"|llama runner started in|main: (?:server|model) (?:is listening|loaded)|all slots are idle"
    r"|\"(?:GET|POST) \S+ HTTP/[\d.]+\" 200"
)
_DIGITS = re.compile(r"\d+")
_RELAYED = re.compile(r"[-|>\]:] +$")
"""What stands before an exception where one process logs what its child wrote, at a level of its own."""
_REPEATED = 3
_LINE = 1_000
_HEAD, _TAIL = 300_000, 1_500_000
"""Characters of a very long log that are read: its start (settings, versions) and its end (the failure)."""


@dataclass(slots=True)
class Log:
    """Lines without escape codes. `text` is what is searched: all but the repetitions of information lines."""

    lines: list[str]
    text: str = ""
    _starts: list[int] = field(default_factory=list, repr=False)
    _kept: list[int] = field(default_factory=list, repr=False)
    _skipped: int = 0
    """Lines left out between head and tail of a very long log."""
    _head: int = 0
    _severities: dict[int, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, raw: Sequence[str]) -> Log:
        """The log of `raw` lines, with or without line ends; docker's JSON lines are unwrapped."""
        lines = [_plain(line) for line in raw]
        log = cls(lines=lines)
        if sum(map(len, lines)) > _HEAD + _TAIL:
            first, last = _reach(lines, _HEAD), len(lines) - _reach(lines[::-1], _TAIL)
            if last > first:
                log = cls(lines=lines[:first] + lines[last:], _head=first, _skipped=last - first)
        log._join()
        return log

    def _join(self) -> None:
        seen: Counter[str] = Counter()
        at = 0
        for index, line in enumerate(self.lines):
            shape = _DIGITS.sub("0", line)
            seen[shape] += 1
            if seen[shape] > _REPEATED and self.severity(index) in ("info", "debug"):
                continue
            self._starts.append(at)
            self._kept.append(index)
            at += len(line) + 1
        self.text = "\n".join(self.lines[index] for index in self._kept)

    def line_at(self, offset: int) -> int:
        """Index of the line that holds the character of `text` at `offset`."""
        return self._kept[bisect.bisect_right(self._starts, offset) - 1]

    def number(self, index: int) -> int:
        """The line's number in the log as it was given."""
        return index + 1 + (self._skipped if self._skipped and index >= self._head else 0)

    def severity(self, index: int) -> str:
        """error, warning, info, debug, or plain where the line does not say."""
        if index not in self._severities:
            self._severities[index] = self._severity(index)
        return self._severities[index]

    def _severity(self, index: int) -> str:
        line = self.lines[index]
        exception = self.exception(index)
        level = _LEVEL.search(line[:200] if exception is None else exception["prefix"])
        if level is not None and level.lastgroup is not None:
            found = _NAMED.get(level.lastgroup) or _LETTERS[level[level.lastgroup][0]]
            if found == "info" and exception is not None and _RELAYED.search(exception["prefix"]):
                return "error"
            return "error" if found == "info" and _ERROR_FIELD.search(line) else found
        return "error" if _ERROR_WORDS.search(line) or exception else "plain"

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
    return line.rsplit("\r", 1)[-1].rstrip().replace("\0", "")[:_LINE]


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
