"""A source's JSON over HTTP: patient with a busy server, plain about a refusal."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from http.client import HTTPException, HTTPMessage
from typing import Any

from plimsoll.errors import WeightError
from plimsoll.units import MIB
from plimsoll.weights.answers import reason, refusal, retry_after_s
from plimsoll.weights.http import Session, shown

_LIMIT_BYTES = 64 * MIB
_ATTEMPTS = 4

Refused = Callable[[int, HTTPMessage], WeightError | None]
"""A source's own words for a refusal; None: the usual ones."""


def get_bytes(
    url: str, session: Session, *, headers: Mapping[str, str] | None = None, refused: Refused | None = None
) -> bytes:
    """The body of the answer; WeightError if there is none after a few attempts."""
    said = ""
    for attempt in range(_ATTEMPTS):
        wait_s = 0.5 * 2.0**attempt
        try:
            response = session.open(url, headers=headers)
            body = response.read(_LIMIT_BYTES)
        except (OSError, HTTPException) as error:
            said = reason(error)
        else:
            if response.status == 200:
                return body
            if response.status < 500 and response.status not in (408, 429):
                raise (refused and refused(response.status, response.headers)) or refusal(url, response.status)
            said = f"it answers {response.status}"
            asked = retry_after_s(response.headers.get("Retry-After"))
            wait_s = wait_s if asked is None else min(asked, 30.0)
        if attempt < _ATTEMPTS - 1:
            time.sleep(wait_s)
    raise WeightError(
        f"cannot ask {shown(url)}: {said} ({_ATTEMPTS} attempts)",
        hint="check the network and the proxy; a mirror can be set with HF_ENDPOINT or MODELSCOPE_ENDPOINT",
        source=shown(url),
    )


def get_json(
    url: str, session: Session, *, headers: Mapping[str, str] | None = None, refused: Refused | None = None
) -> Any:
    """The JSON of the answer; WeightError if it is none."""
    body = get_bytes(url, session, headers=headers, refused=refused)
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise WeightError(f"{shown(url)} answers something else than JSON", source=shown(url)) from None
