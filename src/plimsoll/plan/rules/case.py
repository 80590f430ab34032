"""A candidate read once for all rules: the handful of names that conditions are written in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any

from plimsoll.facts.hardware import Device, Vendor
from plimsoll.facts.incompatible import gguf_name
from plimsoll.facts.model import ModelFacts
from plimsoll.facts.versions import in_range
from plimsoll.plan.ledger import Ledger
from plimsoll.plan.types import Candidate

DTYPE_NAMES = {"half": "float16", "float": "float32", "fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


def as_number(value: object) -> float | None:
    """A finite number out of what a user wrote; None where it is none."""
    if not isinstance(value, (str, int, float)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if isfinite(number) else None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One candidate, and its ledger where there is one. Sizes are counts, memory is bytes."""

    candidate: Candidate
    ledger: Ledger | None = None

    @cached_property
    def engine(self) -> str:
        """Name of the engine, with underscores."""
        return self.candidate.engine.name.replace("-", "_")

    def since(self, versions: str) -> bool:
        """Whether the engine's version lies in the range."""
        return in_range(self.candidate.engine.version, versions)

    @property
    def model(self) -> ModelFacts:
        """The model's facts."""
        return self.candidate.model

    @property
    def devices(self) -> tuple[Device, ...]:
        """One per rank."""
        return self.candidate.devices

    @property
    def tp(self) -> int:
        """Tensor-parallel size."""
        return self.candidate.parallel.tensor

    @property
    def pp(self) -> int:
        """Pipeline-parallel size."""
        return self.candidate.parallel.pipeline

    @property
    def dp(self) -> int:
        """Data-parallel size."""
        return self.candidate.parallel.data

    @property
    def ep(self) -> int:
        """Ranks that share the experts; 1 without expert parallelism."""
        return self.candidate.parallel.expert

    @property
    def nodes(self) -> int:
        """Machines of one replica."""
        return self.candidate.nodes

    @cached_property
    def vendor(self) -> Vendor:
        """Of the first device."""
        return self.devices[0].vendor if self.devices else "cpu"

    @cached_property
    def capability(self) -> int | None:
        """Lowest CUDA compute capability among the devices, times ten (86 is 8.6); None off CUDA."""
        found = [
            round(float(device.arch) * 10)
            for device in self.devices
            if device.vendor == "nvidia" and device.arch.replace(".", "", 1).isdigit()
        ]
        return min(found, default=None)

    @cached_property
    def options(self) -> Mapping[str, str | int | float | bool]:
        """The engine's own flags, long names with underscores."""
        return self.candidate.options

    def on(self, name: str) -> bool:
        """Whether a switch is given and not turned off."""
        return str(self.options.get(name, False)).lower() not in ("false", "0", "", "none", "off")

    def off(self, name: str) -> bool:
        """Whether a switch is turned off on purpose, as itself or by its `no_` form."""
        return (name in self.options and not self.on(name)) or self.on(f"no_{name}")

    def text(self, name: str) -> str:
        """An option as text, "" when it is not given."""
        return str(self.options.get(name, ""))

    def number(self, name: str) -> float | None:
        """An option as a number; None when it is not given or is none."""
        return as_number(self.options.get(name))

    def json(self, name: str) -> Mapping[str, Any]:
        """An option that holds a JSON object, with its dotted parts (`name.key`) laid over it."""
        try:
            value = json.loads(self.text(name) or "{}")
        except ValueError:
            value = {}
        found = dict(value) if isinstance(value, dict) else {}
        head = f"{name}."
        found.update({key[len(head) :]: part for key, part in self.options.items() if key.startswith(head)})
        return found

    @property
    def env(self) -> Mapping[str, str]:
        """The environment that the spec sets."""
        return self.candidate.deployment.env

    @cached_property
    def dtype_asked(self) -> str:
        """The dtype as the spec or a flag names it; `auto` when left to the engine."""
        asked = self.text("dtype") or self.candidate.dtype
        if asked == "auto":
            asked = self.candidate.deployment.dtype
        return DTYPE_NAMES.get(asked, asked)

    @cached_property
    def dtype(self) -> str:
        """The dtype that it comes to: what was asked for, or the model's own."""
        return self.model.dtype if self.dtype_asked == "auto" else self.dtype_asked

    @cached_property
    def kv_dtype(self) -> str:
        """Dtype of the KV cache as asked for."""
        asked = self.text("kv_cache_dtype") or self.candidate.kv_dtype
        return self.candidate.deployment.kv_cache_dtype if asked == "auto" else asked

    @cached_property
    def quantization_asked(self) -> str | None:
        """The method that the spec or a flag names."""
        asked = self.text("quantization") or self.candidate.deployment.quantization
        return asked.lower() if asked else None

    @cached_property
    def stored(self) -> str | None:
        """The method that the checkpoint was quantised with."""
        return self.model.quantization.method.lower() if self.model.quantization else None

    @cached_property
    def quantization(self) -> str | None:
        """The method that it comes to."""
        return self.quantization_asked or self.stored

    @cached_property
    def mla(self) -> bool:
        """Whether the attention is multi-head latent attention (DeepSeek V2 and later, Kimi K2)."""
        return any(group.kind == "mla" for group in self.model.attention)

    @cached_property
    def hybrid(self) -> bool:
        """Whether some layers keep a state in place of a KV cache (Mamba, DeltaNet)."""
        return any(group.kind == "linear" for group in self.model.attention)

    @cached_property
    def encoder(self) -> bool:
        """Whether the model attends in both directions and keeps no cache."""
        return bool(self.model.attention) and all(group.kind == "encoder" for group in self.model.attention)

    @property
    def moe(self) -> bool:
        """Whether it is a mixture of experts."""
        return self.model.moe is not None

    @cached_property
    def task(self) -> str:
        """What it is to be served for."""
        return self.candidate.deployment.task or self.model.task

    @cached_property
    def pooling(self) -> bool:
        """Whether it answers with vectors or scores, not with text."""
        return self.task in ("embed", "rerank", "classify")

    @cached_property
    def gguf(self) -> bool:
        """Whether the weights are a GGUF file."""
        return self.model.format == "gguf" or self.candidate.deployment.model.endswith(".gguf")

    @cached_property
    def gguf_name(self) -> str | None:
        """What a GGUF calls the architecture; None when only config.json's class is known and llama.cpp has no name."""
        name = self.model.architecture
        return name if name == name.lower() else gguf_name(name)

    @cached_property
    def model_type(self) -> str:
        """`model_type` of config.json, or the GGUF architecture."""
        return str(self.model.config.get("model_type") or (self.gguf_name or "" if self.gguf else ""))

    @cached_property
    def assumed_quantization(self) -> bool:
        """Whether the quantization was read off the model's name, its settings being the usual ones."""
        return "quantization by its name" in self.model.source

    @cached_property
    def share(self) -> float | None:
        """The share of each device's memory that the engine may book."""
        return self.candidate.memory_share or self.candidate.deployment.memory_share

    @cached_property
    def speculative(self) -> bool:
        """Whether draft tokens are used in any way."""
        return bool(
            self.candidate.deployment.draft_model
            or self.json("speculative_config")
            or any(self.text(name) for name in ("speculative_algorithm", "spec_method", "spec_model", "spec_type"))
        )
