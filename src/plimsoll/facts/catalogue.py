"""Models that are known without a network: their config.json in short, found by any of the names people use.

`data/models/*.json` hold one model per line: `id`, `same` (others of the same shape), `names` (Ollama's), `config`,
`quantized` (published checkpoints by scheme), `quantized_config` (keys that AWQ and GPTQ checkpoints change: Qwen pads
its 72B so that groups of 128 divide over 8 devices, github.com/QwenLM/Qwen3/issues/578), `source`, `date`.

A name that ends like a quantization (`-AWQ`, `-Q4_K_M`, `:72b-q4_K_M`) of a known model is derived from it by the
usual settings, and says so in `source`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

import orjson

from plimsoll.errors import FactError
from plimsoll.facts.architectures.encoder import ENCODERS
from plimsoll.facts.config import facts_from_config
from plimsoll.facts.gguf_mix import FILE_MIXES, quantized_to_gguf
from plimsoll.facts.model import ModelFacts
from plimsoll.facts.quantization import read_scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the catalogue says of a name; `gguf` is the file type where the name asks for one."""

    id: str
    config: Mapping[str, Any]
    source: str
    date: str
    derived: bool = False
    """Whether the quantization was read off the name and its usual settings assumed."""
    gguf: str | None = None
    grouped: Mapping[str, Any] | None = None
    """Keys of the config that checkpoints with weights quantized in groups (AWQ, GPTQ) change."""


_W4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
_W8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
_F8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}


def _compressed(weights: dict[str, Any], style: str, *, activations: bool = False) -> dict[str, Any]:
    group: dict[str, Any] = {"targets": ["Linear"], "weights": weights}
    if activations:
        group["input_activations"] = {"num_bits": 8, "dynamic": True}
    return {"quant_method": "compressed-tensors", "format": style, "ignore": ["lm_head"], "config_groups": {"g": group}}


SCHEMES: dict[str, dict[str, Any]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128},
    "gptq-int4": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "gptq-int8": {"quant_method": "gptq", "bits": 8, "group_size": 128},
    "gptq-int3": {"quant_method": "gptq", "bits": 3, "group_size": 128},
    "auto-round": {
        "quant_method": "auto-round",
        "bits": 4,
        "group_size": 128,
        "packing_format": "auto_round:auto_gptq",
    },
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "fp8-dynamic": _compressed(_F8, "float-quantized", activations=True),
    "bnb-4bit": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    "bnb-dynamic": {  # Unsloth's: vision stays at 16 bits, and a few per cent of layers that no name tells
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_use_double_quant": True,
        "llm_int8_skip_modules": ["visual"],
    },
    "bnb-8bit": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "w4a16": _compressed(_W4, "pack-quantized"),
    "w8a16": _compressed({**_W8, "strategy": "group", "group_size": 128}, "pack-quantized"),
    "w8a8": _compressed(_W8, "int-quantized", activations=True),
    "nvfp4": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "mxfp4": {"quant_method": "mxfp4"},
}
"""The usual settings of each kind of quantized checkpoint, for names that the catalogue does not list."""

_SUFFIXES = (
    (r"unsloth-bnb-4bit", "bnb-dynamic"), (r"bnb-4bit", "bnb-4bit"), (r"bnb-8bit", "bnb-8bit"),
    (r"fp8-dynamic", "fp8-dynamic"), (r"fp8(-block)?", "fp8"), (r"nvfp4|fp4", "nvfp4"), (r"mxfp4", "mxfp4"),
    (r"autoround(-gptq)?-(int4|4bit)|int4-autoround", "auto-round"), (r"(int4-)?awq(-(int4|4bit))?", "awq"),
    (r"gptq-?(int8|8bit)|int8", "gptq-int8"), (r"gptq-?(int3|3bit)", "gptq-int3"),
    (r"gptq(-?(int4|4bit))?|int4", "gptq-int4"), (r"w4a16(-g128)?", "w4a16"), (r"w8a16", "w8a16"), (r"w8a8", "w8a8"),
    (r"bf16|fp16", "none"),
)  # fmt: skip
_SUFFIX = tuple((re.compile(rf"^(?P<stem>.+?)-(?:{pattern})$"), scheme) for pattern, scheme in _SUFFIXES)
_MIXES = {mix.lower().replace("_", "-"): mix for mix in FILE_MIXES}
_GGUF = re.compile(
    r"^(?P<stem>.+?)(?:-gguf)?-(?:ud-)?(?P<mix>"
    + "|".join(sorted(_MIXES, key=len, reverse=True))
    + r")(?P<large>-x?l)?"
    r"(?:-merged)?(?:-gguf)?$"
)
_DECORATION = re.compile(r"-(?:latest|128k|qat|gguf|hf|merged|bf16|fp16|\d+(?:-\d+)?b)$")
"""What people add to a name without changing the shapes: a longer context, how it was trained, its size once more."""
_OLLAMA = re.compile(r"(?:library/)?[\w.-]+:[\w.-]+")
_OLLAMA_Q4_0 = frozenset({
    "llama2", "llama3", "codellama", "gemma", "gemma2", "qwen", "qwen2", "mixtral", "phi", "phi3", "yi", "tinyllama",
    "deepseek-coder", "deepseek-coder-v2", "deepseek-v2", "starcoder2", "vicuna", "command-r", "aya", "falcon",
})  # fmt: skip
"""Families that Ollama's library published before the middle of 2024, in Q4_0; later ones are Q4_K_M (recalled)."""
_HUB_CACHE = re.compile(r"models--[^/]+?--([^/]+)/snapshots/")
_TUNED = ("", "-instruct", "-it", "-chat")


@cache
def _entries() -> tuple[dict[str, Any], ...]:
    folder = files("plimsoll.facts") / "data" / "models"
    found: list[dict[str, Any]] = []
    for file in sorted(folder.iterdir(), key=lambda item: item.name):
        if file.name.endswith(".json"):
            found.extend(orjson.loads(file.read_bytes()))
    return tuple(found)


def _key(name: str) -> str:
    """A name as it is compared: lower case, without organisation, all separators alike."""
    cached = _HUB_CACHE.search(name)
    bare = (cached[1] if cached else name.strip().rstrip("/").rsplit("/", 1)[-1]).lower()
    return re.sub(r"[\s_.:]+", "-", bare)


@cache
def _index() -> dict[str, tuple[int, str, str | None]]:
    """Key -> (number of the entry, id as written, scheme); the first entry to claim a key keeps it."""
    index: dict[str, tuple[int, str, str | None]] = {}
    for number, entry in enumerate(_entries()):
        for name in (entry["id"], *entry.get("same", ())):
            index[name.lower()] = (number, name, None)
            index.setdefault(_key(name), (number, name, None))
    for number, entry in enumerate(_entries()):
        for name in entry.get("names", ()):
            index.setdefault(_key(name), (number, entry["id"], None))
        for scheme, names in entry.get("quantized", {}).items():
            for name in names:
                index.setdefault(name.lower(), (number, name, scheme))
                index.setdefault(_key(name), (number, name, scheme))
    return index


@cache
def _squeezed() -> dict[str, tuple[int, str, str | None]]:
    """The same without any separators, for `llama3:8b` and `gemma2-9b`; names that this makes alike are left out."""
    found: dict[str, tuple[int, str, str | None] | None] = {}
    for key, entry in _index().items():
        if "/" not in key:
            bare = key.replace("-", "")
            found[bare] = entry if found.get(bare, entry) == entry else None
    return {key: entry for key, entry in found.items() if entry is not None}


@cache
def _makers() -> frozenset[str]:
    """Organisations, as they are also written in front of file names (`Qwen_Qwen3-8B`)."""
    return frozenset(name.split("/")[0].lower() for _, name, _ in _index().values() if "/" in name) | {"unsloth"}


def names() -> tuple[str, ...]:
    """Every id that is listed, in the order of the files."""
    return tuple(dict.fromkeys(name for _, name, _ in _index().values()))


def find(ref: str, *, form: str | None = None) -> Entry | None:
    """The entry for a name, with or without organisation and in any case, or None.

    `form`: how the weights are stored, where the name alone does not say: `awq`, `gptq-int4`, `fp8`, `bnb-4bit`,
    `bf16` ..., or `gguf-Q4_K_M`. A checkpoint that is of as many bits already keeps its own way.
    """
    exact = _index().get(ref.strip().lower())
    found = _entry(*exact) if exact is not None else _find(_key(ref), ref)
    if found is None or not form:
        return _as_ollama(found, ref) if found and _OLLAMA.fullmatch(ref.removeprefix("ollama:")) else found
    wanted = _key(form)
    if mix := _mix(wanted):
        return _as_gguf(found, mix, id=ref)
    scheme = next((name for pattern, name in _SUFFIX if pattern.match(f"x-{wanted}")), None)
    own = _own_bits(found)
    if scheme is None or (own is None if scheme == "none" else own and (own < 6) == (_bits(SCHEMES[scheme]) < 6)):
        return found
    return _quantized(found, scheme, id=ref)


def _mix(form: str) -> str | None:
    """The GGUF type that a form names: `gguf-q4-k-m`, or `q4-k-m` alone where nothing else is called so."""
    bare = form.removeprefix("gguf-")
    if bare == form and bare in ("f32", "f16", "bf16", "mxfp4", "nvfp4"):
        return None
    large = bare not in _MIXES and bare.endswith("-l")
    mix = _MIXES.get(bare.removesuffix("-l") if large else bare)
    if mix is None and bare != form:
        raise FactError(
            f"what a GGUF of type {bare} holds is not known",
            hint="Name the file: its header tells.",
            source="catalogue",
        )
    return f"{mix}_L" if mix and large else mix


def _own_bits(entry: Entry) -> float | None:
    """Bits per weight of the checkpoint as the name has it; None when it is not quantized."""
    text = entry.config.get("text_config")
    parts = (entry.config, text) if isinstance(text, Mapping) else (entry.config,)
    found = [part["quantization_config"] for part in parts if "quantization_config" in part]
    return _bits(_unfolded({"quantization_config": found[0]})["quantization_config"]) if found else None


def _bits(quantization: Mapping[str, Any]) -> float:
    scheme = read_scheme(quantization, source="catalogue")
    return scheme.facts.bits if scheme else 16


def _as_ollama(found: Entry, ref: str) -> Entry:
    """Ollama's `NAME:SIZE` without a type is a GGUF file of the type that its library gives the family."""
    family = ref.rsplit("/", 1)[-1].partition(":")[0].removeprefix("ollama:").lower()
    return _as_usual_gguf(found, ref, usual="Q4_0" if family in _OLLAMA_Q4_0 else "Q4_K_M")


def _as_usual_gguf(found: Entry, ref: str, *, usual: str) -> Entry:
    """The GGUF file of a name that states no type: `usual`, but what is published in MXFP4 stays so, and encoders are
    not quantized."""
    if found.gguf is not None:
        return found
    if found.config.get("quantization_config", {}).get("quant_method") == "mxfp4":
        return _as_gguf(found, "MXFP4", id=ref)
    return _as_gguf(found, "F16" if found.config.get("model_type") in ENCODERS else usual, id=ref)


def _as_gguf(base: Entry, mix: str, *, id: str) -> Entry:
    source = f"{base.source}; types of the tensors by llama.cpp's rule for {mix}"
    return replace(base, id=id, gguf=mix, derived=True, source=source)


def _find(key: str, ref: str) -> Entry | None:
    for tuned in _TUNED:
        if key + tuned in _index():
            return _entry(*_index()[key + tuned])
    squeezed = _squeezed().get(key.replace("-", ""))
    if squeezed is not None:
        return _entry(*squeezed)
    found = _find_gguf(key, ref) or _find_quantized(key, ref)
    if found is not None:
        return found
    maker, _, rest = key.partition("-")
    if maker in _makers() and rest and (found := _find(rest, ref)):
        return found
    shorter = _DECORATION.sub("", key)
    found = _find(shorter, ref) if shorter != key else None
    # A GGUF repository without a type: `llama-server -hf` takes its Q4_K_M.
    return _as_usual_gguf(found, ref, usual="Q4_K_M") if found and key.endswith("-gguf") else found


def _entry(number: int, id: str, scheme: str | None) -> Entry:
    raw = _entries()[number]
    source = f"{raw['source']} ({raw['date']})"
    grouped = raw.get("quantized_config")
    entry = Entry(id=id, config=_unfolded(raw["config"]), source=source, date=raw["date"], grouped=grouped)
    return entry if scheme is None else _quantized(entry, scheme, id=id)


def _quantized(base: Entry, scheme: str, *, id: str) -> Entry:
    config = _plain(base.config)
    if base.grouped and scheme.startswith(("awq", "gptq")):
        config |= base.grouped
    if scheme != "none":
        config["quantization_config"] = SCHEMES[scheme]
    source = f"{base.source}; quantization by its name, with the settings usual for {scheme}"
    return replace(base, id=id, config=config, gguf=None, source=source, derived=True)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the unquantized model."""
    plain = {key: value for key, value in config.items() if key not in ("quantization_config", "expert_dtype")}
    if isinstance(plain.get("text_config"), Mapping):
        plain["text_config"] = _plain(plain["text_config"])
    return plain


def _find_quantized(key: str, ref: str) -> Entry | None:
    """A known model under a name that adds a quantization."""
    for pattern, scheme in _SUFFIX:
        match = pattern.match(key)
        if match is None:
            continue
        base = _find(match["stem"], ref)
        if base is not None and base.gguf is None:
            return _quantized(base, scheme, id=ref)
    return None


def _find_gguf(key: str, ref: str) -> Entry | None:
    """A known model as a GGUF file of a named type: `DeepSeek-R1-Q4_K_M`, `qwen2.5:72b-instruct-q4_K_M`."""
    match = _GGUF.match(key)
    base = _find(match["stem"], ref) if match else None
    if match is None or base is None or base.gguf is not None:
        return None
    return _as_gguf(base, _MIXES[match["mix"]] + ("_L" if match["large"] == "-l" else ""), id=ref)


def model(ref: str, *, form: str | None = None) -> ModelFacts:
    """Facts of a model in the catalogue (`form` as in `find`); FactError naming the nearest when it is not there."""
    entry = find(ref, form=form)
    if entry is None:
        near = get_close_matches(_key(ref), list(_index()), n=3, cutoff=0.5)
        listed = dict.fromkeys(_index()[key][1] for key in near)
        raise FactError(
            f"{ref} is not in the catalogue",
            hint=f"Nearest: {', '.join(listed)}."
            if listed
            else "Name a local directory or file, or allow the network.",
            source="catalogue",
        )
    source = f"catalogue: {entry.source}"
    if entry.gguf is None:
        return facts_from_config(entry.config, id=entry.id, source=source)
    return quantized_to_gguf(facts_from_config(_plain(entry.config), id=entry.id, source=source), entry.gguf)


def offers(ref: str) -> tuple[str, ...]:
    """Published quantized checkpoints of the same model, as the catalogue lists them."""
    index = _index()
    found = index.get(ref.strip().lower()) or index.get(_key(ref))
    if found is None:
        return ()
    raw = _entries()[found[0]]
    return tuple(name for names in raw.get("quantized", {}).values() for name in names)


def _unfolded(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config with layer spans (`{"layers": "0-3,7", "names": [...]}`) written out as names again."""
    text = config.get("text_config")
    if isinstance(text, Mapping) and "quantization_config" in text:
        return {**config, "text_config": _unfolded(text)}
    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping):
        return config
    whole = {key: list(_names(value)) if isinstance(value, list) else value for key, value in quantization.items()}
    layers = {
        name: {"quant_algo": algorithm}
        for algorithm, folded in quantization.get("quantized_names", {}).items() for name in _names(folded)
    }  # fmt: skip
    if layers:
        whole["quantized_layers"] = layers
    groups = quantization.get("config_groups")
    if isinstance(groups, Mapping):
        whole["config_groups"] = {
            key: {**group, "targets": list(_names(group.get("targets") or ["Linear"]))} for key, group in groups.items()
        }
    return {**config, "quantization_config": whole}


def _names(folded: list[Any]) -> Iterator[Any]:
    for item in folded:
        if not isinstance(item, Mapping):
            yield item
            continue
        for span in str(item["layers"]).split(","):
            first, _, last = span.partition("-")
            for layer in range(int(first), int(last or first) + 1):
                for name in item["names"]:
                    yield name.replace("{}", str(layer))
