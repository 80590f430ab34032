"""Vision towers and projectors of models that also read images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from plimsoll.facts.architectures.keys import Keys
from plimsoll.facts.architectures.shapes import Shapes

Tower = Callable[[Shapes, Keys, Keys], None]
"""`(shapes, config.json, its language part)`: adds the tower's weights to the shapes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vit:
    """One stack of transformer layers over patches; `patch_values` 0 leaves out the patch embedding."""

    hidden: int
    layers: int
    inner: int
    patch_values: int
    attention_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True
    patch_bias: bool = True
    gated: bool = False
    positions: int = 0
    norms: int = 2
    extra: int = 0
    """Further vector values per layer: layer scales, norms of queries and keys."""
    qkv_width: int = 0
    """Width of queries, keys and values each, where it is not the hidden size."""


def add_stack(shapes: Shapes, vit: Vit, *, prefix: str = "visual.blocks.{}") -> None:
    """The patch embedding and all layers of a tower."""
    wide, every = vit.qkv_width or vit.hidden, range(vit.layers)
    shapes.linear("visual.patch_embed", "vision", vit.hidden, vit.patch_values, sharding="replicated",
                  bias=vit.patch_bias, quantized=False)  # fmt: skip
    shapes.table("visual.pos_embed", vit.positions, vit.hidden, sharding="replicated")
    shapes.linear(f"{prefix}.attn.qkv", "vision", 3 * wide, vit.hidden, at=every, bias=vit.attention_bias)
    shapes.linear(f"{prefix}.attn.proj", "vision", vit.hidden, wide, at=every, cut="in", bias=vit.out_bias)
    for name in ("gate", "up") if vit.gated else ("fc1",):
        shapes.linear(f"{prefix}.mlp.{name}", "vision", vit.inner, vit.hidden, at=every, bias=vit.mlp_bias)
    shapes.linear(f"{prefix}.mlp.fc2", "vision", vit.hidden, vit.inner, at=every, cut="in", bias=vit.mlp_bias)
    shapes.vector(f"{prefix}.norms", vit.norms * vit.hidden, at=every, bias=vit.norm_bias)
    shapes.vector(f"{prefix}.extra", vit.extra, at=every)


def add_projector(
    shapes: Shapes, widths: tuple[int, ...], *, bias: bool, norm: int = 0, norm_bias: bool = True
) -> None:
    """Linear layers from each width to the next."""
    shapes.vector("visual.merger.norm", norm, bias=norm_bias)
    for number, (inp, out) in enumerate(pairwise(widths)):
        shapes.linear(f"visual.merger.{number}", "vision", out, inp, bias=bias, cut="in" if number % 2 else "out")


def _patch_values(vision: Keys, *, frames: int = 1) -> int:
    patch = vision.size("patch_size", default=14, least=1)
    return vision.size("in_channels", "in_chans", "num_channels", default=3) * frames * patch * patch


def qwen2_vl(shapes: Shapes, whole: Keys, text: Keys) -> None:
    """Qwen2-VL: a plain tower and a merger of 2 x 2 patches."""
    vision = whole.part("vision_config")
    hidden = vision.size("embed_dim", default=1280)
    inner = int(vision.ratio("mlp_ratio", default=4) * hidden)
    add_stack(shapes, Vit(hidden=hidden, layers=vision.size("depth", default=32), inner=inner, patch_bias=False,
                          patch_values=_patch_values(vision, frames=2)))  # fmt: skip
    merged = hidden * vision.size("spatial_merge_size", default=2) ** 2
    add_projector(shapes, (merged, merged, text.hidden), bias=True, norm=hidden)


def qwen2_5_vl(shapes: Shapes, whole: Keys, text: Keys) -> None:
    """Qwen2.5-VL: gated feed-forward layers and RMS norms."""
    vision = whole.part("vision_config")
    hidden = vision.size("hidden_size", default=1280)
    add_stack(shapes, Vit(hidden=hidden, layers=vision.size("depth", default=32), gated=True, norm_bias=False,
                          inner=vision.size("intermediate_size", default=3420), patch_bias=False,
                          patch_values=_patch_values(vision, frames=2)))  # fmt: skip
    merged = hidden * vision.size("spatial_merge_size", default=2) ** 2
    out = vision.size("out_hidden_size", default=text.hidden)
    add_projector(shapes, (merged, merged, out), bias=True, norm=hidden, norm_bias=False)


def qwen3_vl(shapes: Shapes, whole: Keys, text: Keys) -> None:
    """Qwen3-VL and Qwen3.5: learned positions, and mergers that feed the first layers (deepstack)."""
    vision = whole.part("vision_config")
    hidden = vision.size("hidden_size", default=1152)
    add_stack(shapes, Vit(hidden=hidden, layers=vision.size("depth", default=27),
                          inner=vision.size("intermediate_size"),
                          positions=vision.size("num_position_embeddings", default=2304),
                          patch_values=_patch_values(vision, frames=2)))  # fmt: skip
    merged = hidden * vision.size("spatial_merge_size", default=2) ** 2
    add_projector(shapes, (merged, merged, text.hidden), bias=True, norm=hidden)
    for _ in vision.sizes("deepstack_visual_indexes"):
        add_projector(shapes, (merged, merged, text.hidden), bias=True, norm=merged)


def siglip(shapes: Shapes, whole: Keys, text: Keys) -> None:
    """Gemma 3: SigLIP and one projection; the pooling head is not part of the checkpoint."""
    vision = whole.part("vision_config")
    hidden, image = vision.size("hidden_size"), vision.size("image_size", default=896)
    patches = (image // vision.size("patch_size", default=14, least=1)) ** 2
    add_stack(shapes, Vit(hidden=hidden, layers=vision.size("num_hidden_layers"),
                          inner=vision.size("intermediate_size"),
                          patch_values=_patch_values(vision), positions=patches))  # fmt: skip
    shapes.vector("visual.post_layernorm", hidden, bias=True)
    add_projector(shapes, (hidden, text.hidden), bias=False, norm=hidden, norm_bias=False)


def gemma4(shapes: Shapes, whole: Keys, text: Keys) -> None:
    """Gemma 4: gated layers with four norms and normed queries and keys; two tables of positions."""
    vision = whole.part("vision_config")
    if not vision.values:
        return
    hidden = vision.size("hidden_size")
    add_stack(shapes, Vit(hidden=hidden, layers=vision.size("num_hidden_layers"),
                          inner=vision.size("intermediate_size"),
                          patch_values=_patch_values(vision), gated=True, attention_bias=False, out_bias=False,
                          mlp_bias=False, norm_bias=False, patch_bias=False, norms=4, extra=2 * vision.head_dim,
                          positions=2 * vision.size("position_embedding_size", default=10240)))  # fmt: skip
    if vision.flag("standardize"):
        shapes.vector("visual.standardize", 2 * hidden)
    add_projector(shapes, (hidden, text.hidden), bias=False)


def llava(shapes: Shapes, whole: Keys, text: Keys) -> None:
    """LLaVA: CLIP and two projections; Pixtral's tower in the first checkpoints of Pixtral."""
    vision = whole.part("vision_config")
    if vision.get("model_type") == "pixtral":
        pixtral(shapes, whole, text)
        return
    hidden, image = vision.size("hidden_size", default=1024), vision.size("image_size", default=336)
    add_stack(shapes, Vit(hidden=hidden, layers=vision.size("num_hidden_layers", default=24), patch_bias=False,
                          inner=vision.size("intermediate_size", default=4096), patch_values=_patch_values(vision),
                          positions=(image // vision.size("patch_size", default=14, least=1)) ** 2 + 2))  # fmt: skip
    shapes.vector("visual.layernorms", 2 * hidden, bias=True)
    add_projector(shapes, (hidden, text.hidden, text.hidden), bias=True)


def pixtral(shapes: Shapes, whole: Keys, text: Keys) -> None:
    """Mistral Small 3.1 and later, Pixtral: gated layers without biases, patches merged 2 x 2."""
    vision = whole.part("vision_config")
    hidden = vision.size("hidden_size", default=1024)
    add_stack(shapes, Vit(hidden=hidden, layers=vision.size("num_hidden_layers", default=24), gated=True,
                          inner=vision.size("intermediate_size", default=4096), patch_values=_patch_values(vision),
                          attention_bias=False, out_bias=False, mlp_bias=False, norm_bias=False,
                          patch_bias=False))  # fmt: skip
    shapes.vector("visual.ln_pre", hidden)
    bias = whole.flag("multimodal_projector_bias")
    merge = whole.size("spatial_merge_size", default=1)
    if merge > 1:
        shapes.vector("visual.merger.norm", hidden)
        shapes.linear("visual.patch_merger", "vision", hidden, hidden * merge * merge, sharding="replicated")
    add_projector(shapes, (hidden, text.hidden, text.hidden), bias=bias)


def intern_vit(shapes: Shapes, whole: Keys, text: Keys) -> None:
    """InternVL: InternViT with layer scales; pixels are shuffled down before two projections."""
    vision = whole.part("vision_config")
    hidden = vision.size("hidden_size", default=1024)
    image = vision.sizes("image_size") or (vision.size("image_size", default=448),)
    patch = vision.sizes("patch_size") or (vision.size("patch_size", default=14, least=1),)
    normed = vision.flag("qk_normalization", "use_qk_norm")
    add_stack(shapes, Vit(hidden=hidden, layers=vision.size("num_hidden_layers", default=24),
                          inner=vision.size("intermediate_size", default=4096), patch_values=3 * max(1, patch[0]) ** 2,
                          attention_bias=vision.flag("qkv_bias", "attention_bias"), extra=(4 if normed else 2) * hidden,
                          norm_bias=vision.get("norm_type") != "rms_norm",
                          positions=(image[0] // max(1, patch[0])) ** 2 + 2))  # fmt: skip
    shuffled = hidden * round(1 / whole.ratio("downsample_ratio", default=0.5)) ** 2
    add_projector(shapes, (shuffled, text.hidden, text.hidden), bias=True, norm=shuffled)


def mllama(shapes: Shapes, whole: Keys, text: Keys) -> None:
    """Llama 3.2 Vision: two stacks of layers, tables of tile positions, one projection."""
    vision = whole.part("vision_config")
    hidden, tiles = vision.size("hidden_size", default=1280), vision.size("max_num_tiles", default=4)
    patches = (vision.size("image_size", default=560) // vision.size("patch_size", default=14, least=1)) ** 2 + 1
    ratios = vision.size("max_aspect_ratio_id", default=8) + 1
    extra_layers = vision.size("num_global_layers", default=8)
    plain = Vit(hidden=hidden, layers=vision.size("num_hidden_layers", default=32), patch_bias=False,
                 inner=vision.size("intermediate_size", default=5120), patch_values=_patch_values(vision),
                 attention_bias=False, out_bias=False, positions=patches + 1)  # fmt: skip
    add_stack(shapes, plain)
    add_stack(shapes, Vit(hidden=hidden, layers=extra_layers, inner=plain.inner, patch_values=0, attention_bias=False,
                        out_bias=False, extra=2), prefix="visual.global.{}")  # fmt: skip
    shapes.table("visual.tile_positions", ratios, tiles * patches * hidden, sharding="replicated")
    shapes.table("visual.tile_embeddings", 2 * ratios, tiles * hidden, sharding="replicated")
    shapes.vector("visual.layernorms", 2 * hidden, bias=True)
    shapes.vector("visual.gates", 3)
    add_projector(shapes, (vision.size("vision_output_dim", default=7680), text.hidden), bias=True)


def llama4(shapes: Shapes, whole: Keys, text: Keys) -> None:
    """Llama 4: a plain tower, a pixel shuffle with two projections, and one more."""
    vision = whole.part("vision_config")
    hidden, image = vision.size("hidden_size", default=1408), vision.size("image_size", default=336)
    add_stack(shapes, Vit(hidden=hidden, layers=vision.size("num_hidden_layers", default=34), patch_bias=False,
                          inner=vision.size("intermediate_size", default=5632), patch_values=_patch_values(vision),
                          positions=(image // vision.size("patch_size", default=14, least=1)) ** 2 + 2))  # fmt: skip
    shapes.vector("visual.layernorms", 2 * hidden, bias=True)
    ratio = round(1 / vision.ratio("pixel_shuffle_ratio", default=0.5)) ** 2
    middle = vision.size("projector_input_dim", default=4096)
    out = vision.size("projector_output_dim", default=4096)
    add_projector(shapes, (hidden * ratio, middle, out), bias=False)
    shapes.linear("visual.projector", "vision", text.hidden, vision.size("vision_output_dim", default=4096))


def kimi(shapes: Shapes, whole: Keys, text: Keys) -> None:
    """Kimi K2.5 onwards: MoonViT with learned positions, 2 x 2 patches merged into two projections."""
    vision = whole.part("vision_config")
    hidden = vision.size("vt_hidden_size", "hidden_size")
    plain = vision.flag("linear_bias", default=True)
    normed = vision.get("norm_type") != "rmsnorm"
    side = (vision.size("init_pos_emb_height", "pos_emb_height", default=64)
            * vision.size("init_pos_emb_width", "pos_emb_width", default=64))  # fmt: skip
    add_stack(shapes, Vit(hidden=hidden, layers=vision.size("vt_num_hidden_layers", "num_hidden_layers"),
                          inner=vision.size("vt_intermediate_size", "intermediate_size"), positions=side,
                          patch_values=_patch_values(vision), out_bias=plain, mlp_bias=plain,
                          attention_bias=vision.flag("attn_bias", default=True), norm_bias=normed,
                          patch_bias=vision.flag("patch_embed_proj_bias", default=True),
                          qkv_width=vision.size("qkv_hidden_size", default=0)))  # fmt: skip
    shapes.vector("visual.final_layernorm", hidden, bias=normed)
    merged = 4 * hidden
    add_projector(shapes, (merged, merged, text.hidden), bias=True, norm=hidden)


def glm4v(shapes: Shapes, whole: Keys, text: Keys) -> None:
    """GLM-4.1V onwards: gated layers without biases, a convolution that merges patches, a gated merger."""
    vision = whole.part("vision_config")
    hidden, out = vision.size("hidden_size"), vision.size("out_hidden_size", default=text.hidden)
    image, patch = vision.size("image_size", default=336), vision.size("patch_size", default=14, least=1)
    inner = vision.size("intermediate_size")
    bias = vision.flag("attention_bias")
    add_stack(shapes, Vit(hidden=hidden, layers=vision.size("depth"), inner=out, gated=True,
                          patch_values=_patch_values(vision, frames=2), attention_bias=bias, out_bias=bias,
                          mlp_bias=False, norm_bias=False, positions=(image // patch) ** 2))  # fmt: skip
    shapes.vector("visual.layernorms", 2 * hidden)
    shapes.linear("visual.downsample", "vision", out, hidden * 4, sharding="replicated", bias=True, quantized=False)
    shapes.linear("visual.merger.proj", "vision", out, out, sharding="replicated")
    shapes.vector("visual.merger.norm", out, bias=True)
    for name in ("gate_proj", "up_proj"):
        shapes.linear(f"visual.merger.{name}", "vision", inner, out)
    shapes.linear("visual.merger.down_proj", "vision", out, inner, cut="in")


def minimax_m3(shapes: Shapes, whole: Keys, text: Keys) -> None:
    """MiniMax-M3: a CLIP-like tower over pairs of frames, projections before and after 2 x 2 patches are merged."""
    vision = whole.part("vision_config")
    if not vision.values:
        return
    hidden = vision.size("hidden_size", default=1280)
    add_stack(shapes, Vit(hidden=hidden, layers=vision.size("num_hidden_layers"),
                          inner=vision.size("intermediate_size"),
                          patch_values=_patch_values(vision, frames=2), patch_bias=False))  # fmt: skip
    shapes.vector("visual.pre_layernorm", hidden, bias=True)
    width = whole.size("projector_hidden_size", default=text.hidden)
    add_projector(shapes, (hidden, width, text.hidden), bias=True)
    add_projector(shapes, (4 * text.hidden, width, text.hidden), bias=True)


TOWERS: dict[str, Tower] = {
    "qwen2_vl": qwen2_vl, "qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl, "qwen3_vl_moe": qwen3_vl, "qwen3_5": qwen3_vl,
    "qwen3_5_moe": qwen3_vl, "gemma3": siglip, "gemma4": gemma4, "llava": llava, "pixtral": pixtral,
    "mistral3": pixtral, "internvl_chat": intern_vit, "internvl": intern_vit, "mllama": mllama, "llama4": llama4,
    "kimi_k25": kimi, "kimi_vl": kimi, "kimi_k3": kimi, "glm4v": glm4v, "glm4v_moe": glm4v, "minimax_m3_vl": minimax_m3,
}  # fmt: skip
