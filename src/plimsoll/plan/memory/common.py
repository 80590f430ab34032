"""What the memory laws share: bytes per cached value, options by name, a device's account begun."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from plimsoll.errors import PlanError
from plimsoll.facts.hardware import Device, Host
from plimsoll.facts.model import AttentionGroup, ModelFacts
from plimsoll.plan.ledger import DeviceLedger, Entry
from plimsoll.plan.types import Candidate

# Bytes per cached value. Block formats carry their scale: q8_0 is 32 values and a half float (ggml-common.h);
# nvfp4 16 values and an fp8 scale, mxfp4 and mxfp8 32 values and one byte (OCP Microscaling 1.0).
_VALUE_BYTES = {
    "f32": 4.0, "float32": 4.0, "float": 4.0, "fp32": 4.0,
    "f16": 2.0, "fp16": 2.0, "float16": 2.0, "half": 2.0, "bf16": 2.0, "bfloat16": 2.0,
    "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32, "q4_0": 18 / 32,
    "iq4_nl": 18 / 32, "q6_0": 26 / 32,
    "fp8": 1.0, "fp8_e4m3": 1.0, "fp8_e5m2": 1.0, "fp8_inc": 1.0, "int8": 1.0, "c8": 1.0, "mxfp8": 33 / 32,
    "nvfp4": 9 / 16, "fp4": 17 / 32, "mxfp4": 17 / 32, "fp4_mx_block16": 9 / 16, "int4": 0.5,
}  # fmt: skip


def value_bytes(dtype: str, *, model_dtype: str = "float16") -> float:
    """Bytes of one cached value of `dtype`, scales included; "auto" is the model's own; PlanError if unknown."""
    name = dtype.lower()
    if name == "auto":
        name = model_dtype if model_dtype in ("float32", "fp32", "f32", "float") else "float16"
    # "fp8_e4m3fn", "int8_per_token_head" and the like are as wide as what they begin with.
    family = next(
        (word for word in ("nvfp4", "mxfp4", "mxfp8", "fp8", "int8", "int4", "fp4") if name.startswith(word)), name
    )
    known = _VALUE_BYTES.get(name, _VALUE_BYTES.get(family))
    if known is None:
        raise PlanError(
            f"{dtype!r} is not a KV cache dtype whose size is known",
            hint=f"One of auto, {', '.join(sorted(_VALUE_BYTES))}.",
        )
    return known


def loaded_dtype(candidate: Candidate) -> str | None:
    """What vLLM and SGLang cast unquantised weights to: as told, and float32 to 16 bits where they are told nothing."""
    if candidate.dtype != "auto":
        return candidate.dtype
    return "float16" if candidate.model.dtype == "float32" else None


def kv_bytes(groups: Iterable[AttentionGroup], *, value: float, ranks: int, tokens: int) -> float:
    """Bytes that one sequence of `tokens` takes on one rank where windows are honoured, states included."""
    total = 0.0
    for group in groups:
        kept = min(tokens, group.window_tokens) if group.window_tokens else tokens
        total += kept * group.kv_bytes_per_token(value_bytes=value, tensor_parallel=ranks)
        total += group.layers * group.state_bytes / ranks
    return total


def option(candidate: Candidate, *names: str) -> str | int | float | bool | None:
    """The first of `names` that is set among the candidate's options; None if none is."""
    for name in names:
        if name in candidate.options:
            return candidate.options[name]
    return None


def int_option(candidate: Candidate, *names: str, default: int) -> int:
    """As `option`, as a whole number; PlanError where it is something else."""
    value = option(candidate, *names)
    return default if value is None or isinstance(value, bool) else int(_number(value, names[0]))


def float_option(candidate: Candidate, *names: str, default: float) -> float:
    """As `option`, as a number; PlanError where it is something else."""
    value = option(candidate, *names)
    return default if value is None or isinstance(value, bool) else _number(value, names[0])


def layers_option(candidate: Candidate, *names: str) -> int | None:
    """As `option`, as a number of layers; None where it is left to the engine ("auto", "all", -1)."""
    value = option(candidate, *names)
    if value is None or isinstance(value, bool) or str(value).lower() in ("auto", "all"):
        return None
    layers = int(_number(value, names[0]))
    return layers if layers >= 0 else None


def _number(value: str | float, name: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise PlanError(f"{name} is {value!r}, which is not a number", hint="Correct it in extra_args.") from None


def flag_option(candidate: Candidate, *names: str, default: bool) -> bool:
    """As `option`, as on or off: "on", "1", "true" and the like count as on."""
    value = option(candidate, *names)
    if value is None:
        return default
    return value if isinstance(value, bool) else str(value).lower() in ("1", "on", "true", "yes", "enabled")


def other_processes(device: Device) -> Entry | None:
    """What others hold on the device now; None if nothing."""
    held = device.memory_bytes - device.free_bytes
    if held <= 0:
        return None
    return Entry(
        name="other_processes",
        bytes=held,
        basis="measured",
        source="total less free as the driver reports",
        inside=False,
    )


def state_bytes(model: ModelFacts) -> float:
    """Bytes of recurrent state of one sequence over all layers."""
    return float(sum(group.layers * group.state_bytes for group in model.attention))


def ceil_to(value: float, step: int) -> int:
    """`value` rounded up to a multiple of `step`."""
    return math.ceil(value / step) * step


def ram_ledger(host: Host, entries: Sequence[Entry]) -> DeviceLedger:
    """A host's RAM with `entries` in it and, beside them, what other processes hold now."""
    held = host.ram_bytes - host.ram_free_bytes
    others = Entry(
        name="other_processes", bytes=held, basis="measured", source="RAM in all less what is free", inside=False
    )
    whole = (*entries, others) if held > 0 else tuple(entries)
    return DeviceLedger(device="RAM", total_bytes=host.ram_bytes, limit_bytes=host.ram_bytes, entries=whole)
