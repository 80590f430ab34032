"""`plimsoll render` for machines that are not here, with engines that are not installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from plimsoll.cli.main import main

MODEL = ("render", "Qwen/Qwen2.5-7B-Instruct", "--on", "a6000:2")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setenv("PLIMSOLL_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(sys, "argv", ["plimsoll", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def test_files_are_written(run, tmp_path: Path) -> None:
    code, out, _ = run(*MODEL, "--engine", "vllm", "--as", "compose", "--out", str(tmp_path / "there"))
    assert (code, out.strip()) == (0, str(tmp_path / "there" / "compose.yaml"))
    (service,) = yaml.safe_load(Path(out.strip()).read_text())["services"].values()
    assert service["image"].startswith("vllm/vllm-openai:v") and "Qwen/Qwen2.5-7B-Instruct" in service["command"]


def test_a_script_stands_alone_on_stdout(run) -> None:
    code, out, err = run(*MODEL, "--engine", "sglang", "--as", "shell")
    assert code == 0 and out.startswith("#!/usr/bin/env bash\n") and "sglang.launch_server" in out
    assert not err


def test_files_as_json(run) -> None:
    code, out, _ = run(*MODEL, "--engine", "fastchat", "--as", "systemd", "--json")
    paths = [file["path"] for file in json.loads(out)]
    assert code == 0 and paths == [f"plimsoll-qwen2-5-7b-instruct-1-{name}.service" for name in
                                   ("controller", "worker", "api")]  # fmt: skip


def test_what_a_form_cannot_hold_is_said(run) -> None:
    code, out, err = run(*MODEL, "--engine", "sglang", "--as", "ray")
    assert (code, out) == (4, "") and "a Ray cluster is for vLLM over several nodes" in err
