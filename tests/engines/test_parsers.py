"""Rendered command lines read by the engines' own parsers, where there is a Python that has them.

PLIMSOLL_VLLM_PYTHON and PLIMSOLL_SGLANG_PYTHON name the interpreters; the version planned for is the one found there.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest
from engine_kit import FOUR_NODES, replica

from plimsoll.engines.sglang import SGLang
from plimsoll.engines.vllm import Vllm, by_ray

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

VLLM = """
import importlib, json, sys
try:
    from vllm.utils.argparse_utils import FlexibleArgumentParser
except ImportError:
    from vllm.utils import FlexibleArgumentParser
for name in ("common", "launchers", "openai"):
    try:
        make_arg_parser = importlib.import_module(f"vllm.entrypoints.{name}.cli_args").make_arg_parser
        break
    except (ImportError, AttributeError):
        continue
import vllm
found = []
for argv in json.load(sys.stdin):
    args = vars(make_arg_parser(FlexibleArgumentParser()).parse_args(argv))
    found.append({key: value if isinstance(value, (int, float, str, list, dict)) else str(value)
                  for key, value in args.items()})
print("\\nRESULT" + json.dumps([vllm.__version__, found], default=str))
"""
SGLANG = """
import argparse, json, sys
from sglang.srt.server_args import ServerArgs
from sglang.version import __version__
found = []
for argv in json.load(sys.stdin):
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    found.append({key: str(value) for key, value in vars(parser.parse_args(argv)).items()})
print("\\nRESULT" + json.dumps([__version__, found]))
"""
SETUPS: dict[str, dict[str, Any]] = {
    "chat": {"tp": 2, "context_tokens": 10240, "sequences": 16, "memory_share": 0.7, "dtype": "float16"},
    "eager": {"eager": True, "kv_dtype": "fp8_e5m2", "batched_tokens": 4096, "trust_remote_code": True},
    "draft": {"draft_model": "/models/draft"},
    "embed": {"task": "embed"},
    "rerank": {"task": "rerank"},
    "experts": {"tp": 8, "ep": 8, "experts": 256},
    "fleet": {"tp": 8, "pp": 2, "nodes": 2, "gpu_names": ("card",) * 16},
    "cpu": {"vendor": "cpu", "memory_gib": 24},
    "tuned": {"options": {"enable_prefix_caching": False, "block_size": 32}},
}


def parsed(variable: str, program: str, lines: list[list[str]]) -> tuple[str, list[dict[str, Any]]]:
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} names no interpreter")
    done = subprocess.run(
        [python, "-W", "ignore", "-c", program], input=json.dumps(lines), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    version, found = json.loads(done.stdout.rpartition("RESULT")[2])
    return version, found


def test_vllm_reads_what_is_rendered() -> None:
    version, _ = parsed("PLIMSOLL_VLLM_PYTHON", VLLM, [])
    engine = Vllm(version=version.partition("+")[0], installed=True)
    lines, planned = [], []
    for name, setup in SETUPS.items():
        own = {key: value for key, value in setup.items() if not (name == "rerank" and engine.facts.version < "0.6.6")}
        made = replica(engine, **own)
        servers = [one for one in engine.processes(made, FOUR_NODES) if "vllm" in " ".join(one.argv[:3])]
        for process in servers:
            argv = list(process.argv)
            lines.append(argv[3:] if argv[0] == "python3" else ["--model", argv[2], *argv[3:]])
            planned.append((made, process))
    _, found = parsed("PLIMSOLL_VLLM_PYTHON", VLLM, lines)
    for (made, process), args in zip(planned, found, strict=True):
        candidate = made.candidate
        assert (args["model"], args["port"], args["max_model_len"]) == ("/models/it", 8100, candidate.context_tokens)
        assert (args["tensor_parallel_size"], args["max_num_seqs"]) == (candidate.parallel.tensor, candidate.sequences)
        if candidate.nodes > 1 and not by_ray(candidate):
            assert (args["nnodes"], args["node_rank"]) == (2, process.node)
        if candidate.deployment.draft_model:
            assert "/models/draft" in json.dumps(args.get("speculative_config") or args.get("speculative_model"))


def test_sglang_reads_what_is_rendered() -> None:
    version, _ = parsed("PLIMSOLL_SGLANG_PYTHON", SGLANG, [])
    engine = SGLang(version=version, installed=True)
    setups = [setup for name, setup in SETUPS.items() if name != "tuned"]
    made = [replica(engine, **setup) for setup in setups]
    processes = [(one, process) for one in made for process in engine.processes(one, FOUR_NODES)]
    _, found = parsed("PLIMSOLL_SGLANG_PYTHON", SGLANG, [list(process.argv[3:]) for _, process in processes])
    for (one, process), args in zip(processes, found, strict=True):
        candidate = one.candidate
        assert args["tp_size"] == str(candidate.parallel.tensor)
        assert args["context_length"] == str(candidate.context_tokens)
        if candidate.nodes > 1:
            assert (args["nnodes"], args["node_rank"]) == ("2", str(process.node))
