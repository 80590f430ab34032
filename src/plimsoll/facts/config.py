"""ModelFacts from a config.json alone: shapes by the architecture's rules, bytes by the quantization's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from plimsoll.errors import FactError
from plimsoll.facts.architectures import Built, build, knows
from plimsoll.facts.architectures.decoder import Style, caches
from plimsoll.facts.architectures.keys import Keys, every
from plimsoll.facts.architectures.shapes import Shapes, Weight
from plimsoll.facts.model import ModelFacts, Task, TensorClass, merge_groups
from plimsoll.facts.quantization import Packing, Scheme, read_scheme
from plimsoll.facts.safetensors import SafetensorsHeader
from plimsoll.facts.sharding import FLOATS
from plimsoll.facts.stored import classes_of

_DTYPES = {"half": "float16", "float": "float32", "torch.float16": "float16", "torch.bfloat16": "bfloat16"}


def facts_from_config(
    config: Mapping[str, Any],
    *,
    id: str,
    source: str,
    quantization: Mapping[str, Any] | None = None,
    headers: Sequence[SafetensorsHeader] = (),
    files: tuple[tuple[str, int], ...] = (),
    chat_template: bool | None = None,
) -> ModelFacts:
    """Facts of a model in the Hugging Face layout; FactError where config.json lacks a key or is of no known family.

    `quantization`: the contents of hf_quant_config.json, where there is one.
    `headers`: of all the model's safetensors files. They decide what the weights take; with them an architecture
    that is not known is taken to cache like Llama, and `source` says so.
    `chat_template`: whether the tokenizer has one; judged by the name when not known.
    """
    if not isinstance(config, Mapping):
        raise FactError("config.json does not hold an object", hint="Fetch it again.", source=source)
    whole = Keys(config, source=source)
    text = text_keys(whole)
    known = knows(whole, text) or not headers
    built = build(whole, text) if known else Built(shapes=_plain_cache(text))
    shapes = built.shapes
    if not known:
        source = f"{source}; {architecture_of(whole)} is not known: its cache is taken to be Llama's"
    dtype = _dtype(whole, text)
    scheme = read_scheme(_quantization_config(whole, text, quantization), source=source)
    task = _task(whole, id=id, encoder=built.encoder)
    if headers:
        bits = scheme.facts.bits if scheme else 16
        tensors = classes_of(headers, layers=text.layers, kv_heads=text.kv_heads, bits=bits)
        files = files or tuple((header.name, header.size) for header in headers)
    else:
        tensors = tuple(part for weight in shapes.weights for part in _stored(weight, scheme, dtype))
    return ModelFacts(
        id=id,
        architecture=architecture_of(whole),
        task=task,
        layers=text.layers,
        hidden_size=text.hidden,
        intermediate_size=_inner(shapes, text),
        heads=text.heads,
        kv_heads=max((group.kv_heads for group in shapes.groups if group.kind in _CACHES), default=text.kv_heads),
        head_dim=text.head_dim if text.heads else 0,
        vocab_size=text.vocab,
        max_context_tokens=text.context - (2 if text.get("model_type") in _OFFSET_POSITIONS else 0),
        tied_embeddings=not built.encoder and not any(part.role == "lm_head" for part in tensors),
        dtype=dtype,
        format="safetensors",
        attention=merge_groups(shapes.groups),
        tensors=tensors,
        source=source,
        moe=shapes.moe,
        quantization=scheme.facts if scheme else None,
        files=files,
        chat_template=_has_chat_template(id) if chat_template is None else chat_template,
        remote_code=whole.has("auto_map"),
        multimodal=any(part.role == "vision" for part in tensors) or whole.has("vision_config"),
        config=_scalars(config, text),
    )


_SPEAKS = re.compile(r"LMHead|Chat")
"""In a class name that ends in Model and still makes text: QWenLMHeadModel, ChatGLMModel, InternVLChatModel."""
_CACHES = ("full", "sliding", "chunked", "encoder")
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm_roberta", "camembert")  # positions begin after padding's


def _inner(shapes: Shapes, text: Keys) -> int:
    """Width of the dense feed-forward layers as they are built, else what config.json says."""
    widths = [weight.out for weight in shapes.weights if weight.role == "mlp" and weight.name.endswith("up_proj")]
    return max(widths, default=text.inner)


def _plain_cache(text: Keys) -> Shapes:
    """What a decoder with plain attention caches; its weights come from elsewhere."""
    shapes = Shapes()
    at = every(text.layers)
    dim = text.head_dim
    shapes.cache(caches(text, Style(), at, heads=text.heads, kv_heads=text.kv_heads, head_dim=dim, value_dim=dim))
    return shapes


def text_keys(whole: Keys) -> Keys:
    """The part of config.json that describes the language model."""
    for name in ("text_config", "llm_config", "language_config", "thinker_config"):
        part = whole.part(name)
        if part.values:
            return text_keys(Keys({**_inherited(whole), **part.values}, source=whole.source))
    return whole


def _inherited(whole: Keys) -> dict[str, Any]:
    return {key: whole.values[key] for key in ("tie_word_embeddings",) if key in whole.values}


def architecture_of(whole: Keys) -> str:
    """The class named first in `architectures`, or the model type."""
    names = whole.words("architectures")
    return names[0] if names else str(whole.get("model_type") or "unknown")


def _dtype(whole: Keys, text: Keys) -> str:
    name = str(whole.get("torch_dtype", "dtype") or text.get("torch_dtype", "dtype") or "float32")
    name = _DTYPES.get(name, name.removeprefix("torch."))
    return name if name in FLOATS else "bfloat16"


def _quantization_config(whole: Keys, text: Keys, extra: Mapping[str, Any] | None) -> Mapping[str, Any]:
    found = whole.get("quantization_config", "compression_config") or text.get("quantization_config")
    if not isinstance(found, Mapping):
        return extra or {}
    if text.has("expert_dtype"):
        return {**found, "expert_dtype": text.get("expert_dtype")}
    return found


def _stored(weight: Weight, scheme: Scheme | None, dtype: str) -> list[TensorClass]:
    """The weight as tensor classes, one for each way its layers are stored."""
    if scheme is None or not weight.linear:
        return [_class(weight, weight.at, None, dtype)]
    if not weight.at:
        return [_class(weight, (), scheme.packing_of(weight.name, weight.role), dtype)]
    ways: dict[Packing | None, list[int]] = {}
    for layer in weight.at:
        packing = scheme.packing_of(weight.name.replace("{}", str(layer)), weight.role)
        ways.setdefault(packing, []).append(layer)
    return [_class(weight, tuple(layers), packing, dtype) for packing, layers in ways.items()]


def _class(weight: Weight, at: tuple[int, ...], packing: Packing | None, dtype: str) -> TensorClass:
    copies = weight.count * max(1, len(at))
    values = weight.out * max(1, weight.inp)
    kept = weight.dtype or dtype
    return TensorClass(
        role=weight.role,
        params=values * copies,
        bytes=(packing.bytes_of(weight.out, weight.inp) if packing else values * FLOATS[kept]) * copies,
        dtype=packing.label if packing else kept,
        sharding=weight.sharding,
        layers=len(at),
        name=weight.name if weight.name.startswith(("lm_head", "visual")) else f"model.{weight.name}",
        at=at if weight.role not in ("vision", "mtp") else (),
        units=weight.units,
    )


def _task(whole: Keys, *, id: str, encoder: bool) -> Task:
    architecture = architecture_of(whole)
    labels = whole.get("id2label")
    count = len(labels) if isinstance(labels, Mapping) else whole.size("num_labels", default=2)
    if architecture.endswith("ForSequenceClassification"):
        return "rerank" if count == 1 or "rerank" in id.lower() else "classify"
    name = id.lower()
    if "rerank" in name:
        return "rerank"
    headless = architecture.endswith(("Model", "ForTextEncoding")) and not _SPEAKS.search(architecture)
    if encoder or "embed" in name or "gte-qwen" in name or headless:
        return "embed"
    return "chat" if _has_chat_template(id) else "completion"


def _has_chat_template(id: str) -> bool:
    """Judged by the name: base models say `base` or nothing where their tuned ones say instruct, chat or it."""
    name = id.rsplit("/", 1)[-1].lower()
    return not name.endswith(("-base", "_base")) and "-base-" not in name


_KEPT = (str, int, float, bool)


def _scalars(config: Mapping[str, Any], text: Keys) -> dict[str, Any]:
    """Scalars and short lists, for rules; the text model's keys win. Rope settings are kept whole."""
    merged = {**config, **text.values}
    kept = {key: value for key, value in merged.items() if isinstance(value, _KEPT)}
    kept |= {key: merged[key] for key in ("rope_scaling", "rope_parameters", "vision_config") if merged.get(key)}
    return kept
