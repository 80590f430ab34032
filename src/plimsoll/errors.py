"""Every error that Plimsoll raises on purpose.

    PlimsollError
    ├── SpecError      2   what the user wrote
    ├── FactError      3   what could not be learnt of a model or a machine
    ├── PlanError      4   what does not fit or would break (carries findings)
    ├── WeightError    5   what could not be fetched, verified or converted
    ├── LaunchError    6   what did not start or stay up (carries the engine's last words)
    ├── GatewayError   7   rendered as an OpenAI error body
    └── BenchError     8   what could not be measured

The number is the exit code. Anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class PlimsollError(Exception):
    """Something the user can act on: `message` says what happened, `hint` what to do, `source` where it says so."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None, source: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.source = source


class SpecError(PlimsollError):
    """The spec or a flag is wrong; `source` is `file:line:column` where there is one."""

    exit_code = 2


class FactError(PlimsollError):
    """A model's or a machine's facts cannot be read."""

    exit_code = 3


class PlanError(PlimsollError):
    """No plan fits, or a rule forbids it; `findings` says why, one line each."""

    exit_code = 4

    def __init__(
        self, message: str, *, hint: str | None = None, source: str | None = None, findings: Sequence[str] = ()
    ) -> None:
        super().__init__(message, hint=hint, source=source)
        self.findings = tuple(findings)


class WeightError(PlimsollError):
    """Weights could not be fetched, verified or converted."""

    exit_code = 5


class LaunchError(PlimsollError):
    """A process did not start or did not stay up; `log` holds the engine's own last words."""

    exit_code = 6

    def __init__(
        self, message: str, *, hint: str | None = None, source: str | None = None, log: Sequence[str] = ()
    ) -> None:
        super().__init__(message, hint=hint, source=source)
        self.log = tuple(log)


class GatewayError(PlimsollError):
    """A request cannot be served; `status` is the HTTP status, `kind` OpenAI's error type."""

    exit_code = 7

    def __init__(
        self,
        message: str,
        *,
        status: int = 500,
        kind: str = "server_error",
        hint: str | None = None,
        source: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint, source=source)
        self.status = status
        self.kind = kind
        self.retry_after_s = retry_after_s


class BenchError(PlimsollError):
    """A measurement could not be made, or is not valid."""

    exit_code = 8
