"""What a server's answer means: its refusals in words, and the headers that say how much of what it is."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

from plimsoll.errors import WeightError
from plimsoll.weights.http import Response, shown


def refusal(url: str, status: int) -> WeightError:
    """The error for an answer that will not change by asking again."""
    why, hint = {
        401: ("asks for credentials", "give a token (HF_TOKEN, ~/.netrc)"),
        403: ("forbids it", "check that your token may read it, and that its licence was accepted on the hub's page"),
        404: ("does not have it", "check the name, the revision and the version"),
        410: ("has removed it", "choose another revision or source"),
    }.get(status, (f"answers {status}", "check the address"))
    return WeightError(f"{shown(url)}: the server {why} ({status})", hint=hint, source=shown(url))


def reason(error: Exception) -> str:
    """An error of the line in a few words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def total_bytes(response: Response) -> int | None:
    """Size of the whole file, from Content-Range or Content-Length; None if the answer does not tell."""
    if response.status == 206:
        total = response.headers.get("Content-Range", "").rpartition("/")[2].strip()
    else:
        total = response.headers.get("Content-Length", "").strip()
    return int(total) if total.isdecimal() and len(total) < 20 else None


def range_start(response: Response) -> int | None:
    """Where the sent range begins."""
    unit, _, rest = response.headers.get("Content-Range", "").strip().partition(" ")
    start = rest.partition("-")[0].strip()
    return int(start) if unit == "bytes" and start.isdecimal() and len(start) < 20 else None


def retry_after_s(value: str | None) -> float | None:
    """Seconds to wait by a Retry-After header, which is a number or a date."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, at.timestamp() - time.time())
