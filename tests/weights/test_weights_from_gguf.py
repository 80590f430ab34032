import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize

from plimsoll.errors import WeightError
from plimsoll.weights.convert.from_gguf import gguf_to_safetensors
from plimsoll.weights.convert.safetensors_file import read_header

HIDDEN, HEADS, KV_HEADS, WIDE = 64, 4, 2, 96
rng = np.random.default_rng(5)


def normal(*shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


ORIGINAL = {
    "model.embed_tokens.weight": normal(8, HIDDEN),
    "model.norm.weight": normal(HIDDEN),
    "model.layers.0.self_attn.q_proj.weight": normal(HIDDEN, HIDDEN),
    "model.layers.0.self_attn.k_proj.weight": normal(KV_HEADS * HIDDEN // HEADS, HIDDEN),
    "model.layers.0.mlp.down_proj.weight": normal(HIDDEN, WIDE),
}
GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "model.layers.0.self_attn.q_proj.weight": "blk.0.attn_q.weight",
    "model.layers.0.self_attn.k_proj.weight": "blk.0.attn_k.weight",
    "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
}


def reordered(values: Any, heads: int) -> Any:
    """Rows of Q and K as llama.cpp's converter puts them."""
    return values.reshape(heads, 2, values.shape[0] // heads // 2, HIDDEN).swapaxes(1, 2).reshape(values.shape)


def write(path: Path, family: str = "llama", *, extra: str | None = None, scaling: bool = False) -> Path:
    writer = GGUFWriter(path, family)
    for key, value in {"embedding_length": HIDDEN, "feed_forward_length": WIDE, "block_count": 1, "context_length": 128,
                       "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS}.items():  # fmt: skip
        writer.add_uint32(f"{family}.{key}", value)
    writer.add_float32(f"{family}.rope.freq_base", 5e5)
    if scaling:
        writer.add_string(f"{family}.rope.scaling.type", "yarn")
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "smollm")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "ab", "<|end|>"])
    writer.add_array("tokenizer.ggml.token_type", [1, 1, 1, 3])
    writer.add_array("tokenizer.ggml.merges", ["a b"])
    writer.add_uint32("tokenizer.ggml.eos_token_id", 3)
    for name, values in ORIGINAL.items():
        if family == "llama" and "q_proj" in name:
            values = reordered(values, HEADS)
        if family == "llama" and "k_proj" in name:
            values = reordered(values, KV_HEADS)
        kind = GGMLQuantizationType.Q8_0 if "down_proj" in name else GGMLQuantizationType.F32
        writer.add_tensor(GGUF_NAMES[name], quantize(values, kind), raw_dtype=kind)
    if extra:
        writer.add_tensor(extra, normal(4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_tensors_configuration_and_tokenizer_come_back(tmp_path: Path, family: str) -> None:
    gguf_to_safetensors(write(tmp_path / "m.gguf", family), tmp_path / "new")
    raw = (tmp_path / "new/model.safetensors").read_bytes()
    for tensor in read_header(tmp_path / "new/model.safetensors").tensors:
        got = np.frombuffer(raw[tensor.start : tensor.end], "<f2").reshape(tensor.shape)
        expected = ORIGINAL[tensor.name]
        if "down_proj" in tensor.name:
            kind = GGMLQuantizationType.Q8_0
            expected = dequantize(quantize(expected, kind), kind)
        np.testing.assert_array_equal(got, expected.astype(np.float16))
    config = json.loads((tmp_path / "new/config.json").read_text())
    assert config["architectures"] == [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[family]]
    assert (config["vocab_size"], config["rope_theta"], config["tie_word_embeddings"]) == (8, 5e5, True)
    tokenizer = json.loads((tmp_path / "new/tokenizer.json").read_text())
    assert tokenizer["model"]["vocab"] == {"a": 0, "b": 1, "ab": 2, "<|end|>": 3}
    assert tokenizer["model"]["merges"] == ["a b"]
    assert [token["content"] for token in tokenizer["added_tokens"]] == ["<|end|>"]
    assert json.loads((tmp_path / "new/tokenizer_config.json").read_text())["eos_token"] == "<|end|>"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"family": "mamba"}, "is a mamba model; only llama, qwen2, qwen3 are converted"),
        ({"extra": "blk.0.ffn_gate_exps.weight"}, "which its family does not have"),
        ({"extra": "rope_freqs.weight"}, "which means scaled rope"),
        ({"scaling": True}, "scales its rope"),
    ],
)
def test_what_cannot_be_said_in_the_other_form_is_refused(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(WeightError, match=said):
        gguf_to_safetensors(write(tmp_path / "m.gguf", **settings), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_vocabulary_of_another_kind_is_left_to_the_original(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes().replace(struct.pack("<Q", 6) + b"smollm", struct.pack("<Q", 6) + b"exotic"))
    step = gguf_to_safetensors(path, tmp_path / "new")
    assert step.notes == ("no tokenizer written: its kind (gpt2, exotic) is not known here; take the original's",)
    assert not (tmp_path / "new/tokenizer.json").exists()
