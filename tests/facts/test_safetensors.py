from __future__ import annotations

import json
import random
import struct
from typing import Any

import pytest

from plimsoll.errors import FactError
from plimsoll.facts.safetensors import SafetensorsHeader, read_index, read_safetensors
from plimsoll.facts.stored import classes_of


def file(table: dict[str, Any], data: int = 0) -> bytes:
    header = json.dumps(table).encode()
    return struct.pack("<Q", len(header)) + header + bytes(data)


def tensor(begin: int, end: int, shape: list[int], dtype: str = "BF16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def header(data: bytes) -> SafetensorsHeader:
    return read_safetensors(lambda at, length: data[at : at + length], len(data))


def test_names_types_and_bytes() -> None:
    table = {"__metadata__": {"format": "pt"}, "b": tensor(8, 10, [1]), "a": tensor(0, 8, [2, 2])}
    assert [(part.name, part.shape, part.bytes) for part in header(file(table, 10)).tensors] == [
        ("a", (2, 2), 8),
        ("b", (1,), 2),
    ]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"1234", "claims"),
        (struct.pack("<Q", 1 << 40) + b"{}", "claims"),
        (struct.pack("<Q", 100) + b"{}", "cut short"),
        (struct.pack("<Q", 5) + b"hello", "not JSON"),
        (struct.pack("<Q", 2) + b"[]", "no table"),
        (file({"a": 7}), "no data offsets"),
        (file({"a": tensor(4, 2, [1])}), "lies at"),
        (file({"a": tensor(0, 4, [1])}, 4), "does not fill"),
        (file({"a": tensor(0, 2, [-1])}, 2), "has the shape"),
        (file({"a": tensor(0, 2, [1], "F13")}, 2), "unknown type"),
        (file({"a": tensor(0, 2, [1]), "b": tensor(6, 8, [1])}, 8), "not at 2"),
        (file({"a": tensor(0, 8, [4]), "b": tensor(8, 16, [4])}, 12), "4 are missing; the tensor 'b'"),
    ],
)
def test_broken_and_hostile_files_are_refused(data: bytes, what: str) -> None:
    with pytest.raises(FactError, match=what):
        header(data)


def test_any_damage_ends_in_a_header_or_a_fact_error() -> None:
    whole = file({f"t{n}": tensor(8 * n, 8 * n + 8, [2, 2]) for n in range(8)}, 64)
    chance = random.Random(3)
    for _ in range(300):
        data = bytearray(whole)
        data[chance.randrange(len(whole) - 64)] = chance.randrange(256)
        try:
            header(bytes(data))
        except FactError as error:
            assert error.message


def test_an_index_names_files_of_its_own_directory_only() -> None:
    good = {"metadata": {"total_size": 10}, "weight_map": {"a": "m-2.safetensors", "b": "m-1.safetensors"}}
    assert read_index(json.dumps(good).encode()) == (("m-1.safetensors", "m-2.safetensors"), 10)
    for bad in ({"weight_map": {"a": "../../etc/passwd"}}, {"weight_map": {}}, []):
        with pytest.raises(FactError):
            read_index(json.dumps(bad).encode())


@pytest.mark.parametrize(
    ("name", "role", "sharding"),
    [
        ("model.layers.0.self_attn.q_proj.weight", "attention", "tensor"),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv", "attention", "replicated"),
        ("model.layers.0.mlp.experts.17.down_proj.qweight", "experts", "expert"),
        ("model.layers.0.block_sparse_moe.experts.3.w1.weight", "experts", "expert"),
        ("model.layers.0.mlp.shared_expert.up_proj.weight", "shared_experts", "tensor"),
        ("model.layers.0.mlp.shared_expert_gate.weight", "router", "replicated"),
        ("model.layers.0.mlp.gate.e_score_correction_bias", "router", "replicated"),
        ("model.language_model.layers.0.linear_attn.in_proj_qkv.weight", "state", "tensor"),
        ("backbone.layers.0.mixer.A_log", "state", "tensor"),
        ("model.visual.blocks.3.attn.qkv.weight", "vision", "tensor"),
        ("model.layers.61.eh_proj.weight", "mtp", "replicated"),
        ("bert.encoder.layer.0.attention.output.LayerNorm.bias", "norm", "replicated"),
        ("transformer.h.0.attn.c_attn.weight", "attention", "tensor"),
        ("model.layers.0.mlp.down_proj.bias", "mlp", "replicated"),
        ("model.embed_tokens.weight", "embedding", "vocab"),
        ("lm_head.weight", "lm_head", "vocab"),
    ],
)
def test_what_a_tensor_is_for_is_read_off_its_name(name: str, role: str, sharding: str) -> None:
    (found,) = classes_of([header(file({name: tensor(0, 8, [2, 2])}, 8))], layers=61, kv_heads=4)
    assert (found.role, found.sharding, found.bytes) == (role, sharding, 8)


def test_experts_of_a_layer_are_one_class_and_packed_weights_count_their_parameters() -> None:
    table, end = {}, 0
    for layer in range(2):
        for expert in range(4):
            stem = f"model.layers.{layer}.mlp.experts.{expert}.up_proj"
            table[f"{stem}.qweight"] = tensor(end, end + 64, [4, 4], "I32")
            table[f"{stem}.scales"] = tensor(end + 64, end + 72, [4], "F16")
            end += 72
    parts = classes_of([header(file(table, end))], layers=2, kv_heads=1, bits=4)
    assert {(part.dtype, part.params, part.bytes, part.at) for part in parts} == {
        ("int32", 2 * 4 * 128, 2 * 4 * 64, (0, 1)),
        ("float16", 0, 2 * 4 * 8, (0, 1)),
    }
