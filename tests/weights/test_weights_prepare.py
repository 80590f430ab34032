import shutil
from pathlib import Path

import pytest

from plimsoll.errors import WeightError
from plimsoll.weights.convert.output import read_steps
from plimsoll.weights.convert.safetensors_file import read_header
from plimsoll.weights.prepare import Conversion, needed_conversions, prepare

REAL = Path(__file__).parent / "torch_files"
MINDIE = {"formats": ("safetensors",), "dtypes": ("float16",)}


@pytest.mark.parametrize(
    ("format", "dtype", "fp8", "engine", "steps"),
    [
        ("safetensors", "float16", False, MINDIE, ()),
        ("safetensors", "bfloat16", False, MINDIE, ("bfloat16 to float16",)),
        ("pytorch", "bfloat16", False, MINDIE, ("pickle to safetensors", "bfloat16 to float16")),
        ("safetensors", "bfloat16", True, MINDIE, ("FP8 blocks to bfloat16", "bfloat16 to float16")),
        ("pytorch", "bfloat16", False, {"formats": (), "dtypes": ()}, ()),
        ("pytorch", "x", True, {"formats": (), "dtypes": ()}, ("pickle to safetensors", "FP8 blocks to bfloat16")),
        ("pytorch", "float16", False, {"formats": ("pytorch",), "dtypes": ("float16",)}, ()),
    ],
)
def test_what_an_engine_needs(
    format: str, dtype: str, fp8: bool, engine: dict[str, tuple[str, ...]], steps: tuple[Conversion, ...]
) -> None:
    assert needed_conversions(format=format, dtype=dtype, fp8_blocks=fp8, **engine) == steps


def test_what_no_conversion_reaches() -> None:
    with pytest.raises(WeightError, match="the weights are gguf, the engine takes safetensors"):
        needed_conversions(format="gguf", dtype="float16", fp8_blocks=False, **MINDIE)
    with pytest.raises(WeightError, match="the weights are float32, the engine takes float16"):
        needed_conversions(format="safetensors", dtype="float32", fp8_blocks=False, **MINDIE)


def test_it_is_done_once_and_steps_in_between_are_gone(tmp_path: Path) -> None:
    model, store = tmp_path / "model", tmp_path / "store"
    model.mkdir()
    shutil.copy(REAL / "zip.bin", model / "pytorch_model.bin")
    (model / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    steps: tuple[Conversion, ...] = ("pickle to safetensors", "bfloat16 to float16")
    done = prepare(model, steps, store=store)
    assert {tensor.dtype for tensor in read_header(done / "model.safetensors").tensors if tensor.name == "bf16"} == {
        "F16"
    }
    assert [step["what"] for step in read_steps(done)] == list(steps)
    before = (done / "model.safetensors").stat()
    assert prepare(model, steps, store=store) == done
    assert (done / "model.safetensors").stat().st_mtime_ns == before.st_mtime_ns
    assert [path.name for path in (store / "converted").iterdir() if path.is_dir()] == [done.name]
    (model / "config.json").write_text('{"torch_dtype": "bfloat16" }')
    assert prepare(model, steps, store=store) != done
    assert prepare(model, (), store=store) == model
