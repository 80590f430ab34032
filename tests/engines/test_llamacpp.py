"""llama.cpp's adapter and Ollama's on top of it: arguments that parse, fleets over RPC, logs of many builds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine_kit import FOUR_NODES, PORTS, argv_of, check_golden, replica

from plimsoll.engines.llamacpp import LlamaCpp
from plimsoll.engines.ollama import Ollama
from plimsoll.engines.serve_llamacpp import parser
from plimsoll.errors import PlanError
from plimsoll.units import GIB, MIB

LLAMACPP = LlamaCpp(command=("llama-server",), version="b11549")
OLLAMA = Ollama(installed=True)
R1 = {"nodes": 2, "gpu_names": ("NVIDIA GeForce RTX 3090",) * 14, "arch": "8.6", "memory_gib": 24, "layers": 61,
      "context_tokens": 4096, "format": "gguf"}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "setup"),
    [
        ("cpu", {"vendor": "cpu", "sequences": 16, "context_tokens": 1024, "options": {"threads": 2}}),
        ("cards", {"gpus": 2, "kv_dtype": "q8_0", "options": {"tensor_split": "3,1", "override_tensor": "exps=CPU"}}),
        ("embed", {"task": "embed", "vendor": "cpu", "batched_tokens": 512}),
        ("fleet", R1),
        ("user", {"extra_args": ("-ngl", "30", "--no-warmup"), "options": {"gpu_layers": 30, "no_warmup": True}}),
    ],
)
def test_golden(name: str, setup: dict) -> None:
    check_golden(f"llamacpp_{name}", LLAMACPP.processes(replica(LLAMACPP, path="/m/m.gguf", **setup), FOUR_NODES))


@pytest.mark.parametrize("setup", [{"vendor": "cpu"}, {"gpus": 2}, {"task": "rerank"}, {"options": {"gpu_layers": 9}}])
def test_the_wheels_server_takes_what_is_rendered(setup: dict) -> None:
    made = {"context_tokens": 2048, "sequences": 4, "kv_dtype": "q8_0"} | setup
    args = parser().parse_args(argv_of(LLAMACPP, path="/m/m.gguf", **made)[1:])
    assert (args.model, args.alias, args.port, args.ctx_size, args.parallel) == ("/m/m.gguf", ["served"], 8100, 8192, 4)
    assert (args.cache_type_k, args.cache_type_v, args.cache_ram, args.fit) == ("q8_0", "q8_0", 0, "off")
    assert args.n_gpu_layers == (-1 if "vendor" in setup else 9 if "options" in setup else 33)
    assert args.reranking == ("task" in setup)


def test_a_fleet_has_fifteen_cards_at_most() -> None:
    fleet = replica(LLAMACPP, **{**R1, "gpu_names": ("card",) * 16})
    with pytest.raises(PlanError, match="15 cards at most, not 16"):
        LLAMACPP.processes(fleet, FOUR_NODES)


def test_a_plan_for_the_cpu_of_a_host_with_cards_leaves_them_alone() -> None:
    made = replica(LLAMACPP, gpus=2)
    on_cpu = replace(made, candidate=replace(made.candidate, devices=(made.candidate.host.cpu,)))
    (process,) = LLAMACPP.processes(on_cpu, PORTS)
    assert process.env["CUDA_VISIBLE_DEVICES"] == ""
    assert process.argv[process.argv.index("--n-gpu-layers") + 1] == "0"
    (other,) = OLLAMA.processes(on_cpu, PORTS)
    assert "PARAMETER num_gpu 0" in other.files["/run/plimsoll/served-1/Modelfile"]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            ["load_tensors: CPU_Mapped model buffer size =   682.03 MiB",
             "load_tensors:        CUDA0 model buffer size = 14634.73 MiB",
             "llama_kv_cache:      CUDA0 KV buffer size =  2720.00 MiB", "CUDA0 compute buffer size = 306.75 MiB",
             "llama_context: n_ctx         = 32768", "llama_context: n_seq_max     = 1"],
            {"weights_bytes": 14634.73, "kv_cache_bytes": 2720, "compute_bytes": 306.75, "kv_tokens": 32768 / MIB,
             "sequences": 1 / MIB},
        ),
        (  # A build of 2024.
            ["llm_load_tensors:      CUDA0 buffer size = 12603.02 MiB",
             "llm_load_tensors:        CPU buffer size =   281.81 MiB",
             "llama_kv_cache_init:      CUDA0 KV buffer size =  1024.00 MiB",
             "llama_new_context_with_model: n_ctx      = 2048",
             "llama_new_context_with_model:      CUDA0 compute buffer size =   164.00 MiB"],
            {"weights_bytes": 12603.02, "kv_cache_bytes": 1024, "compute_bytes": 164, "kv_tokens": 2048 / MIB},
        ),
        (
            ["CUDA0 model buffer size = 5060.88 MiB", "KV buffer size = 4352.00 MiB (262144 cells, 8 layers, 2/1 seqs)",
             "CUDA0 KV buffer size = 4352.00 MiB", "CUDA0 RS buffer size = 100.50 MiB"],
            {"weights_bytes": 5060.88, "kv_cache_bytes": 4452.5},
        ),
    ],
)  # fmt: skip
def test_log(lines: list[str], expected: dict[str, float]) -> None:
    found = {name: value / MIB for name, value in LLAMACPP.read_log(lines).quantities.items()}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "path", "setup"),
    [
        ("num_gpu", "/m/r1.gguf", {"gpus": 8, "options": {"num_gpu": 16, "temperature": 0.6}, "sequences": 2}),
        ("pulled", "deepseek-r1:671b-q4_K_M", {"kv_dtype": "q8_0", "options": {"ollama_load_timeout": "30m"}}),
        ("embed", "/m/nomic.gguf", {"task": "embed", "vendor": "cpu"}),
    ],
)
def test_golden_of_ollama(name: str, path: str, setup: dict) -> None:
    check_golden(f"ollama_{name}", OLLAMA.processes(replica(OLLAMA, path=path, **setup), PORTS))


def test_log_of_ollama() -> None:
    observed = OLLAMA.read_log(
        [
            'time=2026-01-01 level=INFO source=routes.go:1259 msg="Listening on 127.0.0.1:11434 (version 0.5.7)"',
            'msg=offload library=cuda memory.required.full="20.7 GiB" memory.required.partial="14.6 GiB"',
            "load_tensors:        CUDA0 model buffer size = 18926.01 MiB",
            'msg="llama runner started in 3.52 seconds"',
        ]
    )
    assert observed.version == "0.5.7"
    assert observed.quantities == pytest.approx(
        {"weights_bytes": 18926.01 * MIB, "total_bytes": 20.7 * GIB, "load_s": 3.52}
    )
