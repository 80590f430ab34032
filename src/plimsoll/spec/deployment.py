"""The spec: which models to serve, for how many people, with what; every key that a user may write is here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from plimsoll.units import parse_bytes, parse_seconds

Task = Literal["chat", "completion", "embed", "rerank", "classify"]
Seconds = Annotated[float, BeforeValidator(parse_seconds, json_schema_input_type=float | str)]
Bytes = Annotated[int, BeforeValidator(parse_bytes, json_schema_input_type=int | str)]


def _tokens(value: Any) -> Any:
    """32k is 32768 tokens; anything else is left to the type's own check."""
    if isinstance(value, str) and value[:-1].isdigit() and value[-1:] in "kK":
        return int(value[:-1]) * 1024
    return value


Tokens = Annotated[int, Field(gt=0, le=1 << 27), BeforeValidator(_tokens, json_schema_input_type=int | str)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ParallelSpec(_Part):
    """How to cut a replica over devices; what is left out is chosen by the planner."""

    tensor: Annotated[int, Field(ge=1, le=1024)] | None = None
    pipeline: Annotated[int, Field(ge=1, le=256)] | None = None
    data: Annotated[int, Field(ge=1, le=1024)] | None = None
    expert: Annotated[int, Field(ge=1, le=1024)] | None = None


class Slo(_Part):
    """Limits that 95 % of the requests shall keep."""

    ttft: Seconds | None = None
    """Time to first token, such as 1s."""
    tpot: Seconds | None = None
    """Time per further token, such as 50ms."""


class Deployment(_Part):
    """One model to serve."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}$")]
    """The name that clients use."""
    model: Annotated[str, Field(min_length=1, max_length=4096)]
    """A hub id, a directory, a .gguf file, or pypi:PACKAGE==VERSION/FILE."""
    revision: str | None = None
    task: Task | None = None
    """Left out: read from the model."""
    engine: str = "auto"
    """auto, or llamacpp, vllm, sglang ... ; `vllm==0.11.0` pins the version."""
    replicas: Annotated[int, Field(ge=1, le=4096)] = 1
    context: Tokens | None = None
    """Longest prompt and answer together, in tokens; left out: chosen from what fits."""
    concurrency: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Requests served at once; left out: chosen from what fits."""
    quantization: str | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    kv_cache_dtype: str = "auto"
    devices: tuple[str | int, ...] | None = None
    """Which devices of the host: indices or names; left out: chosen by the planner; [cpu]: none."""
    parallel: ParallelSpec = ParallelSpec()
    memory_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Of each device's memory, for engines that book a share."""
    draft_model: str | None = None
    trust_remote_code: bool = False
    slo: Slo = Slo()
    extra_args: tuple[str, ...] = ()
    """Handed to the engine as they stand, last."""
    env: dict[str, str] = {}


class GatewaySpec(_Part):
    """The one address in front."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0: any free port."""
    api_keys: tuple[str, ...] = ()
    """Left out: no key is asked for, and only the loopback address may be used."""


class Spec(_Part):
    """Everything that one `plimsoll up` serves."""

    models: Annotated[tuple[Deployment, ...], Field(min_length=1)]
    gateway: GatewaySpec = GatewaySpec()
    hosts: tuple[str, ...] = ()
    """Reserved for several machines."""

    @model_validator(mode="after")
    def _names_differ(self) -> Spec:
        names = [model.name for model in self.models]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"two models have the same name: {', '.join(sorted(twice))}")
        return self
