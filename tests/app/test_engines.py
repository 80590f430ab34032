"""`plimsoll engines` and what `up` does about an engine that is not here, with packages made on the spot."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from user_shell import Shell
from wheels import write_wheel

VERSION = "2026.3.9.9"
"""Of OpenVINO GenAI, that nobody has."""


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place that packages come from."""
    directory = tmp_path / "links"
    directory.mkdir()
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    fails = (
        "__version__ = 'test'\nclass SchedulerConfig:\n    def __init__(self): raise RuntimeError('made for a test')\n"
    )
    write_wheel(directory, "openvino-genai", VERSION, {"openvino_genai.py": fails})
    write_wheel(directory, "httptools", "0.9.0", {"httptools.py": "class HttpRequestParser: pass\n"})
    return directory


def spec(tmp_path: Path, gguf: Path) -> str:
    path = tmp_path / "it.yaml"
    path.write_text(
        f"models:\n  - name: it\n    model: {gguf}\n    engine: openvino=={VERSION}\n    context: 512\n"
        "    concurrency: 1\ngateway:\n  port: 0\n"
    )
    return str(path)


def test_install_list_verify_remove(shell: Shell, links: Path) -> None:
    path = shell.ok("engines", "install", f"openvino=={VERSION}").strip()

    assert path == str(shell.home / "engines" / f"openvino-{VERSION}")
    listed = shell.json("engines", "list")
    assert [(one["engine"], one["version"], one["path"]) for one in listed["installed"]] == [
        ("openvino", VERSION, path)
    ]
    assert {one["name"]: one["version"] for one in listed["engines"]}["openvino"] == VERSION
    assert VERSION in shell.ok("engines", "list")
    assert "imports" in shell.ok("engines", "verify", "openvino")
    assert shell.ok("engines", "install", f"openvino=={VERSION}").strip() == path, "the second time it is there"
    assert shell.ok("engines", "remove", "openvino") == f"openvino-{VERSION} is removed\n"
    assert shell.json("engines", "list")["installed"] == []
    assert shell.run("engines", "verify", "openvino").returncode == 6


def test_up_asks_and_with_yes_installs_and_starts_what_it_installed(
    shell: Shell, links: Path, tmp_path: Path, small_gguf: Path
) -> None:
    words = ("up", spec(tmp_path, small_gguf), "--no-bench", "--detach")
    declined = shell.run(*words)
    assert (declined.returncode, "--yes" in declined.stderr) == (6, True)
    assert shell.json("engines", "list")["installed"] == []

    failed = shell.run(*words, "--yes")

    assert f"Installing openvino {VERSION} for cpu" in failed.stdout
    assert failed.returncode == 6
    assert "made for a test" in failed.stderr, "the engine's own words"
    assert [one["version"] for one in shell.json("engines", "list")["installed"]] == [VERSION]


def test_what_cannot_be_installed_is_refused(shell: Shell, links: Path) -> None:
    code, _, said = shell.here("engines", "install", "ollama")
    assert (code, "not installed as a Python package" in said) == (6, True)
    failed = shell.run("engines", "install", "openvino==2026.3.0.0")
    assert failed.returncode == 6
    assert "2026.3.0.0" in failed.stderr
    assert list((shell.home / "engines").glob("openvino*")) == []
    order = json.loads(shell.ok("engines", "install", "openvino", "--dry-run"))
    assert order["requirements"][0].startswith("openvino-genai==")
