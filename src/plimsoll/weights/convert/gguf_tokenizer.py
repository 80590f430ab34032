"""tokenizer.json from the vocabulary that a GGUF carries (byte-level BPE); other kinds are left to the original."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from plimsoll.errors import WeightError
from plimsoll.facts.gguf import GgufHeader
from plimsoll.weights.convert.gguf_file import metadata_entries

_CONTROL, _USER_DEFINED = 3, 4
_LLAMA3 = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
_DIGITS = {"type": "Digits", "individual_digits": True}
_REGEX = {"llama-bpe": _LLAMA3, "qwen2": _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")}
"""The split before the merges, by `tokenizer.ggml.pre`, as in the models' own tokenizer.json."""


def write_tokenizer(source: Path, header: GgufHeader, folder: Path) -> tuple[str, ...]:
    """Write tokenizer.json and tokenizer_config.json if the vocabulary is of a known kind; notes on what was left."""
    metadata = header.metadata
    kind, before = metadata.get("tokenizer.ggml.model"), str(metadata.get("tokenizer.ggml.pre", "default"))
    splits = _splits(before)
    if kind != "gpt2" or splits is None:
        return (f"no tokenizer written: its kind ({kind}, {before}) is not known here; take the original's",)
    arrays = {
        key: _array(entry, key)
        for key, entry in metadata_entries(source, header)
        if key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type")
    }
    tokens, merges = arrays.get("tokenizer.ggml.tokens", []), arrays.get("tokenizer.ggml.merges", [])
    types = arrays.get("tokenizer.ggml.token_type", [])
    if not tokens or not merges:
        return ("no tokenizer written: the file has no vocabulary",)
    added = [
        {
            "id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": kind == _CONTROL,
        }
        for number, (token, kind) in enumerate(zip(tokens, types, strict=False))
        if kind in (_CONTROL, _USER_DEFINED)
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": before == "smollm"}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)}, "merges": merges,
        },
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name in ("bos", "eos", "unknown", "padding"):
        number = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(number, int) and 0 <= number < len(tokens):
            config[{"unknown": "unk", "padding": "pad"}.get(name, name) + "_token"] = tokens[number]
    if isinstance(template := metadata.get("tokenizer.chat_template"), str):
        config["chat_template"] = template
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    return ()


def _splits(before: str) -> list[dict[str, Any]] | None:
    if before == "smollm":
        return [_DIGITS]
    if before in _REGEX:
        return [{"type": "Split", "pattern": {"Regex": _REGEX[before]}, "behavior": "Isolated", "invert": False}]
    return None


def _array(entry: bytes, key: str) -> list[Any]:
    """The values of an array's raw metadata entry: strings or 32-bit integers."""
    position = 8 + len(key.encode()) + 4
    inner, count = struct.unpack_from("<IQ", entry, position)
    position += 12
    if inner in (4, 5):
        return list(struct.unpack_from(f"<{count}{'I' if inner == 4 else 'i'}", entry, position))
    if inner != 8:
        raise WeightError(f"{key} is an array of the unexpected type {inner}")
    values = []
    for _ in range(count):
        length = int.from_bytes(entry[position : position + 8], "little")
        values.append(entry[position + 8 : position + 8 + length].decode("utf-8", "replace"))
        position += 8 + length
    return values
