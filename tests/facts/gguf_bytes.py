"""Writes small GGUF files for tests: real layout, no weights worth anything."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from math import prod
from typing import Any

from plimsoll.facts.ggml_types import BY_NUMBER

NUMBERS = {kind.name: number for number, kind in BY_NUMBER.items()}


def text(value: str, order: str = "<") -> bytes:
    data = value.encode()
    return struct.pack(f"{order}Q", len(data)) + data


def value_bytes(value: Any, order: str = "<") -> bytes:
    if isinstance(value, bool):
        return struct.pack(f"{order}I?", 7, value)
    if isinstance(value, int):
        return struct.pack(f"{order}II", 4, value)
    if isinstance(value, float):
        return struct.pack(f"{order}If", 6, value)
    if isinstance(value, str):
        return struct.pack(f"{order}I", 8) + text(value, order)
    parts = [value_bytes(part, order) for part in value]
    kind = struct.unpack(f"{order}I", parts[0][:4])[0]
    return struct.pack(f"{order}IIQ", 9, kind, len(parts)) + b"".join(part[4:] for part in parts)


def gguf(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[tuple[int, ...], str]],
    *,
    order: str = "<",
    version: int = 3,
) -> bytes:
    """A whole file: metadata, then tensors given as `{name: (shape, type)}`, then zeros for the data."""
    out = b"GGUF" + struct.pack(f"{order}IQQ", version, len(tensors), len(metadata))
    for key, value in metadata.items():
        out += text(key, order) + value_bytes(value, order)
    offset = 0
    for name, (shape, kind) in tensors.items():
        out += text(name, order) + struct.pack(f"{order}I{len(shape)}QIQ", len(shape), *shape, NUMBERS[kind], offset)
        offset += BY_NUMBER[NUMBERS[kind]].size_of(shape[0], prod(shape[1:]))
        offset += -offset % 32
    out += bytes(-len(out) % 32)
    return out + bytes(offset)


def llama(layers: int = 2, **changes: Any) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], str]]]:
    """Metadata and tensors of a small Llama with grouped-query attention."""
    metadata: dict[str, Any] = {
        "general.architecture": "llama", "general.file_type": 15, "llama.block_count": layers,
        "llama.embedding_length": 256, "llama.feed_forward_length": 512, "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2, "llama.context_length": 4096,
        "tokenizer.ggml.tokens": [f"t{n}" for n in range(320)], "tokenizer.chat_template": "{{ messages }}",
    }  # fmt: skip
    tensors: dict[str, tuple[tuple[int, ...], str]] = {"token_embd.weight": ((256, 320), "Q6_K")}
    for n in range(layers):
        for part, shape in (("attn_q", (256, 256)), ("attn_k", (256, 128)), ("attn_output", (256, 256))):
            tensors[f"blk.{n}.{part}.weight"] = (shape, "Q4_K")
        tensors[f"blk.{n}.attn_v.weight"] = ((256, 128), "Q6_K" if n == 0 else "Q4_K")
        tensors[f"blk.{n}.ffn_down.weight"] = ((512, 256), "Q4_K")
        tensors[f"blk.{n}.attn_norm.weight"] = ((256,), "F32")
    tensors["output_norm.weight"] = ((256,), "F32")
    return {**metadata, **changes}, tensors
