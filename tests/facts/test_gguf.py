from __future__ import annotations

import random
import struct
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from gguf_bytes import gguf, llama, text

from plimsoll.errors import FactError
from plimsoll.facts.ggml_types import BY_NAME
from plimsoll.facts.gguf import GgufHeader, read_gguf
from plimsoll.facts.gguf_facts import model_facts
from plimsoll.facts.model import ModelFacts


def header(data: bytes, *, size: int | None = None) -> GgufHeader:
    return read_gguf(lambda at, length: data[at : at + length], len(data) if size is None else size)


def facts(data: bytes) -> ModelFacts:
    return model_facts([header(data)], id="m", source="test")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [2, 3])
def test_reads_both_versions_and_byte_orders(order: str, version: int) -> None:
    found = header(gguf(*llama(), order=order, version=version))
    assert (found.version, found.big_endian) == (version, order == ">")
    assert found.metadata["llama.block_count"] == 2
    assert found.array_lengths["tokenizer.ggml.tokens"] == 320
    assert "tokenizer.ggml.tokens" not in found.metadata
    assert found.data_offset + sum(tensor.bytes for tensor in found.tensors) == found.size


@pytest.mark.parametrize(
    ("name", "bits"),
    [("Q4_0", 4.5), ("Q8_0", 8.5), ("Q4_K", 4.5), ("Q5_K", 5.5), ("Q6_K", 6.5625), ("Q3_K", 3.4375), ("Q2_K", 2.625),
     ("IQ2_XXS", 2.0625), ("IQ1_S", 1.5625), ("IQ4_XS", 4.25), ("MXFP4", 4.25), ("NVFP4", 4.5), ("TQ1_0", 1.6875),
     ("BF16", 16), ("IQ4_KS", 4.25), ("IQ2_K", 2.375)],
)  # fmt: skip
def test_bits_per_weight_of_the_types(name: str, bits: float) -> None:
    assert BY_NAME[name].bits == bits


def test_weights_of_a_model_sum_to_the_data_of_its_file() -> None:
    data = gguf(*llama())
    model = facts(data)
    assert model.weight_bytes == len(data) - header(data).data_offset
    assert (model.layers, model.kv_heads, model.head_dim, model.vocab_size) == (2, 2, 64, 320)
    assert model.tied_embeddings
    assert model.task == "chat"
    assert model.quantization is not None
    assert model.quantization.name == "Q4_K_M"
    assert [(part.dtype, part.at, part.units) for part in model.tensors if "attn_v" in part.name] == [
        ("Q6_K", (0,), 2),
        ("Q4_K", (1,), 2),
    ]
    assert model.kv_bytes_per_token() == 2 * 2 * 2 * 64 * 2


def test_a_truncated_file_names_the_tensor_and_the_missing_bytes() -> None:
    data = gguf(*llama())
    with pytest.raises(FactError, match=r"1000 are missing; the first tensor not wholly there is 'output_norm.weight'"):
        header(data, size=len(data) - 1000)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"<!DOCTYPE html> not found today", "not a GGUF file"),
        (b"GG", "only 2 bytes"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "claims 1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 63), "metadata keys"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62), "length"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 4, 1 << 61), "elements"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 8, 1 << 25), "ends within"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 9, 1), "unknown type 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<I", 99), "unknown type 99"),
        (gguf({"general.alignment": 3}, {}), "not a power of two"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t") + struct.pack("<IQIQ", 1, 32, 77, 0), "ggml type 77"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t") + struct.pack("<IQIQ", 1, 32, 0, 64), "not at 0"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t") + struct.pack("<IQIQ", 1, 31, 2, 0), "cannot have"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t") + struct.pack("<I", 9), "9 dimensions"),
    ],
)
def test_hostile_files_are_refused(data: bytes, what: str) -> None:
    with pytest.raises(FactError, match=what):
        header(data)


def test_any_damage_ends_in_facts_or_a_fact_error() -> None:
    whole = gguf(*llama())
    end = header(whole).data_offset
    chance = random.Random(7)
    tracemalloc.start()
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(end)] = chance.randrange(256)
        try:
            facts(bytes(data))
        except FactError as error:
            assert error.message
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_unlikely_metadata_ends_in_facts_or_a_fact_error() -> None:
    chance = random.Random(3)
    metadata, tensors = llama()
    tensors["blk.1.ssm_conv1d.weight"] = ((4, 256), "F32")
    whole = header(gguf(metadata, tensors))
    junk: list[Any] = [0, -1, 1 << 30, 1 << 62, 2.5, float("nan"), "x", "", (), (1, -2), ("a",), True]
    keys = (
        "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.kv_lora_rank",
        "attention.sliding_window", "attention.sliding_window_pattern", "block_count", "context_length",
        "expert_count", "nextn_predict_layers", "ssm.conv_kernel", "ssm.group_count", "ssm.inner_size",
        "ssm.state_size", "ssm.time_step_rank", "wkv.head_size",
    )  # fmt: skip
    for _ in range(1000):
        changed: dict[str, Any] = {**whole.metadata, "llama.ssm.conv_kernel": 4, "llama.ssm.inner_size": 512}
        for key in chance.sample(keys, 2):
            changed[f"llama.{key}"] = chance.choice(junk)
        try:
            model = model_facts([replace(whole, metadata=changed)], id="m", source="test")
        except FactError as error:
            assert error.message
        else:
            assert all(group.state_bytes >= 0 for group in model.attention)


def test_sliding_window_layers() -> None:
    metadata, tensors = llama(6)
    metadata = {key.replace("llama.", "gemma3."): value for key, value in metadata.items()}
    metadata |= {"general.architecture": "gemma3", "gemma3.attention.sliding_window": 1024}
    model = facts(gguf(metadata, tensors))
    assert [(group.kind, group.layers, group.window_tokens) for group in model.attention] == [
        ("sliding", 5, 1024),
        ("full", 1, None),
    ]


def test_latent_attention_only_with_the_split_tensors() -> None:
    metadata, tensors = llama(1)
    metadata = {key.replace("llama.", "deepseek2."): value for key, value in metadata.items()}
    metadata |= {"general.architecture": "deepseek2", "deepseek2.attention.kv_lora_rank": 512}
    metadata |= {"deepseek2.attention.key_length": 192, "deepseek2.attention.value_length": 128}
    tensors["blk.0.attn_kv_a_mqa.weight"] = ((256, 576), "Q8_0")
    plain = facts(gguf(metadata, tensors)).attention
    tensors["blk.0.attn_k_b.weight"] = ((128, 512, 4), "Q8_0")
    latent = facts(gguf(metadata, tensors)).attention
    assert [(group.kind, group.head_dim, group.v_head_dim) for group in plain] == [("full", 192, 128)]
    assert [(group.kind, group.head_dim, group.v_head_dim) for group in latent] == [("mla", 576, 0)]


def test_recurrent_state_of_a_hybrid_equals_what_llama_cpp_reports() -> None:
    """Qwen3.5-9B: llama.cpp prints an RS buffer of 100.50 MiB for two sequences and 24 recurrent layers."""
    metadata, tensors = llama(4)
    metadata = {key.replace("llama.", "qwen35."): value for key, value in metadata.items()}
    metadata |= {"general.architecture": "qwen35", "qwen35.ssm.conv_kernel": 4, "qwen35.ssm.state_size": 128}
    metadata |= {"qwen35.ssm.inner_size": 4096, "qwen35.ssm.group_count": 16, "qwen35.ssm.time_step_rank": 32}
    for layer in range(3):
        del tensors[f"blk.{layer}.attn_k.weight"]
        tensors[f"blk.{layer}.attn_qkv.weight"] = ((256, 1024), "Q4_K")
        tensors[f"blk.{layer}.ssm_conv1d.weight"] = ((4, 1024), "F32")
    model = facts(gguf(metadata, tensors))
    state, cache = model.attention
    assert (state.kind, state.layers, cache.kind, cache.layers) == ("linear", 3, "full", 1)
    assert state.state_bytes * 24 * 2 == 100.5 * 2**20


def test_parts_of_a_split_model_must_all_be_there() -> None:
    metadata, tensors = llama()
    part = header(gguf({**metadata, "split.count": 2}, tensors))
    with pytest.raises(FactError, match="in 2 files; 1 of them"):
        model_facts([part], id="m", source="test")
