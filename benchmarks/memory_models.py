"""Which model a row means, and in which format: names as people write them against the offline catalogue."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from plimsoll.facts import catalogue
from plimsoll.facts.model import ModelFacts

_OWNER = re.compile(r"^[^\s(]*/")
_ASIDE = re.compile(r"\([^)]*\)?|,.*$|\bclass\b.*$|\bwith MTP\b|for(?:conditionalgeneration|causallm)\b", re.IGNORECASE)
_NOISE = re.compile(
    r"\.gguf\b|\b(?:instruct|chat|it|hf|gguf|awq|gptq|autoround|bnb|unsloth|dynamic|qat|local|base|fp8|bf16|fp16|f16|"
    r"int[48]|4bit|8bit|nvfp4|mxfp4|block|marlin|preview|ud|merged|lora|uncensored|0324|0528|2501|2503|2507|2512|"
    r"w[48]a16|g\d{2,3}|full|damp\d+|meta|c4ai|\d+k|qwen(?= qwen)|i?q\d(?: (?:k|[01])(?: (?:s|m|l|xl|r4))?)?)\b"
)
# Weight format of a row -> the ending that the catalogue derives a checkpoint from; BF16 takes a quantization off. FP4
# means NVFP4, which behind a name would be a GGUF's type.
_ENDINGS: tuple[tuple[str, str], ...] = (
    (r"awq", "AWQ"), (r"autoround", "int4-AutoRound"), (r"w4a16", "W4A16"), (r"w8a16", "W8A16"), (r"gptq", "GPTQ-Int4"),
    (r"bnb.?8|llm.?int8", "bnb-8bit"), (r"bnb|bitsandbytes|nf4", "bnb-4bit"), (r"nvfp4", "FP4"), (r"mxfp4", "MXFP4"),
    (r"fp8", "FP8"), (r"bf16|fp16|fp32|16-bit|float|half", "BF16"), (r"int4|4-?bit", "GPTQ-Int4"),
    (r"int8|8-?bit", "GPTQ-Int8"),
)  # fmt: skip
_METHODS = {
    "AWQ": "awq", "int4-AutoRound": "auto-round", "W4A16": "compressed-tensors", "W8A16": "compressed-tensors",
    "GPTQ-Int4": "gptq", "GPTQ-Int8": "gptq", "bnb-4bit": "bitsandbytes", "bnb-8bit": "bitsandbytes",
    "FP4": "modelopt", "MXFP4": "mxfp4", "FP8": "fp8",
}  # fmt: skip
_GGUF_TYPE = re.compile(r"(?:^|[-_ .:])((?:i?q|tq)\d\w*|bf16|f16|f32|mxfp4|nvfp4)\b", re.IGNORECASE)


def find(
    name: str, weight_format: str, layers: int | None, *, file_bytes: int | None = None, gguf: bool = False
) -> ModelFacts | str:
    """Facts of the model that is meant, or why there are none.

    `layers`: as the row states them, for names without a size. `gguf`: the engine loads nothing else. `file_bytes`:
    size of the GGUF, to which its tensors are scaled.
    """
    plain = _ASIDE.sub("", name).strip()
    if not plain:
        return "the model is not named"
    if gguf or weight_format.lower().startswith("gguf"):
        return _as_gguf(plain, _gguf_type(name, weight_format) or "q4_k_m", layers, file_bytes)
    id = _by_experts(name, plain) or _id_of(plain, layers)
    if id is None:
        return f"{name!r} is not in the catalogue"
    if (entry := catalogue.find(id)) is not None and entry.gguf is not None:
        # "NVFP4" behind a name is a GGUF type too; this engine means the checkpoint.
        id = _id_of(_GGUF_TYPE.sub(" ", plain).strip(" -_"), layers) or id
    facts = catalogue.model(id)
    ending = next(
        (word for text in (weight_format, plain) for part, word in _ENDINGS if re.search(part, text, re.I)), ""
    )
    method = facts.quantization.method if facts.quantization else ""
    if not ending or _METHODS.get(ending, "") == method or (ending == "FP8" and "fp8" in method):
        return facts
    derived = catalogue.find(f"{id}-{ending}")
    return catalogue.model(f"{id}-{ending}") if derived else facts


def format_known(name: str, weight_format: str, *, gguf: bool) -> bool:
    """Whether row or name say how the weights are stored, where it cannot be known from the model's own config."""
    return not gguf or _gguf_type(name, weight_format) is not None


def _gguf_type(name: str, weight_format: str) -> str | None:
    stated = _GGUF_TYPE.search(weight_format) or _GGUF_TYPE.search(name)
    return re.sub(r"_r[48]$", "", stated[1].lower()) if stated else None


def _as_gguf(name: str, kind: str, layers: int | None, file_bytes: int | None) -> ModelFacts | str:
    id = _id_of(_GGUF_TYPE.sub(" ", name).removesuffix(".gguf").strip(" -_"), layers)
    if id is None:
        return f"{name!r} is not in the catalogue"
    for word in (kind, _NEAREST_TYPE.get(kind, kind)):
        if catalogue.find(f"{id}-{word}") is not None:
            facts = catalogue.model(f"{id}-{word}")
            return _scaled(facts, file_bytes) if file_bytes else facts
    return f"the GGUF type {kind} is not known"


# Types of ik_llama.cpp and others beside the one of llama.cpp that is as wide.
_NEAREST_TYPE = {
    "iq6_k": "q6_k", "iq5_k": "q5_k_s", "iq5_ks": "q5_k_s", "iq4_k": "q4_k_s", "iq4_ks": "iq4_xs", "iq3_k": "q3_k_s",
    "iq3_kl": "q3_k_m", "iq3_ks": "iq3_xxs", "iq2_k": "iq2_xs", "iq2_ks": "iq2_xxs", "iq1_s_r4": "iq1_s",
}  # fmt: skip


def _scaled(facts: ModelFacts, file_bytes: int) -> ModelFacts:
    width = file_bytes / facts.weight_bytes
    return replace(facts, tensors=tuple(replace(part, bytes=round(part.bytes * width)) for part in facts.tensors))


# --- names --------------------------------------------------------------------------------------------------------


def _id_of(name: str, layers: int | None) -> str | None:
    """The first way of reading the name; one without a size has to have as many layers (or one more: MTP, output)."""
    checked = layers is not None and not _sizes(name)
    known = catalogue.find(name)
    readings = (
        known.id if known is not None else None, _keys().get(_key(name)), _by_size(name, layers),
        _by_layers(name, layers), _closest(name),
    )  # fmt: skip
    for id in readings:
        if id is not None and (not checked or not _layers_of(id) or abs(_layers_of(id) - (layers or 0)) <= 1):
            return id
    return None


@cache
def _keys() -> Mapping[str, str]:
    """Every listed id by what is left of it without owner, task and format."""
    keys: dict[str, str] = {}
    for id in catalogue.names():
        keys.setdefault(_key(id), id)
    return keys


@cache
def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", _bare(name))


@cache
def _sizes(name: str) -> frozenset[str]:
    """Numbers of parameters that a name states: "35b" and "a3b" of "Qwen3.5-35B-A3B"."""
    return frozenset(re.findall(r"\ba?\d+(?:\.\d+)?b\b", _bare(name)))


def _bare(name: str) -> str:
    last = _OWNER.sub("", _ASIDE.sub("", name).strip().rstrip("/")).rsplit("/", 1)[-1]
    return _NOISE.sub(" ", re.sub(r"[_:-]", " ", last).lower())


def _by_experts(name: str, family: str) -> str | None:
    """A family told apart by what its fused experts' kernel logs: "(fused_moe E=128,N=192 at TP4)"."""
    shape = re.search(r"E=(\d+),\s*N=(\d+)\D*TP\s?(\d+)", name)
    if shape is None:
        return None
    experts, width = int(shape[1]), int(shape[2]) * int(shape[3])
    key = re.sub(r"moe$", "", _key(family))
    for known, id in _keys().items():
        config = _config(id) if known.startswith(key) else {}
        if (config.get("num_experts"), config.get("moe_intermediate_size")) == (experts, width):
            return id
    return None


def _by_size(name: str, layers: int | None) -> str | None:
    """A name that is a size and no more ("70B class (81 layers ...)"): the commonest family of that depth."""
    size = re.fullmatch(r"\d+(?:\.\d+)?b", _bare(name).strip())
    if size is None or layers is None:
        return None
    alike = [id for id in _keys().values() if _sizes(id) == {size[0]} and _layers_of(id) == layers]
    for family in ("llama", "qwen", ""):
        found = [id for id in alike if _key(id).startswith(family)]
        if found:
            return found[0]
    return None


def _by_layers(name: str, layers: int | None) -> str | None:
    """A name that leaves out the size or version ("LLaMA v2"), told apart by the number of layers."""
    family = re.sub(r"v(?=\d$)", "", _key(re.sub(r"\b\d+(?:\.\d+)?[bB]\b", "", name)))
    if layers is None or len(family) < 5:
        return None
    sizes = _sizes(name)
    matching = [
        id
        for known, id in _keys().items()
        if known.startswith(family) and (not sizes or _sizes(id) in (sizes, frozenset()))
    ]
    return next((id for id in matching if _layers_of(id) == layers), None)


@cache
def _config(id: str) -> Mapping[str, Any]:
    entry = catalogue.find(id)
    config = entry.config if entry else {}
    return {**config, **config.get("text_config", {})}


def _layers_of(id: str) -> int:
    return int(_config(id).get("num_hidden_layers") or 0)


def _closest(name: str) -> str | None:
    """The longest known key that begins the name, or the shortest that the name begins; sizes have to agree."""
    key, sizes = _key(name), _sizes(name)
    best: tuple[int, str] | None = None
    for known, id in _keys().items():
        their = _sizes(id)
        if min(len(known), len(key)) < 5 or (their and sizes and their != sizes) or (their and not sizes):
            continue
        if key.startswith(known):
            score = len(known)
        elif known.startswith(key):
            score = 2 * len(key) - len(known)
        else:
            continue
        if best is None or score > best[0]:
            best = (score, id)
    return best[1] if best else None
