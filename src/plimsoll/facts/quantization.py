"""How quantized checkpoints store a linear layer: which layers, and how many bytes with scales and zero points.

`read_scheme` turns the `quantization_config` of config.json (or hf_quant_config.json) into a `Scheme`, which answers
for each linear layer how it is packed. Sources: the checkpoint formats of AutoAWQ, GPTQ, bitsandbytes,
compressed-tensors, NVIDIA ModelOpt, AutoRound and DeepSeek's and OpenAI's own, as vLLM's loaders read them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import translate
from math import ceil
from typing import Any, Literal

from plimsoll.errors import FactError
from plimsoll.facts.model import Quantization, TensorRole

Layout = Literal["awq", "gptq", "bnb4", "bnb8", "packed", "int8", "fp8", "fp8_block", "mxfp8", "mxfp4", "nvfp4"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """One way to store a linear layer of `out` x `inp` weights."""

    layout: Layout
    bits: float
    group: int = 0
    """Weights that share a scale along the inputs; 0: a whole row."""
    block: tuple[int, int] = (128, 128)
    scale_bytes: int = 2
    zero_points: bool = False
    per_channel: bool = False
    static_input: bool = False
    nested: bool = True

    @property
    def label(self) -> str:
        """As a tensor's dtype is shown."""
        return {"fp8_block": "fp8", "packed": f"int{self.bits:g}", "awq": "int4", "gptq": f"int{self.bits:g}",
                "bnb4": "nf4", "bnb8": "int8"}.get(self.layout, self.layout)  # fmt: skip

    def bytes_of(self, out: int, inp: int) -> int:
        """Bytes of one such layer, with all that belongs to its weight."""
        values = out * inp
        groups = ceil(inp / self.group) if self.group else 1
        match self.layout:
            case "awq":  # qweight, qzeros and float16 scales
                return values // 2 + groups * out // 2 + groups * out * 2
            case "gptq":  # the same, with an int32 group number for each input
                packed = int(values * self.bits) // 8 + int(groups * out * self.bits) // 8
                return packed + groups * out * 2 + inp * 4
            case "bnb4":  # blocks of 64 with one scale; the scales themselves in 8 bits with float32 ones per 256
                scales = ceil(values / 64)
                tables = 16 * 4 + (256 * 4 if self.nested else 0)
                return values // 2 + (scales + ceil(scales / 256) * 4 if self.nested else scales * 4) + tables
            case "bnb8":
                return values + out * 4
            case "packed":  # compressed-tensors: int32 words, scales, and the shape as two int64
                zeros = int(groups * out * self.bits) // 8 if self.zero_points else 0
                return int(values * self.bits) // 8 + groups * out * self.scale_bytes + zeros + 16
            case "int8":
                return values + out * self.scale_bytes
            case "fp8":
                scale = out * 4 if self.per_channel else 4
                return values + scale + (4 if self.static_input else 0)
            case "fp8_block":
                return values + ceil(out / self.block[0]) * ceil(inp / self.block[1]) * self.scale_bytes
            case "mxfp8":
                return values + ceil(values / 32)
            case "mxfp4":
                return values // 2 + ceil(values / 32)
            case "nvfp4":
                return values // 2 + ceil(values / 16) + 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`packing` (None: as it is) for the modules that one of the patterns names."""

    literals: frozenset[str]
    """Names from `layers.` on, or of a part anywhere (`lm_head`, `gate`)."""
    inner: tuple[str, ...]
    """Names of several parts that say no layer: `mlp.gate`."""
    globs: re.Pattern[str] | None
    regexes: tuple[re.Pattern[str], ...]
    packing: Packing | None

    def covers(self, name: str) -> bool:
        """Whether the module or one around it is named; `name` begins at `layers.`, or at its own first part."""
        parts = name.split(".")
        if not self.literals.isdisjoint(parts):
            return True
        head = ""
        for part in parts:
            head = f"{head}.{part}" if head else part
            if head in self.literals:
                return True
        if any(f".{inner}." in f".{name}." for inner in self.inner):
            return True
        if self.globs is not None and (self.globs.match(name) or self.globs.match(f"{name}.weight")):
            return True
        return any(regex.match(f"model.{name}") or regex.match(name) for regex in self.regexes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How a checkpoint is quantized: the first rule that covers a module wins, else `packing`."""

    facts: Quantization
    packing: Packing | None
    rules: tuple[Rule, ...] = ()
    roles: frozenset[TensorRole] | None = None
    """Only tensors of these roles are quantized; None: all linear layers."""
    by_role: Mapping[TensorRole, Packing] = field(default_factory=dict)

    def packing_of(self, name: str, role: TensorRole) -> Packing | None:
        """How the linear layer `name` is stored; None: at full precision."""
        if self.roles is not None and role not in self.roles:
            return None
        for rule in self.rules:
            if rule.covers(name):
                return rule.packing
        return self.by_role.get(role, self.packing)


_DECODER: frozenset[TensorRole] = frozenset({"attention", "mlp", "experts", "shared_experts", "state"})
_OUTSIDE = re.compile(r"^(?:model|language_model|backbone|transformer|thinker|llm)\.")
_ALIASES = (
    (re.compile(r"experts\.\d+(?=\.|$)"), "experts"),
    (re.compile(r"\b(block_sparse_moe|feed_forward|ffn)\b"), "mlp"),
    (re.compile(r"\bshared_expert\b"), "shared_experts"),
    (re.compile(r"\bmlp\.router\b"), "mlp.gate"),
    (re.compile(r"^(visual|vision_tower|vision_model|multi_modal_projector|mm_projector|embed_vision|patch_merge_mlp)\b"),
     "visual"),
)  # fmt: skip
_FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj"),
    "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"), "in_proj_ba": ("in_proj_b", "in_proj_a"),
}  # fmt: skip


def module_name(name: str) -> str:
    """A module's name as architectures here have it: from `layers.` on, without wrappers, one word for one thing."""
    at = name.find("layers.")
    if at > 0 and name[at + 7 : at + 8].isdigit() and not name.startswith(("visual", "vision", "model.visual")):
        name = name[at:]
    else:
        while (shorter := _OUTSIDE.sub("", name)) != name:
            name = shorter
    for pattern, word in _ALIASES:
        name = pattern.sub(word, name)
    return name


def rule(patterns: Iterable[str], packing: Packing | None = None) -> Rule:
    """A rule from names, globs (`*`) and regular expressions (`re:` in front)."""
    literals: set[str] = set()
    globs: set[str] = set()
    regexes: list[re.Pattern[str]] = []
    for pattern in patterns:
        if pattern.startswith("re:"):
            try:
                regexes.append(re.compile(pattern[3:]))
            except re.error as error:
                raise FactError(f"the quantization config holds a broken pattern, {pattern!r}: {error}") from error
            continue
        name = module_name(pattern.removesuffix(".weight"))
        stem, _, last = name.rpartition(".")
        names = [f"{stem}.{part}" if stem else part for part in _FUSED.get(last, (last,))]
        (globs if "*" in name else literals).update(names)
    return Rule(
        literals=frozenset(literals),
        inner=tuple(name for name in literals if "." in name and not name.startswith("layers.")),
        globs=re.compile("|".join(translate(glob) for glob in sorted(globs))) if globs else None,
        regexes=tuple(regexes),
        packing=packing,
    )


def read_scheme(config: Mapping[str, Any], *, source: str) -> Scheme | None:
    """The scheme of a `quantization_config`, None when it is empty; FactError for a method that is not known."""
    if not config:
        return None
    inner = config.get("quantization")
    if isinstance(inner, Mapping):  # hf_quant_config.json
        config = {"quant_method": "modelopt", **inner}
    method = str(config.get("quant_method") or ("modelopt" if config.get("quant_algo") else "")).lower()
    reader = _READERS.get(method)
    if reader is None:
        raise FactError(
            f"the quantization method {method or 'without a name'} is not known",
            hint=f"Known are {', '.join(sorted(_READERS))}.",
            source=source,
        )
    scheme = reader(config)
    return replace(scheme, facts=replace(scheme.facts, skip=_skipped(config)[:64]))


def _skipped(config: Mapping[str, Any]) -> tuple[str, ...]:
    for key in ("modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules", "llm_int8_skip_modules"):
        value = config.get(key)
        if isinstance(value, list):
            return tuple(str(item) for item in value)
    return ()


def _whole(config: Mapping[str, Any], *names: str, default: int) -> int:
    value = next((config[name] for name in names if isinstance(config.get(name), int)), default)
    return int(value)


def _awq(config: Mapping[str, Any]) -> Scheme:
    bits, group = _whole(config, "bits", "w_bit", default=4), _whole(config, "group_size", "q_group_size", default=128)
    return Scheme(
        facts=Quantization(method="awq", bits=bits, group_size=group),
        packing=Packing(layout="awq", bits=bits, group=max(0, group)),
        rules=(rule(_skipped(config)),),
        roles=_DECODER,
    )


def _gptq(config: Mapping[str, Any]) -> Scheme:
    bits, group = _whole(config, "bits", default=4), _whole(config, "group_size", default=128)
    dynamic = config.get("dynamic")
    spared = [f"re:{key[2:]}" for key in dynamic if key.startswith("-:")] if isinstance(dynamic, Mapping) else []
    head: frozenset[TensorRole] = frozenset({"lm_head"} if config.get("lm_head") else ())
    return Scheme(
        facts=Quantization(method="gptq", bits=bits, group_size=group),
        packing=Packing(layout="gptq", bits=bits, group=max(0, group)),
        rules=(rule([*_skipped(config), *spared]),),
        roles=_DECODER | head,
    )


def _autoround(config: Mapping[str, Any]) -> Scheme:
    base = _awq(config) if "awq" in str(config.get("packing_format", "")) else _gptq(config)
    extra = config.get("extra_config")
    spared = [
        str(name) for name, value in (extra.items() if isinstance(extra, Mapping) else ())
        if isinstance(value, Mapping) and int(value.get("bits", 16)) >= 16
    ]  # fmt: skip
    return replace(
        base,
        facts=replace(base.facts, method="auto-round"),
        rules=(*base.rules, rule(spared)) if spared else base.rules,
    )


def _bitsandbytes(config: Mapping[str, Any]) -> Scheme:
    four = bool(config.get("load_in_4bit", not config.get("load_in_8bit", False)))
    packing = Packing(
        layout="bnb4" if four else "bnb8", bits=4 if four else 8, nested=bool(config.get("bnb_4bit_use_double_quant"))
    )
    return Scheme(
        facts=Quantization(method="bitsandbytes", bits=packing.bits),
        packing=packing,
        rules=(rule([*_skipped(config), "lm_head"]),),
    )


def _block(value: Any) -> tuple[int, int] | None:
    """Rows and columns that share a scale; None where the config does not say."""
    if (
        not isinstance(value, list | tuple)
        or len(value) != 2
        or not all(type(side) is int and side > 0 for side in value)
    ):
        return None
    return value[0], value[1]


def _fp8(config: Mapping[str, Any]) -> Scheme:
    shape = _block(config.get("weight_block_size"))
    if shape:
        small = config.get("scale_fmt") == "ue8m0" and config.get("expert_dtype") is not None
        packing = Packing(layout="fp8_block", bits=8, block=shape, scale_bytes=1 if small else 4)
    else:
        packing = Packing(
            layout="fp8", bits=8, static_input=config.get("activation_scheme") == "static",
            per_channel=config.get("quant_method") == "fbgemm_fp8",
        )  # fmt: skip
    rules = [rule([*_skipped(config), "lm_head"])]
    by_role: dict[TensorRole, Packing] = {}
    if config.get("expert_dtype") == "fp4":
        by_role["experts"] = Packing(layout="mxfp4", bits=4.25)
    if config.get("quant_algo") == "MIXED_PRECISION" and config.get("moe_quant_algo") == "NVFP4":
        by_role["experts"] = Packing(layout="nvfp4", bits=4.5)
    return Scheme(
        facts=Quantization(method="fp8", bits=8, block=shape, activation=config.get("activation_scheme") or "dynamic"),
        packing=packing,
        rules=tuple(rules),
        by_role=by_role,
    )


def _mxfp4(config: Mapping[str, Any]) -> Scheme:
    return Scheme(
        facts=Quantization(method="mxfp4", bits=4.25, group_size=32),
        packing=Packing(layout="mxfp4", bits=4.25),
        rules=(rule(_skipped(config)),),
        roles=frozenset({"experts"}),
    )


def _compressed_packing(weights: Mapping[str, Any], style: str) -> Packing:
    bits, group = _whole(weights, "num_bits", default=8), _whole(weights, "group_size", default=0)
    floating = weights.get("type") == "float"
    if floating and bits == 4:
        return Packing(layout="mxfp4", bits=4.25) if "mx" in style or group == 32 else Packing(layout="nvfp4", bits=4.5)
    if floating:
        strategy = weights.get("strategy")
        if strategy == "block":
            block = _block(weights.get("block_structure")) or (128, 128)
            return Packing(layout="fp8_block", bits=8, block=block, scale_bytes=2)
        return Packing(layout="fp8", bits=8, per_channel=strategy == "channel")
    if "pack" in style or bits < 8:
        return Packing(layout="packed", bits=bits, group=max(0, group), zero_points=weights.get("symmetric") is False)
    return Packing(layout="int8", bits=bits, group=max(0, group))


def _compressed(config: Mapping[str, Any]) -> Scheme:
    groups = config.get("config_groups")
    packing: Packing | None = None
    rules = [rule([*_skipped(config), *(["lm_head"] if not _skipped(config) else [])])]
    activation = None
    for part in groups.values() if isinstance(groups, Mapping) else ():
        weights = part.get("weights") if isinstance(part, Mapping) else None
        if not isinstance(weights, Mapping):
            continue
        found = _compressed_packing(weights, str(part.get("format") or config.get("format") or ""))
        targets = [str(target) for target in part.get("targets") or ["Linear"]]
        inputs = part.get("input_activations")
        if isinstance(inputs, Mapping):
            activation = "dynamic" if inputs.get("dynamic") else "static"
        if "Linear" in targets:
            packing = found
        else:
            rules.append(rule(targets, found))
    return Scheme(
        facts=Quantization(
            method="compressed-tensors", bits=packing.bits if packing else 8,
            group_size=packing.group or None if packing else None, activation=activation,
            name=str(config.get("format") or ""),
        ),
        packing=packing,
        rules=tuple(rules),
    )  # fmt: skip


_ALGORITHMS: dict[str, Packing] = {
    "FP8": Packing(layout="fp8", bits=8, static_input=True),
    "FP8_PER_CHANNEL_PER_TOKEN": Packing(layout="fp8", bits=8, per_channel=True),
    "FP8_PB_WO": Packing(layout="fp8_block", bits=8),
    "MXFP8": Packing(layout="mxfp8", bits=8.25),
    "NVFP4": Packing(layout="nvfp4", bits=4.5),
    "NVFP4_AWQ": Packing(layout="nvfp4", bits=4.5),
    "W4A16_NVFP4": Packing(layout="nvfp4", bits=4.5),
    "W4A16_AWQ": Packing(layout="packed", bits=4, group=128),
    "W4A8_AWQ": Packing(layout="packed", bits=4, group=128),
    "W8A16": Packing(layout="int8", bits=8),
    "W8A8_SQ_PER_CHANNEL": Packing(layout="int8", bits=8, scale_bytes=4),
}


def _modelopt(config: Mapping[str, Any]) -> Scheme:
    algorithm = str(config.get("quant_algo") or "FP8").upper()
    spared = rule([*_skipped(config), "lm_head"])
    layers = config.get("quantized_layers")
    if isinstance(layers, Mapping):
        named: dict[str, list[str]] = {}
        for name, how in layers.items():
            named.setdefault(str(how.get("quant_algo")).upper(), []).append(str(name))
        rules = tuple(rule(names, _ALGORITHMS.get(kind)) for kind, names in named.items())
        kinds = [_ALGORITHMS[kind].bits for kind in named if kind in _ALGORITHMS]
        return Scheme(
            facts=Quantization(method="modelopt", bits=min(kinds, default=8), name=algorithm), packing=None, rules=rules
        )
    if algorithm not in _ALGORITHMS:
        raise FactError(f"the ModelOpt algorithm {algorithm} is not known", hint=f"Known: {', '.join(_ALGORITHMS)}.")
    packing = _ALGORITHMS[algorithm]
    group = _whole(config, "group_size", default=16) if packing.layout == "nvfp4" else None
    return Scheme(
        facts=Quantization(method="modelopt", bits=packing.bits, group_size=group, name=algorithm),
        packing=packing,
        rules=(spared,),
    )


_READERS = {
    "awq": _awq, "awq_marlin": _awq, "gptq": _gptq, "gptq_marlin": _gptq, "auto-round": _autoround,
    "autoround": _autoround, "intel/auto-round": _autoround, "bitsandbytes": _bitsandbytes, "fp8": _fp8,
    "fbgemm_fp8": _fp8, "mxfp4": _mxfp4, "compressed-tensors": _compressed, "compressed_tensors": _compressed,
    "modelopt": _modelopt, "modelopt_fp4": _modelopt, "modelopt_mixed": _modelopt,
}  # fmt: skip
