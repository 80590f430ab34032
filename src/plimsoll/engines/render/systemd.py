"""systemd units: one for each process, those that must come before it named and waited for.

Quoting is systemd's own (systemd.syntax(7), systemd.exec(5)): double quotes with C escapes, `%` doubled everywhere, `$`
doubled in command lines.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from plimsoll.engines.render.placed import Placed, RenderedFile, by_node, health_url, node_suffix, wait_command

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r", "\a": "\\a", "\b": "\\b", "\f": "\\f",
            "\v": "\\v"}  # fmt: skip

_PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)


def systemd_units(placed: Sequence[Placed]) -> tuple[RenderedFile, ...]:
    """`plimsoll-NAME.service` for each process; in a directory for each node where there are several.

    Files of a process lie beside the units, below `files`, under the path that they are to have.
    """
    rendered = []
    for node, group in by_node(placed):
        directory = node_suffix(placed, node).removeprefix("-")
        for one in group:
            rendered.append(RenderedFile(path=_at(directory, unit_name(one.name)), text=_unit(one)))
            rendered += [
                RenderedFile(path=_at(directory, f"files/{path.lstrip('./')}"), text=text)
                for path, text in one.process.files.items()
            ]
    return tuple(rendered)


def unit_name(name: str) -> str:
    """The unit's file name."""
    return f"plimsoll-{name}.service"


def quote_word(text: str, *, command: bool = True) -> str:
    """One word of a command line (`command`) or of an Environment= setting, in double quotes where it needs them."""
    escaped = "".join(_escape(character) for character in text).replace("%", "%%")
    if command:
        escaped = escaped.replace("$", "$$")
    return escaped if _PLAIN.fullmatch(text) else f'"{escaped}"'


def _escape(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    return f"\\x{ord(character):02x}" if ord(character) < 32 or ord(character) == 127 else character


def command_line(argv: Sequence[str]) -> str:
    """A value of ExecStart=. The program is looked up in PATH by systemd itself where it has no slash."""
    lines: list[str] = []
    for word in argv:
        if not lines or word.startswith("--"):
            lines.append(quote_word(word))
        else:
            lines[-1] += f" {quote_word(word)}"
    return " \\\n    ".join(lines)


def _at(directory: str, path: str) -> str:
    return f"{directory}/{path}" if directory else path


def _unit(one: Placed) -> str:
    process = one.process
    before = [unit_name(one.sibling_name(other)) for other in one.before()]
    waits = [wait_command(url) for other in one.before() if (url := health_url(other))]
    lines = [
        "[Unit]",
        f"Description={one.replica.name}: {process.name}".replace("%", "%%"),
        f"After={' '.join(['network-online.target', *before])}",
        "Wants=network-online.target",
        *([f"Requires={' '.join(before)}"] if before else []),
        "StartLimitIntervalSec=600",
        "StartLimitBurst=5",
        "",
        "[Service]",
        "Type=exec",
        *(f"# {path} is files/{path.lstrip('./')}: install -D --mode 640" for path in process.files),
        *(f"Environment={quote_word(f'{key}={value}', command=False)}" for key, value in sorted(process.env.items())),
        *([f"WorkingDirectory={process.cwd.replace('%', '%%')}"] if process.cwd else []),
        *(f"ExecStartPre={command_line(argv)}" for argv in process.setup),
        *(f"ExecStartPre={command_line(('/bin/sh', '-c', wait))}" for wait in waits),
        f"ExecStart={command_line(process.argv)}",
        *_once_up(one),
        "Restart=on-failure",
        "RestartSec=3",
        "KillMode=mixed",
        "TimeoutStartSec=infinity",
        "TimeoutStopSec=30",
        "LimitNOFILE=1048576",
        "LimitMEMLOCK=infinity",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines) + "\n"


def _once_up(one: Placed) -> list[str]:
    url = health_url(one.process)
    waits = [("/bin/sh", "-c", wait_command(url))] if url and one.process.once_up else []
    return [f"ExecStartPost={command_line(argv)}" for argv in (*waits, *one.process.once_up)]
