"""One file over HTTP: parallel ranges, resumed after a cut or a kill, checked while it arrives, never half in place."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from plimsoll.errors import WeightError
from plimsoll.weights.http import Session
from plimsoll.weights.ranges import Transfer
from plimsoll.weights.types import Arrived, Expected, Patience, Progress

__all__ = ["Arrived", "Expected", "Patience", "Progress", "download"]


def download(
    urls: Sequence[str],
    target: Path,
    *,
    session: Session,
    expected: Expected | None = None,
    label: str | None = None,
    progress: Progress | None = None,
    connections: int = 4,
    patience: Patience | None = None,
    cancelled: threading.Event | None = None,
) -> Arrived:
    """Fetch `target` from the first of `urls` (copies of the same file) that gives it; a part of it is continued.

    `target` appears only when it is whole and checked against `expected`. WeightError otherwise, with the reason;
    what has arrived stays for the next time. `label` is what messages call the file; `cancelled`, when
    another thread sets it, ends the fetch with WeightError.
    """
    if not urls:
        raise WeightError(f"there is no address to fetch {target.name} from")
    for position, url in enumerate(urls, 1):
        transfer = Transfer(
            url=url, target=target, label=label or target.name, session=session, expected=expected or Expected(),
            progress=progress, connections=max(1, connections), patience=patience or Patience(),
            cancelled=cancelled or threading.Event(),
        )  # fmt: skip
        try:
            return transfer.run()
        except WeightError:
            if position == len(urls):
                raise
    raise AssertionError("unreachable: the last address returned or raised")
