"""Tensor shapes of an architecture from config.json alone: `build` finds the family by `model_type`.

A family is a function from `Keys` to `Shapes`. To add one: a row in `families.py` (or a function in the module that
is nearest), and one case in the tests with the parameter count that the model's makers state.
"""

from __future__ import annotations

from dataclasses import dataclass

from plimsoll.errors import FactError
from plimsoll.facts.architectures import audio, hybrid, recent
from plimsoll.facts.architectures.encoder import ENCODERS
from plimsoll.facts.architectures.families import FAMILIES, Family
from plimsoll.facts.architectures.keys import Keys
from plimsoll.facts.architectures.latent import deepseek, minicpm3
from plimsoll.facts.architectures.shapes import Shapes
from plimsoll.facts.architectures.vision import TOWERS

_LATENT: dict[str, Family] = {
    **dict.fromkeys(
        ("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2", "glm_moe_dsa", "glm4_moe_lite", "mistral4"),
        deepseek,
    ),
    "minicpm3": minicpm3,
}
_HYBRID: dict[str, Family] = {
    **dict.fromkeys(("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"), hybrid.qwen_next),
    "mamba": hybrid.pure_mamba, "falcon_mamba": hybrid.pure_mamba, "mamba2": hybrid.pure_mamba2, "jamba": hybrid.jamba,
    "nemotron_h": hybrid.nemotron_h, "granitemoehybrid": hybrid.granite_hybrid, "falcon_h1": hybrid.falcon_h1,
    "bamba": hybrid.bamba, "lfm2": hybrid.lfm2, "lfm2_moe": hybrid.lfm2, "kimi_linear": hybrid.kimi_linear,
    "bailing_hybrid": hybrid.kimi_linear, "minimax": hybrid.minimax_01, "minimax_text_01": hybrid.minimax_01,
    "minimax_m1": hybrid.minimax_01,
}  # fmt: skip
_RECENT: dict[str, Family] = {
    "deepseek_v4": recent.deepseek_v4, "deepseek_ref": recent.deepseek_v4, "minimax_m3": recent.minimax_m3,
    "minimax_m3_vl": recent.minimax_m3, "minimax_m3_vl_text": recent.minimax_m3,
    "step3p5": recent.step3, "step3p7": recent.step3,
}  # fmt: skip
_DECODERS = {**FAMILIES, **_LATENT, **_HYBRID, **_RECENT}
_TOWERS = {**TOWERS, "qwen2_audio": audio.whisper, "minicpmv": audio.minicpm_v, "phi3_v": audio.phi3_v}


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The shapes of a model; `encoder`: it reads a text at once and caches nothing."""

    shapes: Shapes
    encoder: bool = False


def knows(whole: Keys, text: Keys) -> bool:
    """Whether `build` knows the model's family."""
    kind = str(text.get("model_type") or whole.get("model_type") or "")
    return kind in ENCODERS or kind in _DECODERS


def build(whole: Keys, text: Keys) -> Built:
    """Shapes of the model that config.json (`whole`, its language part `text`) describes; FactError if not known."""
    kind = str(text.get("model_type") or whole.get("model_type") or "")
    names = whole.words("architectures")
    encoder = ENCODERS.get(kind)
    if encoder is not None:
        return Built(shapes=encoder(text, names[0] if names else ""), encoder=True)
    family = _DECODERS.get(kind)
    if family is None:
        raise FactError(
            f"the architecture {', '.join(names) or 'without a name'} (model_type {kind!r}) is not known",
            hint="Download the model and name its directory: its safetensors headers tell the weights.",
            source=whole.source,
        )
    shapes = family(text)
    tower = _TOWERS.get(str(whole.get("model_type")))
    if tower is not None and whole.has("vision_config", "audio_config", "img_processor"):
        shapes.role = "vision"
        tower(shapes, whole, text)
        shapes.role = None
    if names and names[0].endswith("ForSequenceClassification"):
        _replace_head(shapes, whole, text)
    return Built(shapes=shapes)


def _replace_head(shapes: Shapes, whole: Keys, text: Keys) -> None:
    """A decoder that scores or classifies has a small head where the vocabulary's would be."""
    shapes.weights = [weight for weight in shapes.weights if weight.role != "lm_head"]
    labels = whole.get("id2label")
    count = len(labels) if isinstance(labels, dict) else whole.size("num_labels", default=2)
    shapes.linear("score", "pooler", count, text.hidden, sharding="replicated", quantized=False)
