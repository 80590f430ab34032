"""GGUF from safetensors, and other quantizations of a GGUF, by llama.cpp's own tools where they are installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from plimsoll.errors import WeightError
from plimsoll.weights.convert.gguf_file import read_gguf_header
from plimsoll.weights.convert.output import new_file
from plimsoll.weights.disk import check_disk
from plimsoll.weights.tree import model_files
from plimsoll.weights.types import Progress

_STEP = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]")


def find_tool(name: str, *, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where `llama-quantize` or `convert_hf_to_gguf.py` is: in LLAMA_CPP_DIR (or its build/bin), else on the PATH."""
    root = environ.get("LLAMA_CPP_DIR")
    if root:
        for folder in (Path(root), Path(root) / "build" / "bin", Path(root) / "bin"):
            if (folder / name).is_file():
                return folder / name
    found = shutil.which(name, path=environ.get("PATH"))
    return Path(found) if found else None


def quantize_gguf(
    source: Path, target: Path, kind: str, *, progress: Progress | None = None, environ: Mapping[str, str] = os.environ
) -> None:
    """Write the GGUF `source` to `target` as `kind` (Q4_0, Q8_0 ...) with llama-quantize."""
    if not re.fullmatch(r"[A-Z0-9_]{2,20}", kind):
        raise WeightError(f"{kind!r} is not a quantization", hint="such as Q4_0, Q4_K_M or Q8_0")
    tool = _tool("llama-quantize", environ)
    header = read_gguf_header(source)
    check_disk(target.parent, source.stat().st_size)
    with new_file(target) as fresh:
        _run([str(tool), "--allow-requantize", str(source), str(fresh), kind], target.name, progress, environ)
        _check(fresh, {tensor.name for tensor in header.tensors})


def safetensors_to_gguf(
    source: Path,
    target: Path,
    *,
    dtype: str = "bf16",
    progress: Progress | None = None,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Write the model directory `source` to the file `target` with convert_hf_to_gguf.py.

    `dtype` is f32, f16, bf16, q8_0 or auto. The script runs in the Python that PLIMSOLL_CONVERT_PYTHON names (it
    needs torch and gguf), else in this one.
    """
    if dtype not in ("f32", "f16", "bf16", "q8_0", "auto"):
        raise WeightError(f"{dtype!r} is not what the converter writes", hint="f32, f16, bf16, q8_0 or auto")
    tool = _tool("convert_hf_to_gguf.py", environ)
    check_disk(target.parent, sum(place.stat().st_size for place in model_files(source).values()))
    python = environ.get("PLIMSOLL_CONVERT_PYTHON") or sys.executable
    with new_file(target) as fresh:
        command = [python, str(tool), str(source), "--outfile", str(fresh), "--outtype", dtype]
        _run(command, target.name, progress, environ)
        _check(fresh, set())


def _tool(name: str, environ: Mapping[str, str]) -> Path:
    tool = find_tool(name, environ=environ)
    if tool is None:
        raise WeightError(
            f"{name} is not on this machine", hint="install llama.cpp and set LLAMA_CPP_DIR to it, or fetch a GGUF"
        )
    return tool


def _run(command: Sequence[str], name: str, progress: Progress | None, environ: Mapping[str, str]) -> None:
    last: deque[str] = deque(maxlen=8)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=dict(environ)
    ) as process:
        if process.stdout is None:
            raise WeightError(f"{command[0]} gives no output")
        try:
            for line in process.stdout:
                last.append(line.strip())
                if progress and (step := _STEP.match(line)):
                    progress(name, int(step[1]), int(step[2]))
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        words = " | ".join(line for line in last if line)[-600:]
        raise WeightError(f"{Path(command[0]).name} failed ({process.returncode}): {words}", source=" ".join(command))


def _check(fresh: Path, wanted: set[str]) -> None:
    header = read_gguf_header(fresh)
    missing = wanted - {tensor.name for tensor in header.tensors}
    if missing:
        raise WeightError(f"the tool left out {len(missing)} tensors, first {min(missing)}", hint="update llama.cpp")
