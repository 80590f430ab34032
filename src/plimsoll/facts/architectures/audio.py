"""Audio encoders, and towers of models that keep no `vision_config` of the usual kind."""

from __future__ import annotations

from plimsoll.facts.architectures.keys import Keys
from plimsoll.facts.architectures.shapes import Shapes
from plimsoll.facts.architectures.vision import Vit, add_projector, add_stack


def whisper(shapes: Shapes, whole: Keys, text: Keys) -> None:
    """Qwen2-Audio: Whisper's encoder behind two convolutions over 128 mel bands, and one projection."""
    audio = whole.part("audio_config")
    hidden, bands = audio.size("d_model", default=1280), audio.size("num_mel_bins", default=128)
    layers = range(audio.size("encoder_layers", default=32))
    inner = audio.size("encoder_ffn_dim", default=5120)
    shapes.linear("visual.conv1", "vision", hidden, 3 * bands, sharding="replicated", bias=True, quantized=False)
    shapes.linear("visual.conv2", "vision", hidden, 3 * hidden, sharding="replicated", bias=True, quantized=False)
    shapes.table(
        "visual.embed_positions", audio.size("max_source_positions", default=1500), hidden, sharding="replicated"
    )
    for name, bias in (("q", True), ("k", False), ("v", True)):
        shapes.linear(f"visual.blocks.{{}}.attn.{name}_proj", "vision", hidden, hidden, at=layers, bias=bias)
    shapes.linear("visual.blocks.{}.attn.out_proj", "vision", hidden, hidden, at=layers, cut="in", bias=True)
    shapes.linear("visual.blocks.{}.fc1", "vision", inner, hidden, at=layers, bias=True)
    shapes.linear("visual.blocks.{}.fc2", "vision", hidden, inner, at=layers, cut="in", bias=True)
    shapes.vector("visual.blocks.{}.norms", 2 * hidden, at=layers, bias=True)
    shapes.vector("visual.layer_norm", hidden, bias=True)
    add_projector(shapes, (hidden, text.hidden), bias=True)


def minicpm_v(shapes: Shapes, whole: Keys, text: Keys) -> None:
    """MiniCPM-V 2.6: SigLIP, and a resampler that lets learned queries look at the patches."""
    vision, width = whole.part("vision_config"), text.hidden
    hidden, patch = vision.size("hidden_size", default=1152), vision.size("patch_size", default=14, least=1)
    add_stack(shapes, Vit(hidden=hidden, layers=vision.size("num_hidden_layers", default=27), patch_values=3 * patch**2,
                          inner=vision.size("intermediate_size", default=4304),
                          positions=(vision.size("image_size", default=980) // patch) ** 2))  # fmt: skip
    shapes.vector("visual.post_layernorm", hidden, bias=True)
    shapes.table("visual.resampler.query", whole.size("query_num", default=64), width, sharding="replicated")
    shapes.linear("visual.resampler.kv_proj", "vision", width, hidden)
    shapes.linear("visual.resampler.attn.in_proj", "vision", 3 * width, width, bias=True)
    shapes.linear("visual.resampler.attn.out_proj", "vision", width, width, cut="in", bias=True)
    shapes.linear("visual.resampler.proj", "vision", width, width)
    shapes.vector("visual.resampler.norms", 3 * width, bias=True)


def phi3_v(shapes: Shapes, whole: Keys, text: Keys) -> None:
    """Phi-3 and 3.5 Vision: CLIP-L at 336 pixels, which config.json does not describe, and two projections."""
    hidden = 1024
    add_stack(shapes, Vit(hidden=hidden, layers=24, inner=4096, patch_values=3 * 14**2, patch_bias=False,
                          positions=24**2 + 2))  # fmt: skip
    shapes.vector("visual.layernorms", 2 * hidden, bias=True)
    shapes.vector("visual.separators", 2 * 4 * hidden)
    add_projector(shapes, (4 * hidden, text.hidden, text.hidden), bias=True)
