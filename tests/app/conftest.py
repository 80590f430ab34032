"""Homes nobody used, models and specs for them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf_bytes import gguf, llama
from user_shell import FakeSpec, Shell

from plimsoll.app.settings import Settings
from plimsoll.app.target import DEFAULT_MODEL, DEFAULT_SHA256
from plimsoll.weights.fetch import Request, fetch


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A home that nobody used; whatever still runs at the end is stopped."""
    made = Shell(tmp_path / "home")
    yield made
    if (made.home / "state").is_dir():
        made.run("down", "--all")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The built-in model's file, in the user's own store: fetched once for all runs."""
    request = Request(ref=DEFAULT_MODEL, sha256=DEFAULT_SHA256)
    return fetch(request, store=Settings.resolve(os.environ).store_dir)


@pytest.fixture(scope="session")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole GGUF of a few kilobytes, for the fake engine, which never reads it."""
    path = tmp_path_factory.mktemp("model") / "small.gguf"
    path.write_bytes(gguf(*llama()))
    return path


@pytest.fixture
def fake_spec(tmp_path: Path, small_gguf: Path) -> FakeSpec:
    """Writes a spec that serves the fake engine and returns its path."""

    def write(*arguments: str, name: str = "demo", port: int = 0) -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(
            f"""
models:
  - name: {name}
    model: {small_gguf}
    engine: fake
    concurrency: 4
    context: 2048
    extra_args: {json.dumps(arguments)}
gateway:
  port: {port}
"""
        )
        return str(path)

    return write
