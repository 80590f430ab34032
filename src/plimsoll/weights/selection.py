"""Which files of a model an engine needs: one format, one quantization, and the small files around it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Literal

from plimsoll.errors import WeightError
from plimsoll.weights.sources import split_parts

Format = Literal["safetensors", "gguf", "pytorch"]

_SUFFIXES: dict[Format, tuple[str, ...]] = {"safetensors": (".safetensors",), "gguf": (".gguf",), "pytorch": (".bin",)}
_SMALL = (".json", ".txt", ".model", ".tiktoken", ".jinja", ".py", ".spm", ".bpe", ".vocab")
_OTHER_ENGINES = {"onnx", "openvino", "coreml", "original", "tensorrt", "tflite", "flax", "metal", "mlx"}
_NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin", "random_states.bin", "scaler.bin")
_VARIANT = re.compile(r"\.(fp16|fp32|bf16|non_ema|ema)(?=[.-])")
_QUANT = re.compile(
    r"(?i)(?:^|[-._/])((?:UD-)?(?:I?Q\d(?:_[0-9A-Z]+)*|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|F16|FP16|F32|FP32))(?=[-._/]|$)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The files that one request needs; `main` is the one to name to the engine, None: the folder."""

    main: str | None
    paths: tuple[str, ...]


def choose(
    paths: Sequence[str],
    *,
    include: Sequence[str] = (),
    file: str | None = None,
    quant: str | None = None,
    formats: Sequence[Format] = ("safetensors", "gguf", "pytorch"),
) -> Choice:
    """The files to fetch of `paths`: those that `include` (glob patterns) or `file` name, else what an engine needs.

    That is the first of `formats` that there is; for GGUF the quantization `quant`, or Q4_K_M, or the only one there
    is. WeightError if nothing fits, with what there is.
    """
    if file is not None:
        parts = split_parts(file)
        missing = [part for part in parts if part not in paths]
        if missing:
            raise WeightError(f"there is no file {missing[0]}", hint=f"there are {_some(paths)}")
        return Choice(main=parts[0], paths=parts)
    if include:
        found = tuple(path for path in paths if any(fnmatch(path, pattern) for pattern in include))
        if not found:
            raise WeightError(f"no file matches {', '.join(include)}", hint=f"there are {_some(paths)}")
        return Choice(main=found[0] if len(found) == 1 else None, paths=found)
    for format in ("gguf",) if quant else formats:
        weights = [path for path in paths if _is_weight(path, format)]
        if weights and format == "gguf":
            return _choose_gguf(weights, quant)
        if weights:
            small = [path for path in paths if path.endswith(_SMALL) and not _foreign(path)]
            return Choice(main=None, paths=tuple(sorted({*small, *_one_of_each(weights)})))
    wanted = f"GGUF ({quant})" if quant else " or ".join(formats)
    raise WeightError(f"there are no weights as {wanted} here", hint=f"there are {_some(paths)}")


def quantization_of(path: str) -> str | None:
    """The quantization that a GGUF's name tells, in capitals; the last one if it tells several."""
    found = _QUANT.findall(path)
    return found[-1].upper() if found else None


def _choose_gguf(weights: list[str], quant: str | None) -> Choice:
    heads = [path for path in weights if PurePosixPath(path).name.lower().startswith("mmproj")]
    models = {split_parts(path): quantization_of(path) for path in weights if path not in heads}
    fitting = [parts for parts, kind in models.items() if quant is None or kind == quant.upper()]
    if quant is None and len(fitting) > 1:
        fitting = [parts for parts, kind in models.items() if kind == "Q4_K_M"] or fitting
    if len(fitting) != 1:
        kinds = ", ".join(sorted({kind or PurePosixPath(parts[0]).name for parts, kind in models.items()}))
        what = f"no GGUF is {quant}" if quant and not fitting else "several GGUFs fit"
        raise WeightError(what, hint=f"write MODEL:QUANTIZATION or MODEL/FILE; there are {kinds}")
    parts = fitting[0]
    missing = [part for part in parts if part not in weights]
    if missing:
        raise WeightError(f"the part {missing[0]} is not there", hint="the upload is incomplete; choose another")
    projector = min(heads, key=lambda path: (quantization_of(path) not in ("F16", "FP16"), path), default=None)
    return Choice(main=parts[0], paths=(*parts, projector) if projector else parts)


def _is_weight(path: str, format: Format) -> bool:
    name = PurePosixPath(path).name
    return name.endswith(_SUFFIXES[format]) and not _foreign(path) and not name.startswith(_NOT_WEIGHTS)


def _foreign(path: str) -> bool:
    return any(part.lower() in _OTHER_ENGINES or part.startswith(".") for part in PurePosixPath(path).parts[:-1])


def _one_of_each(weights: list[str]) -> list[str]:
    """Without second copies: `consolidated` next to `model`, `model.fp16` next to `model`."""
    plain = [path for path in weights if not _VARIANT.search(PurePosixPath(path).name)] or weights
    usual = [path for path in plain if not PurePosixPath(path).name.startswith("consolidated")]
    return usual or plain


def _some(paths: Sequence[str]) -> str:
    shown = ", ".join(paths[:8])
    return f"{shown} and {len(paths) - 8} more" if len(paths) > 8 else shown or "none"
