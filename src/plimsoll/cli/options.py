"""Flags that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Target = Annotated[
    str | None,
    typer.Argument(
        metavar="[TARGET]",
        help="A spec (.yaml), a .gguf file, a model directory or a hub id. Left out: a small built-in model.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")]
Engine = Annotated[str | None, typer.Option(help="Use this engine instead of choosing one.")]
Context = Annotated[int | None, typer.Option(min=1, help="Tokens of context for each request.")]
Concurrency = Annotated[int | None, typer.Option(min=1, help="Requests served at once.")]
Host = Annotated[str | None, typer.Option(help="Address that the gateway listens on.")]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Port of the gateway; 0: any free one.")]
On = Annotated[str | None, typer.Option(help='Plan for other hardware, in words: "a6000:2", "4x8 3090 pcie".')]
Name = Annotated[
    str | None,
    typer.Argument(metavar="[NAME]", help="A deployment, as `plimsoll ps` names it. Left out: the only one."),
]
