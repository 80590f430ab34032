"""From a log and the way that the process ended to one diagnosis: the root error, not the last stack frame.

Every place where a signature matches is weighed by how exactly the signature names the reason and by how severe its
line is; of equals the first counts, since what comes later is mostly its consequence. What happened before the server
last was up is set aside. An exception that no signature knows counts more than the mere echo of a failure: then the
answer is "unknown to us", with the most telling lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from plimsoll.engines.diagnosis.log import Log
from plimsoll.engines.diagnosis.signatures import Signature, family_of, fill, signatures

_SEVERITY = {"error": 2, "plain": 1, "warning": -3, "info": -4, "debug": -5}
_LEAST = 3
"""A match that weighs less (known words in an information line) explains nothing; echoes are kept apart."""
_MOST_LINES, _MOST_MATCHES, _LINE_LENGTH = 6, 40, 400
_ONE_TRACEBACK = 60
"""Lines that one traceback takes at most."""

_FRAMES = ("File ", "Traceback", "^", "During handling")

_SIGNALS = {4: "illegal-instruction", 7: "bus-error", 9: "sigkill", 11: "sigsegv"}
_ENDINGS = {
    2: ("the process was interrupted (SIGINT)", "someone pressed Ctrl-C, or a supervisor asked it to stop"),
    6: ("the process ended itself (SIGABRT)", "an assertion or an uncaught C++ error; the last lines should say which"),
    15: ("the process was asked to end (SIGTERM)", "a supervisor, docker stop or an operator ended it"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """One line of the log and its number, from 1."""

    number: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What failed and why; where `known` is False we do not know why, and claim nothing beyond the lines."""

    signature: str | None
    what: str
    cause: str
    fix: str
    rule: str | None
    source: str
    lines: tuple[Telling, ...]
    known: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Match:
    signature: Signature
    index: int
    groups: dict[str, str | None]
    weight: int
    length: int
    """Of the text that matched."""

    @property
    def order(self) -> tuple[int, int, bool, int]:
        """Heaviest first, then earliest; on one line a signature of one engine, then the longer match."""
        return self.weight, -self.index, bool(self.signature.engines), self.length


def explain(
    lines: Sequence[str],
    *,
    engine: str | None = None,
    exit_code: int | None = None,
    signal: int | None = None,
    oom_killed: bool = False,
) -> Diagnosis:
    """The root error of a failed run.

    `lines` is the log; `engine` its engine as specs name it, None if not known; `exit_code` as the shell tells it
    (128 + signal) or as Python does (negative); `oom_killed` what the cgroup's or container's counters say. Never
    raises.
    """
    log = Log.of(lines)
    family = family_of(engine)
    matches = list(_matches(log, family))
    stranger = _unknown_exception(log, matches)
    number = _signal(exit_code, signal)
    best = _best(log, matches, stranger)
    root: _Match | None
    if oom_killed:
        root = _by_ending("kernel-oom-killer", _last(log))
    elif best is not None and best.signature.rank > 0 and not (number in _SIGNALS and _weak(log, best)):
        root = best
    else:
        root = _ending(log, best, stranger, number, exit_code)
    return _known(root, log, family) if root is not None else _unknown(log, stranger, best, number)


def _best(log: Log, matches: Sequence[_Match], stranger: int | None) -> _Match | None:
    """The heaviest match; of warnings beside errors only an echo; nothing where the stranger outweighs it."""
    best = max(matches, key=lambda match: match.order, default=None)
    if best is not None and log.severity(best.index) == "warning" and _errors(log):
        echoes = [match for match in matches if match.signature.rank == 0]
        best = min(echoes, key=lambda match: match.index, default=None)
    return None if best is None or (stranger is not None and _outweighs(log, stranger, best)) else best


def _weak(log: Log, match: _Match) -> bool:
    """Whether the way that the process ended says more than the match does."""
    return match.signature.rank <= 1 or log.severity(match.index) == "warning"


def _ending(
    log: Log, best: _Match | None, stranger: int | None, number: int | None, exit_code: int | None
) -> _Match | None:
    """What the signal, the exit code or a sudden silence says where the log does not; None: nothing."""
    if stranger is not None:
        return None
    if number in _SIGNALS:
        told = best is not None and log.severity(best.index) != "warning"
        return _by_ending(_SIGNALS[number], best.index if best is not None and told else _last(log))
    if exit_code == 127:
        return _by_ending("command-not-found", _last(log))
    return _by_ending("worker-vanished", best.index) if best is not None and _vanished(log, best) else None


def _by_ending(signature: str, index: int | None) -> _Match:
    where = -1 if index is None else index
    return _Match(signature=signatures()[signature], index=where, groups={}, weight=0, length=0)


def _matches(log: Log, family: Sequence[str]) -> Iterator[_Match]:
    begin = log.last_failure()
    for signature in signatures().values():
        if not signature.concerns(family):
            continue
        for pattern in signature.patterns:
            for count, found in enumerate(pattern.finditer(log.text)):
                if count >= _MOST_MATCHES:
                    break
                index = log.line_at(found.start())
                if "\n" in found[0] and log.severity(index) != "error":
                    index = log.line_at(found.end() - 1)
                weight = 2 * signature.rank + _SEVERITY[log.severity(index)] - (4 if index < begin else 0)
                if weight < _LEAST and (signature.rank > 0 or index < begin):
                    continue
                yield _Match(
                    signature=signature,
                    index=index,
                    groups=found.groupdict(),
                    weight=weight,
                    length=len(found[0]),
                )


def _unknown_exception(log: Log, matches: Sequence[_Match]) -> int | None:
    """Index of the first exception of the last failure that no signature matches."""
    explained = {match.index for match in matches}
    ignored = False
    for index in range(log.last_failure(), len(log.lines)):
        ignored = ignored or "Exception ignored in" in log.lines[index]
        if log.severity(index) != "error" or log.exception(index) is None:
            continue
        if index not in explained and not ignored:
            return index
        ignored = False
    return None


def _vanished(log: Log, echo: _Match) -> bool:
    """Whether the server was up and the echo is the first that its log says of a failure: nobody said why."""
    begin, errors = log.last_failure(), _errors(log)
    return begin > 0 and bool(errors) and 0 <= echo.index - errors[0] < _ONE_TRACEBACK


def _errors(log: Log) -> list[int]:
    return [index for index in range(log.last_failure(), len(log.lines)) if log.severity(index) == "error"]


def _outweighs(log: Log, stranger: int, best: _Match) -> bool:
    """Whether an exception that nobody knows is more likely the root than the best match."""
    if best.signature.rank == 0 or log.severity(best.index) in ("warning", "info", "debug"):
        return True
    if best.signature.rank == 1:
        return stranger < best.index or log.severity(best.index) != "error"
    if best.signature.rank == 2:
        return log.severity(best.index) == "plain"
    return False


def _signal(exit_code: int | None, signal: int | None) -> int | None:
    if signal is not None:
        return signal
    if exit_code is None:
        return None
    return -exit_code if exit_code < 0 else exit_code - 128 if 128 < exit_code < 160 else None


def _known(root: _Match, log: Log, family: Sequence[str]) -> Diagnosis:
    signature = root.signature
    return Diagnosis(
        signature=signature.id,
        what=fill(signature.what, root.groups),
        cause=fill(signature.cause, root.groups),
        fix=fill(signature.fix, root.groups),
        rule=signature.rule(family),
        source=signature.source,
        lines=_telling(log, [root.index] if root.index >= 0 else []),
        known=True,
    )


def _unknown(log: Log, stranger: int | None, echo: _Match | None, number: int | None) -> Diagnosis:
    errors = _errors(log)
    chosen = [stranger] if stranger is not None else errors[:2] or ([echo.index] if echo else [])
    last = _last(log)
    if last is not None and (len(errors) < 2 or not chosen):
        chosen.append(last)
    said = stranger if stranger is not None else errors[0] if errors and echo is None else None
    what = log.lines[said].strip()[:200] if said is not None else ""
    cause = "unknown to us"
    if number in _ENDINGS and stranger is None and echo is None:
        what, cause = _ENDINGS[number]
    elif echo is not None and stranger is None:
        what, cause = echo.signature.what, f"unknown to us: {echo.signature.cause}"
    return Diagnosis(
        signature=echo.signature.id if echo is not None and stranger is None else None,
        what=what or "the process failed, and no line of its log says why",
        cause=cause,
        fix="read the lines shown and what surrounds them; search the engine's issues for the message",
        rule=None,
        source="",
        lines=_telling(log, chosen),
        known=False,
    )


def _telling(log: Log, chosen: Sequence[int]) -> tuple[Telling, ...]:
    """The chosen lines, with the rest of a message that goes on in the lines after it."""
    indices: list[int] = []
    for index in chosen:
        indices.append(index)
        if log.exception(index) is not None:
            indices += _continued(log, index)
    unique = sorted(dict.fromkeys(indices))[:_MOST_LINES]
    return tuple(Telling(number=log.number(index), text=log.lines[index].strip()[:_LINE_LENGTH]) for index in unique)


def _continued(log: Log, index: int) -> list[int]:
    """Up to two further lines of an exception's message: no stack frames, no lines of the logger's own."""
    following = []
    for later in range(index + 1, min(index + 3, len(log.lines))):
        text = log.lines[later].strip()
        if (
            not text
            or log.severity(later) != "plain"
            or text.startswith(("File ", "Traceback", "^", "During handling"))
        ):
            break
        following.append(later)
    return following


def _last(log: Log) -> int | None:
    return next((index for index in range(len(log.lines) - 1, -1, -1) if log.lines[index].strip()), None)
