"""What is known of an engine: the versions meant, what it can load and run on, how it books memory, what it serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from plimsoll.facts.hardware import Vendor

MemoryPolicy = Literal["vllm", "sglang", "llamacpp", "ollama", "mindie", "transformers", "openvino", "none"]
"""Which of the memory laws in `plan.memory` the engine follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """One engine as its adapter describes it; everything else of the engine stays in the adapter's own file."""

    name: str
    version: str
    """The version that is planned for."""
    formats: tuple[str, ...]
    quantizations: tuple[str, ...]
    vendors: tuple[Vendor, ...]
    tasks: tuple[str, ...]
    parallel: tuple[str, ...]
    """Of tensor, pipeline, data, expert, and layer (llama.cpp's split of layers over devices)."""
    memory: MemoryPolicy
    routes: tuple[str, ...]
    health_path: str
    multi_node: bool = False
    kv_dtypes: tuple[str, ...] = ()
    installed: bool = True
    """Whether it can be started here now."""
    fake: bool = False
