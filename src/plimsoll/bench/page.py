"""A record as one HTML page: figures, tables and all pictures inside it, nothing loaded from anywhere."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence

from plimsoll.bench.pictures import draw, svg
from plimsoll.bench.records import Record, RecordedLevel, to_level
from plimsoll.bench.report import columns, remarks, table_cells

_CAPTIONS = {
    "speed": "Speed against requests at once. Grey: what the plan said before anything ran.",
    "latency": "What one more request at once costs those that are there.",
    "cdf": "How the times are spread over the requests.",
    "timeline": "The last level as it went.",
}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.1rem; margin-top: 2rem } .dim { color: #666 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .25rem .8rem; text-align: right }
th { border-bottom: 2px solid #ccc; font-weight: 600 } td { border-bottom: 1px solid #eee }
dt { font-weight: 600 } dd { margin: 0 0 .4rem 0; overflow-wrap: anywhere } figure { margin: 1rem 0 }
figcaption { color: #666; font-size: .9rem } svg { max-width: 100%; height: auto } pre { white-space: pre-wrap }
.warn { border-left: 4px solid #d55e00; padding-left: .8rem } div.wide { overflow-x: auto }
"""


def to_html(record: Record) -> str:
    """The whole page; BenchError when matplotlib is not installed."""
    title = record.name or f"Run {record.id}"
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(record.created_s))
    pictures = (
        f"<figure>{svg(figure)}<figcaption>{_CAPTIONS[name]}</figcaption></figure>"
        for name, figure in draw(record).items()
    )
    notes = remarks([to_level(level) for level in record.levels])
    parts = [
        f"<h1>{_text(title)}</h1><p class=dim>{record.id} · {when} · measured by {_text(record.tool)}</p>",
        f"<div class=wide>{_table(record.levels)}</div>",
        *(f"<p class={'warn' if 'not valid' in note else 'dim'}>{_text(note)}</p>" for note in notes),
        *pictures,
        "<h2>What was measured</h2>",
        _facts(record),
    ]
    if record.spec:
        parts.append(f"<h2>Spec</h2><pre>{_text(record.spec)}</pre>")
    head = f'<meta charset="utf-8"><meta name=viewport content="width=device-width"><title>{_text(title)}</title>'
    body = "".join(parts)
    return f"<!doctype html><html lang=en><head>{head}<style>{_STYLE}</style></head><body>{body}</body></html>\n"


def _table(levels: Sequence[RecordedLevel]) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in (columns(to_level(levels[0])) if levels else ()))
    cells = ("".join(f"<td>{_text(cell)}</td>" for cell in table_cells(to_level(level))) for level in levels)
    rows = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _facts(record: Record) -> str:
    load = record.load
    lines: list[tuple[str, str]] = [
        ("Model", ", ".join(dict.fromkeys(level.model for level in record.levels))),
        ("Engine", f"{record.engine} {record.engine_version}".strip()),
        ("Command", " ".join(record.command)),
        ("Address", record.address),
    ]
    if load is not None:
        source = f"from {load.data}" if load.data else f"{load.prompt_tokens} prompt tokens"
        lines.append(("Load", f"{load.route}, {source}, {load.output_tokens} output tokens, seed {load.seed}"))
    lines += [(f"Machine: {name}", str(value)) for name, value in record.hardware.items()]
    lines += [("Repeats", str(max((len(level.repeats) for level in record.levels), default=1)))]
    return "<dl>" + "".join(_pair(name, value) for name, value in lines if value) + "</dl>"


def _pair(name: str, value: str) -> str:
    return f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>"


def _text(value: str) -> str:
    return html.escape(value)
