"""A run as a record: everything that it was and everything that was measured, as one JSON document."""

from __future__ import annotations

import base64
import hashlib
import time
import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from plimsoll.bench.load import Load
from plimsoll.bench.measure import Level
from plimsoll.bench.pace import Pace
from plimsoll.bench.row import Row
from plimsoll.bench.run import Generator, Run
from plimsoll.bench.sampling import Sample
from plimsoll.bench.summary import Slo, Summary
from plimsoll.errors import BenchError

NOBODY = Generator(cpu_share=0.0, timer_lag_s=0.0, peak_in_flight=0, connections_opened=0)
"""Of a run that another tool made."""
FORMAT = 1
"""Of the document; a reader refuses one that is newer than itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """A run with its rows packed: JSON columns, deflated, in base64; times in microseconds from the window's start."""

    window_s: float
    generator: Generator
    rows: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedLevel:
    """One pace."""

    pace: Pace
    model: str
    summary: Summary
    repeats: tuple[Summary, ...] = ()
    runs: tuple[RecordedRun, ...] = ()
    """All repeats, in order; empty when only figures were imported."""
    middle: int = 0
    """Which of them the summary is of."""
    samples: tuple[Sample, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One measurement, to be kept, compared and drawn."""

    format: int = FORMAT
    created_s: float
    """Seconds since the epoch; for people, never for durations."""
    name: str = ""
    address: str = ""
    """Where the load went, without its key."""
    load: Load | None = None
    slo: Slo | None = None
    engine: str = ""
    engine_version: str = ""
    command: tuple[str, ...] = ()
    """The engine's own command line."""
    spec: str = ""
    plan: Mapping[str, Any] | None = None
    hardware: Mapping[str, Any] = field(default_factory=dict)
    tool: str = "plimsoll"
    """What measured: another tool's name for an imported record."""
    levels: tuple[RecordedLevel, ...] = ()

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits of the document's hash: the same content has the same name."""
        return hashlib.sha256(to_json(self)).hexdigest()[:12]


def make_record(levels: Sequence[Level], *, load: Load | None, address: str, **known: Any) -> Record:
    """The record of measured levels; `known` are further fields of Record."""
    return Record(
        created_s=time.time(), address=address, load=load, levels=tuple(_recorded(level) for level in levels), **known
    )


@cache
def _adapter() -> TypeAdapter[Record]:
    return TypeAdapter(Record)


def to_json(record: Record) -> bytes:
    """The record as one JSON document."""
    return _adapter().dump_json(record)


def from_json(text: str | bytes) -> Record:
    """The record of `to_json`; BenchError when it is none, or of a newer Plimsoll."""
    try:
        found = orjson.loads(text)
        if isinstance(found, dict) and found.get("format", 0) > FORMAT:
            raise BenchError(
                f"this record has format {found['format']}, known is {FORMAT}", hint="upgrade plimsoll-llm"
            )
        return _adapter().validate_python(found)
    except orjson.JSONDecodeError as error:
        raise BenchError(f"not a record: {error}", hint="a record is the file of `plimsoll bench --out`") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise BenchError(
            f"not a record of Plimsoll: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            hint="other tools' files are read with `plimsoll runs import`",
        ) from error


def _recorded(level: Level) -> RecordedLevel:
    runs = level.runs or (level.run,)
    origin_s = level.run.window_s[0]
    return RecordedLevel(
        pace=level.pace,
        model=level.model,
        summary=level.summary,
        repeats=level.repeats,
        runs=tuple(
            RecordedRun(window_s=run.window_s[1] - run.window_s[0], generator=run.generator, rows=pack(run))
            for run in runs
        ),
        middle=runs.index(level.run),
        samples=tuple(replace(sample, at_s=sample.at_s - origin_s) for sample in level.samples),
        notes=level.notes,
    )


def unpack_run(recorded: RecordedRun) -> Run:
    """The run again; its window starts at 0."""
    return Run(rows=unpack(recorded.rows), window_s=(0.0, recorded.window_s), generator=recorded.generator)


def to_level(recorded: RecordedLevel) -> Level:
    """The level again; its run has no rows where only figures were kept."""
    runs = tuple(unpack_run(run) for run in recorded.runs)
    return Level(
        pace=recorded.pace,
        summary=recorded.summary,
        run=runs[recorded.middle] if runs else Run(rows=(), window_s=(0.0, 0.0), generator=NOBODY),
        model=recorded.model,
        notes=recorded.notes,
        repeats=recorded.repeats,
        runs=runs,
        samples=recorded.samples,
    )


_TIMES = ("intended_s", "sent_s", "end_s", "first_answer_s")
_PLAIN = tuple(f.name for f in fields(Row) if f.name not in (*_TIMES, "arrivals_s", "arrival_tokens", "text"))


def pack(run: Run) -> str:
    """Rows as text, one column after the other; the answers themselves are not kept."""
    origin_s = run.window_s[0]

    def micro(at_s: float | None) -> int | None:
        return None if at_s is None else round((at_s - origin_s) * 1e6)

    columns: dict[str, Any] = {name: [micro(getattr(row, name)) for row in run.rows] for name in _TIMES}
    columns |= {name: [getattr(row, name) for row in run.rows] for name in _PLAIN}
    # Gaps repeat where stamps do not: they deflate to a third.
    columns["arrivals"] = [_gaps([round((t - origin_s) * 1e6) for t in row.arrivals_s]) for row in run.rows]
    columns["tokens"] = [
        None if all(n == 1.0 for n in row.arrival_tokens) else [round(n, 4) for n in row.arrival_tokens]
        for row in run.rows
    ]
    return base64.b85encode(zlib.compress(orjson.dumps(columns), 6)).decode()


def unpack(text: str) -> tuple[Row, ...]:
    """The rows of `pack`; BenchError when the text is damaged."""
    try:
        columns = orjson.loads(zlib.decompress(base64.b85decode(text)))
    except (ValueError, zlib.error) as error:
        raise BenchError("the rows of this record are damaged", hint="was the file cut off?") from error
    rows = []
    for i in range(len(columns["intended_s"])):
        known: dict[str, Any] = {name: columns[name][i] for name in _PLAIN}
        known |= {name: None if columns[name][i] is None else columns[name][i] / 1e6 for name in _TIMES}
        stamps, at = array("d"), 0
        for gap in columns["arrivals"][i]:
            at += gap
            stamps.append(at / 1e6)
        tokens = columns["tokens"][i]
        counts = array("d", [1.0] * len(stamps) if tokens is None else tokens)
        rows.append(Row(**known, arrivals_s=stamps, arrival_tokens=counts))
    return tuple(rows)


def _gaps(stamps: list[int]) -> list[int]:
    return [stamp - before for before, stamp in zip([0, *stamps], stamps, strict=False)]
