"""Against a hub of our own on loopback, which speaks what Hugging Face and ModelScope speak."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from gguf_bytes import gguf, llama

from plimsoll.discover.models import find_model
from plimsoll.errors import FactError

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 256,
    "max_position_embeddings": 512, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip


def safetensors(shapes: dict[str, tuple[int, ...]], dtype: str = "BF16", width: int = 2) -> bytes:
    table, end = {}, 0
    for name, shape in shapes.items():
        size = width
        for side in shape:
            size *= side
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(table).encode()
    return struct.pack("<Q", len(header)) + header + bytes(end)


def llama_shapes(layers: int = 2) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (256, 64), "model.norm.weight": (64,)}
    for n in range(layers):
        for name, shape in (
            ("self_attn.q_proj", (64, 64)), ("self_attn.k_proj", (32, 64)), ("self_attn.v_proj", (32, 64)),
            ("self_attn.o_proj", (64, 64)), ("mlp.gate_proj", (128, 64)), ("mlp.up_proj", (128, 64)),
            ("mlp.down_proj", (64, 128)), ("input_layernorm", (64,)), ("post_attention_layernorm", (64,)),
        ):  # fmt: skip
            shapes[f"model.layers.{n}.{name}.weight"] = shape
    return shapes


class FakeHub(ThreadingHTTPServer):
    """Files by path; `sent` counts the bytes of bodies, `tokens` what callers authorised themselves with."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.gated: set[str] = set()
        self.sent = 0
        self.tokens: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.tokens.append(self.headers.get("authorization"))
        content = self.server.files.get(path)
        if path in self.server.gated and not self.headers.get("authorization"):
            self._answer(401, b"")
        elif content is None:
            self._answer(404, b"")
        elif wanted := self.headers.get("range"):
            first, last = (int(part) for part in wanted.removeprefix("bytes=").split("-"))
            self._answer(206, content[first : last + 1], {"content-range": f"bytes {first}-{last}/{len(content)}"})
        else:
            self._answer(200, content)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"content-length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        try:
            self.wfile.write(body)
        except ConnectionError:  # the reader has what it wanted
            return
        self.server.sent += len(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def environ(hub: FakeHub, **more: str) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", **more}


def put(hub: FakeHub, files: dict[str, bytes], *, id: str = "org/tiny-thing", revision: str = "main") -> None:
    hub.files |= {f"/{id}/resolve/{revision}/{name}": content for name, content in files.items()}
    siblings = [{"rfilename": name} for name in files]
    hub.files[f"/api/models/{id}/revision/{revision}"] = json.dumps({"siblings": siblings}).encode()


def test_one_file_is_known_from_its_header(hub: FakeHub) -> None:
    weights = safetensors(llama_shapes())
    put(hub, {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": weights})
    model = find_model("org/tiny-thing", environ=environ(hub))
    assert model.weight_bytes == len(weights) - 8 - int.from_bytes(weights[:8], "little")
    assert model.files == (("model.safetensors", len(weights)),)
    assert {part.role for part in model.tensors} == {"embedding", "attention", "mlp", "norm"}
    assert hub.sent < len(weights)


def test_many_files_are_known_from_the_index_when_it_agrees_with_the_config(hub: FakeHub) -> None:
    size = sum(2 * a * (b[0] if b else 1) for a, *b in llama_shapes().values())
    index = {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(llama_shapes(), "model-1.safetensors")}
    put(hub, {"config.json": json.dumps(CONFIG).encode(), "model.safetensors.index.json": json.dumps(index).encode()})
    model = find_model("org/tiny-thing", environ=environ(hub))
    assert model.weight_bytes == size
    assert hub.sent < 4096


def test_headers_decide_where_the_index_disagrees(hub: FakeHub) -> None:
    later = {name: shape for name, shape in llama_shapes(3).items() if "layers.1" in name or "layers.2" in name}
    shards = {"model-0.safetensors": safetensors(llama_shapes(1)), "model-1.safetensors": safetensors(later)}
    index = {"metadata": {"total_size": 1}, "weight_map": {name: name for name in shards}}
    files = {"config.json": json.dumps({**CONFIG, "num_hidden_layers": 3, "model_type": "novel"}).encode()}
    put(hub, {**files, "model.safetensors.index.json": json.dumps(index).encode(), **shards})
    model = find_model("org/tiny-thing", environ=environ(hub))
    assert model.weight_bytes == sum(len(part) - 8 - int.from_bytes(part[:8], "little") for part in shards.values())
    assert "is not known: its cache is taken to be Llama's" in model.source


def test_a_gguf_repository_is_read_by_type_or_file(hub: FakeHub) -> None:
    whole = gguf(*llama())
    put(hub, {"tiny-Q4_K_M.gguf": whole, "tiny-Q8_0.gguf": whole, "mmproj-tiny.gguf": b"x"}, id="org/tiny-GGUF")
    for ref in ("org/tiny-GGUF:Q4_K_M", "hf:org/tiny-GGUF:Q8_0@main", "org/tiny-GGUF/tiny-Q8_0.gguf"):
        assert find_model(ref, environ=environ(hub)).format == "gguf"
    with pytest.raises(FactError, match="holds 2 GGUF models"):
        find_model("org/tiny-GGUF", environ=environ(hub))


def test_modelscope_keeps_its_files_under_its_own_paths(hub: FakeHub) -> None:
    files = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": safetensors(llama_shapes())}
    hub.files |= {f"/models/org/tiny-thing/resolve/master/{name}": content for name, content in files.items()}
    model = find_model("ms:org/tiny-thing", environ={"MODELSCOPE_ENDPOINT": hub.url})
    assert model.source == f"{hub.url}/models/org/tiny-thing/resolve/master/config.json"


def test_a_gated_model_asks_for_a_token_and_takes_it(hub: FakeHub) -> None:
    put(hub, {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": safetensors(llama_shapes())})
    hub.gated |= set(hub.files)
    with pytest.raises(FactError, match="status 401") as caught:
        find_model("org/tiny-thing", environ=environ(hub))
    assert "HF_TOKEN" in (caught.value.hint or "")
    assert find_model("org/tiny-thing", environ=environ(hub, HF_TOKEN="secret")).weight_bytes
    assert hub.tokens[-1] == "Bearer secret"


def test_what_is_not_there_or_not_allowed_is_said(hub: FakeHub) -> None:
    with pytest.raises(FactError, match="has no model org/none-such"):
        find_model("org/none-such", environ=environ(hub))
    with pytest.raises(FactError, match="HF_HUB_OFFLINE"):
        find_model("org/none-such", environ=environ(hub, HF_HUB_OFFLINE="1"))
    with pytest.raises(FactError, match="cannot be reached"):
        find_model("org/none-such", environ={"HF_ENDPOINT": "http://127.0.0.1:1"})


def test_the_catalogue_answers_before_any_hub() -> None:
    model = find_model("Qwen/Qwen2.5-72B-Instruct-AWQ", environ={"HF_ENDPOINT": "http://127.0.0.1:1"})
    assert model.quantization is not None
