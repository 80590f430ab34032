"""Tensor shapes of an architecture from config.json alone: `build` finds the family by `model_type`.

A family is a function from `Keys` to `Shapes`. To add one: a row in `families.py` (or a function in the module that
is nearest), and one case in the tests with the parameter count that the model's makers state.
"""

from __future__ import annotations

from dataclasses import dataclass

from plimsoll.errors import FactError
from plimsoll.facts.architectures.families import FAMILIES, Family
from plimsoll.facts.architectures.keys import Keys
from plimsoll.facts.architectures.latent import deepseek, minicpm3
from plimsoll.facts.architectures.shapes import Shapes

_LATENT: dict[str, Family] = {
    **dict.fromkeys(
        ("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2", "glm_moe_dsa", "glm4_moe_lite", "deepseek_vl_v2"),
        deepseek,
    ),
    "minicpm3": minicpm3,
}
_DECODERS = {**FAMILIES, **_LATENT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The shapes of a model; `encoder`: it reads a text at once and caches nothing."""

    shapes: Shapes
    encoder: bool = False


def build(whole: Keys, text: Keys) -> Built:
    """Shapes of the model that config.json (`whole`, its language part `text`) describes; FactError if not known."""
    kind = str(text.get("model_type") or whole.get("model_type") or "")
    family = _DECODERS.get(kind)
    if family is None:
        names = ", ".join(whole.words("architectures")) or kind or "none named"
        raise FactError(
            f"the architecture {names} (model_type {kind!r}) is not known",
            hint="Download the model and name its directory: its safetensors headers tell the weights.",
            source=whole.source,
        )
    return Built(shapes=family(text))
