import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.errors import WeightError
from plimsoll.weights.convert.config import patch_config
from plimsoll.weights.convert.numbers import Losses, _fp8_table, bfloat16_to_float16
from plimsoll.weights.convert.output import read_steps
from plimsoll.weights.convert.rewrite import fp8_to_bfloat16, to_float16
from plimsoll.weights.convert.safetensors_file import Planned, header_bytes, read_header


def write(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    planned = [Planned(name=name, dtype=dtype, shape=shape) for name, (dtype, shape, _) in tensors.items()]
    path.write_bytes(header_bytes(planned, {"format": "pt"}) + b"".join(data for _, _, data in tensors.values()))


def read(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    raw = path.read_bytes()
    return {one.name: (one.dtype, one.shape, raw[one.start : one.end]) for one in read_header(path).tensors}


def bf16(*values: float) -> bytes:
    return b"".join(struct.pack("<f", value)[2:] for value in values)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"torch_dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}, "quantization_config": {"bits": 8}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("[]")
    return folder


def test_bfloat16_becomes_float16_and_losses_are_told(model: Path, tmp_path: Path) -> None:
    tensors = {
        "a": ("BF16", (2, 3), bf16(1.0, -2.5, 0.0, 1e-9, 2**-20, 65280.0)),
        "b": ("F32", (1,), struct.pack("<f", 1e-9)),
        "empty": ("BF16", (0,), b""),
    }
    write(model / "model.safetensors", tensors)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "x")}))
    step = to_float16(model, tmp_path / "new")
    new = read(tmp_path / "new/model.safetensors")
    assert new["a"][:2] == ("F16", (2, 3))
    assert struct.unpack("<6e", new["a"][2]) == (1.0, -2.5, 0.0, 0.0, 2**-20, 65280.0)
    assert new["b"] == tensors["b"]
    assert step.notes[0] == (
        "0 values too large for float16, 1 rounded to zero, 1 kept with fewer digits; the largest is 65280"
    )
    config = json.loads((tmp_path / "new/config.json").read_text())
    assert (config["torch_dtype"], config["text_config"]["dtype"], "dtype" in config) == ("float16", "float16", False)
    assert 'config.json: torch_dtype set to "float16", was "bfloat16"' in step.notes
    index = json.loads((tmp_path / "new/model.safetensors.index.json").read_text())
    assert index["weight_map"]["a"] == "model.safetensors"
    assert json.loads((model / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_what_is_too_large_is_refused_or_clamped(model: Path, tmp_path: Path) -> None:
    write(model / "model.safetensors", {"w": ("BF16", (3,), bf16(1e6, -1e6, float("inf")))})
    with pytest.raises(WeightError, match=r"2 values do not fit float16, the largest 9.994e\+05 in w"):
        to_float16(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    to_float16(model, tmp_path / "new", clamp=True)
    _, _, data = read(tmp_path / "new/model.safetensors")["w"]
    assert struct.unpack("<3e", data) == (65504.0, -65504.0, float("inf"))


@given(st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=200))
def test_the_rounding_is_that_of_the_standard(codes: list[int]) -> None:
    data = struct.pack(f"<{len(codes)}H", *codes)
    losses = Losses()
    result = np.frombuffer(bfloat16_to_float16(data, losses), "<f2")
    exact = np.array([struct.unpack("<f", bytes(2) + struct.pack("<H", code))[0] for code in codes], np.float32)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(result, exact.astype(np.float16))
    finite = np.isfinite(exact)
    assert losses.overflow == np.count_nonzero(finite & np.isinf(result))
    assert losses.underflow == np.count_nonzero((exact != 0) & (result == 0))


def test_the_table_of_fp8_is_that_of_the_paper() -> None:
    """Values from FP8 Formats for Deep Learning (arXiv 2209.05433), table 1."""
    table = _fp8_table()
    assert (table[0x7E], table[0x08], table[0x07], table[0x01], table[0x80]) == (448, 2**-6, 0.875 * 2**-6, 2**-9, 0)
    assert np.isnan(table[0x7F]) and np.isnan(table[0xFF]) and table[0xB8] == -1.0


def test_fp8_blocks_become_bfloat16(model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 120, (200, 300), dtype=np.uint8)
    scales = rng.random((2, 3), dtype=np.float32)
    write(
        model / "model-1.safetensors",
        {"w.weight": ("F8_E4M3", (200, 300), codes.tobytes()), "n": ("BF16", (1,), b"ab")},
    )
    write(model / "model-2.safetensors", {"w.weight_scale_inv": ("F32", (2, 3), scales.tobytes())})
    names = {"w.weight": "model-1.safetensors", "n": "model-1.safetensors", "w.weight_scale_inv": "model-2.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    step = fp8_to_bfloat16(model, tmp_path / "new")
    new = read(tmp_path / "new/model-1.safetensors")
    assert (new["w.weight"][:2], new["n"][2]) == (("BF16", (200, 300)), b"ab")
    exact = _fp8_table()[codes] * np.kron(scales, np.ones((128, 128), np.float32))[:200, :300]
    got = (np.frombuffer(new["w.weight"][2], "<u2").astype(np.uint32) << 16).view(np.float32).reshape(200, 300)
    assert np.max(np.abs(got - exact) / np.maximum(np.abs(exact), 1e-9)) <= 2**-8
    assert read(tmp_path / "new/model-2.safetensors") == {}
    config = json.loads((tmp_path / "new/config.json").read_text())
    assert "quantization_config" not in config
    assert any("quantization_config dropped" in note for note in step.notes)
    index = json.loads((tmp_path / "new/model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"]) == ["n", "w.weight"]


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"w": ("F8_E4M3", (4, 4), bytes(16))}, "is FP8 without the scales"),
        ({"w": ("F8_E4M3", (4, 4), bytes(16)), "w_scale_inv": ("F32", (2, 1), bytes(8))}, "blocks of .* need another"),
        ({"w": ("BF16", (4,), bytes(8))}, "holds no FP8 tensors"),
    ],
)
def test_fp8_that_cannot_be_unpacked_is_told(
    model: Path, tmp_path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]], said: str
) -> None:
    write(model / "model.safetensors", tensors)
    with pytest.raises(WeightError, match=said):
        fp8_to_bfloat16(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_change_of_the_config_is_on_record_and_weights_are_shared(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").write_bytes(b"")
    os.truncate(model / "model.safetensors", 65 << 20)
    patch_config(model, tmp_path / "a", drop=["quantization_config"])
    patch_config(tmp_path / "a", tmp_path / "b", changes={"max_position_embeddings": 8192})
    config = json.loads((tmp_path / "b/config.json").read_text())
    assert ("quantization_config" in config, config["max_position_embeddings"]) == (False, 8192)
    assert [step["notes"] for step in read_steps(tmp_path / "b")] == [
        ['config.json: quantization_config dropped, was {"bits": 8}'],
        ["config.json: max_position_embeddings set to 8192, was null"],
    ]
    assert (tmp_path / "b/model.safetensors").samefile(model / "model.safetensors")
    assert not (tmp_path / "b/tokenizer.json").samefile(model / "tokenizer.json")


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_a_broken_config_is_told(model: Path, tmp_path: Path, content: str) -> None:
    (model / "config.json").write_text(content)
    with pytest.raises(WeightError, match=r"config\.json is not"):
        patch_config(model, tmp_path / "new", drop=["x"])


BYTE = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
HEADERS = {
    "cut short": (5).to_bytes(8, "little"),
    "terabytes": (1 << 40).to_bytes(8, "little") + b"{}",
    "not JSON": (2).to_bytes(8, "little") + b"{x",
    "not a table": (2).to_bytes(8, "little") + b"[]",
    "deep": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "twice": f'{{"a":{BYTE},"a":{BYTE}}}',
    "overlap": f'{{"a":{BYTE},"b":{BYTE}}}',
    "hole": '{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
    "larger than the file": '{"a":{"dtype":"U8","shape":[1099511627776],"data_offsets":[0,1099511627776]}}',
    "other size": '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1]}}',
    "negative": '{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}',
    "NaN": '{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,NaN]}}',
    "a float": '{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}',
    "a truth": '{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}',
    "no dtype": '{"a":{"shape":[1],"data_offsets":[0,1]}}',
    "odd dtype": '{"a":{"dtype":"Q9","shape":[1],"data_offsets":[0,1]}}',
    "a dtype that is a list": '{"a":{"dtype":[],"shape":[1],"data_offsets":[0,1]}}',
    "metadata": '{"__metadata__":[]}',
}  # fmt: skip


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_a_hostile_header_is_refused(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "x.safetensors"
    if isinstance(content, str):
        content = len(content).to_bytes(8, "little") + content.encode() + b"\0"
    path.write_bytes(content)
    with pytest.raises(WeightError, match=r"^x\.safetensors: "):
        read_header(path)


@given(st.binary(max_size=300))
def test_no_bytes_break_the_header_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(len(data).to_bytes(8, "little") + data)
    try:
        read_header(path)
    except WeightError as error:
        assert "\n" not in error.message
