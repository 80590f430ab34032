"""The adapters of transformers serve, FastChat and OpenVINO GenAI."""

from __future__ import annotations

import pytest
from engine_kit import PORTS, check_golden, replica

from plimsoll.engines.fastchat import FastChat
from plimsoll.engines.openvino import OpenVino
from plimsoll.engines.transformers import Transformers
from plimsoll.units import GIB

ENGINES = {
    "transformers": Transformers(installed=True),
    "fastchat": FastChat(command=("python3",), installed=True),
    "openvino": OpenVino(command=("python3", "-m", "plimsoll.engines.serve_openvino"), installed=True),
}


@pytest.mark.parametrize(
    ("engine", "name", "setup"),
    [
        ("transformers", "cpu", {"vendor": "cpu", "sequences": 16}),
        ("transformers", "cards", {"gpus": 2, "dtype": "float16", "quantization": "bnb-4bit"}),
        ("fastchat", "web", {"gpus": 2, "options": {"web": True}, "dtype": "float16"}),
        ("fastchat", "vllm", {"options": {"worker": "vllm_worker"}, "extra_args": ("worker=vllm_worker",), "tp": 2}),
        ("openvino", "cpu", {"vendor": "cpu", "sequences": 16, "context_tokens": 2048, "ram_bytes": 24 * GIB}),
    ],
)
def test_golden(engine: str, name: str, setup: dict) -> None:
    adapter = ENGINES[engine]
    made = replica(adapter, path="/m/m.gguf" if engine == "openvino" else "/m/it", **setup)
    check_golden(f"{engine}_{name}", adapter.processes(made, PORTS))


def test_fastchats_helpers_obey_without_a_key_and_stay_on_the_host() -> None:
    made = replica(ENGINES["fastchat"])
    processes = {process.name: process for process in ENGINES["fastchat"].processes(made, PORTS)}
    for name in ("controller", "worker"):
        argv = processes[name].argv
        assert argv[argv.index("--host") + 1] == "127.0.0.1"
    assert processes["api"].after == ("worker",) and processes["worker"].after == ("controller",)


def test_fastchats_flag_for_remote_code_turns_it_off() -> None:
    options = {"worker": "vllm_worker"}
    for trusted in (True, False):
        made = replica(ENGINES["fastchat"], options=options, trust_remote_code=trusted)
        worker = ENGINES["fastchat"].processes(made, PORTS)[1]
        assert ("--trust_remote_code" in worker.argv) is not trusted


def test_requests_to_transformers_carry_the_path() -> None:
    (process,) = ENGINES["transformers"].processes(replica(ENGINES["transformers"], path="/m/it"), PORTS)
    assert process.served_name == "/m/it"


def test_openvinos_server_is_read_back() -> None:
    observed = ENGINES["openvino"].read_log(
        [
            "serve_openvino: openvino-genai 2026.4.1.0",
            "serve_openvino: loaded in 2.80 s",
            "serve_openvino: cache 3.00 GiB",
        ]
    )
    assert observed.version == "2026.4.1.0"
    assert observed.quantities == {"load_s": 2.8, "kv_cache_bytes": 3 * GIB}
