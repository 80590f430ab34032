"""The form an engine wants: which conversions a model needs for it, and doing them, once."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from plimsoll.errors import WeightError
from plimsoll.weights.convert.from_pickle import pickle_to_safetensors
from plimsoll.weights.convert.output import RECORD
from plimsoll.weights.convert.rewrite import fp8_to_bfloat16, to_float16
from plimsoll.weights.lock import locked
from plimsoll.weights.tree import model_files
from plimsoll.weights.types import Progress

Conversion = Literal["pickle to safetensors", "FP8 blocks to bfloat16", "bfloat16 to float16"]

_STEPS = {
    "pickle to safetensors": pickle_to_safetensors,
    "FP8 blocks to bfloat16": fp8_to_bfloat16,
    "bfloat16 to float16": to_float16,
}


def needed_conversions(
    *, format: str, dtype: str, fp8_blocks: bool, formats: Collection[str], dtypes: Collection[str]
) -> tuple[Conversion, ...]:
    """What must be done, in this order, to a model of `format` and `dtype` for an engine that takes only the others.

    `format` is safetensors, gguf or pytorch, `dtype` bfloat16, float16 or float32; `fp8_blocks` if its weights are
    FP8 with scales per block and the engine or device cannot use them. Empty `formats` or `dtypes`: the engine takes
    all. WeightError if no conversion leads there.
    """
    steps: list[Conversion] = []
    if formats and format not in formats and (format != "pytorch" or "safetensors" not in formats):
        raise WeightError(
            f"the weights are {format}, the engine takes {', '.join(sorted(formats))}",
            hint="fetch the model in that form, or choose another engine",
        )
    if fp8_blocks:
        steps.append("FP8 blocks to bfloat16")
        dtype = "bfloat16"
    if dtypes and dtype not in dtypes:
        if dtype != "bfloat16" or "float16" not in dtypes:
            raise WeightError(f"the weights are {dtype}, the engine takes {', '.join(sorted(dtypes))}")
        steps.append("bfloat16 to float16")
    if format == "pytorch" and (steps or (formats and format not in formats)):
        steps.insert(0, "pickle to safetensors")
    return tuple(steps)


def prepared_path(model: Path, conversions: Sequence[Conversion], *, store: Path) -> Path:
    """Where the converted model lies or will lie: the same bytes and steps give the same place."""
    state = [[name, place.stat().st_size, place.stat().st_mtime_ns] for name, place in model_files(model).items()]
    key = hashlib.sha256(json.dumps([str(model.resolve()), state, list(conversions)]).encode()).hexdigest()[:12]
    name = model.parent.parent.name.removeprefix("models--") if model.parent.name == "snapshots" else model.name
    return store / "converted" / f"{name}-{key}"


def prepare(model: Path, conversions: Sequence[Conversion], *, store: Path, progress: Progress | None = None) -> Path:
    """Path of `model` after `conversions`, done unless they were done before; `model` itself if there are none."""
    if not conversions:
        return model
    target = prepared_path(model, conversions, store=store)
    with locked(store / ".locks" / f"{target.name}.lock"):
        if (target / RECORD).is_file():
            return target
        source = model
        for number, conversion in enumerate(conversions, 1):
            last = number == len(conversions)
            step_target = target if last else target.with_name(f"{target.name}.step{number}")
            shutil.rmtree(step_target, ignore_errors=True)  # of a run that was killed
            try:
                _STEPS[conversion](source, step_target, progress=progress)
            finally:
                if source != model:
                    shutil.rmtree(source)
            source = step_target
    return target
