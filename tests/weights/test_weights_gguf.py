import os
import random
import stat
import struct
from pathlib import Path

import pytest

from plimsoll.errors import WeightError
from plimsoll.weights.convert.gguf_file import merge_gguf, read_gguf_header, split_gguf
from plimsoll.weights.convert.llama_tools import quantize_gguf, safetensors_to_gguf


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


PAIRS = [
    text("general.architecture") + struct.pack("<I", 8) + text("llama"),
    text("general.alignment") + struct.pack("<II", 4, 64),
    text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + text("a") + text("bc") + text(""),
    text("tokenizer.ggml.scores") + struct.pack("<IIQ3f", 9, 6, 3, 1, 2, 3),
    text("llama.rope.freq_base") + struct.pack("<If", 6, 10000.0),
]
TENSORS = {f"blk.{number}.w": random.Random(number).randbytes(18 * number) for number in (7, 1, 4, 3)}


def whole(path: Path) -> Path:
    """A GGUF with Q4_0 tensors of one row."""
    infos, data = b"", b""
    for name, content in TENSORS.items():
        infos += text(name) + struct.pack("<IQIQ", 1, len(content) // 18 * 32, 2, len(data))
        data += content + bytes(-len(content) % 64)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(TENSORS), len(PAIRS)) + b"".join(PAIRS) + infos
    path.write_bytes(head + bytes(-len(head) % 64) + data)
    return path


def tensors(path: Path) -> dict[str, bytes]:
    header, raw = read_gguf_header(path), path.read_bytes()
    return {
        one.name: raw[header.data_offset + one.offset : header.data_offset + one.offset + one.bytes]
        for one in header.tensors
    }


def test_split_and_merged_again_it_is_the_same(tmp_path: Path) -> None:
    source = whole(tmp_path / "m.gguf")
    told: list[int] = []
    parts = split_gguf(source, tmp_path, part_bytes=150, progress=lambda _, done, total: told.append(done))
    assert [part.name for part in parts] == [f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    assert told[-1] == sum(map(len, TENSORS.values()))
    assert tensors(parts[0]) | tensors(parts[1]) == TENSORS
    first = read_gguf_header(parts[0]).metadata
    assert (first["split.no"], first["split.count"], first["split.tensors.count"]) == (0, 2, 4)
    assert set(read_gguf_header(parts[1]).metadata) == {
        "general.alignment", "split.no", "split.count", "split.tensors.count",
    }  # fmt: skip
    merge_gguf(parts[1], tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == source.read_bytes()


def test_a_missing_or_foreign_part_is_told(tmp_path: Path) -> None:
    source = whole(tmp_path / "m.gguf")
    parts = split_gguf(source, tmp_path, part_bytes=100)
    with pytest.raises(WeightError, match="exists"):
        split_gguf(source, tmp_path, part_bytes=100)
    with pytest.raises(WeightError, match="is not a part"):
        merge_gguf(source, tmp_path / "x.gguf")
    with pytest.raises(WeightError, match="is a part of a split model"):
        split_gguf(parts[0], tmp_path, part_bytes=10)
    parts[1].write_bytes(parts[0].read_bytes())
    with pytest.raises(WeightError, match="does not say that it is part 2 of 3"):
        merge_gguf(parts[0], tmp_path / "x.gguf")
    parts[2].unlink()
    with pytest.raises(WeightError, match="1 of 3 parts are missing, first m-00003-of-00003"):
        merge_gguf(parts[0], tmp_path / "x.gguf")
    assert not list(tmp_path.glob("*x.gguf"))
    with pytest.raises(WeightError, match="is not a GGUF file"):
        parts[0].write_bytes(b"<!DOCTYPE html><html><body>")
        split_gguf(parts[0], tmp_path / "new", part_bytes=10)


def test_a_split_that_fails_leaves_no_part(tmp_path: Path) -> None:
    source = whole(tmp_path / "m.gguf")
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(b"mine")
    with pytest.raises(WeightError, match="exists"):
        split_gguf(source, tmp_path, part_bytes=150)
    assert sorted(path.name for path in tmp_path.glob("*.gguf")) == ["m-00002-of-00002.gguf", "m.gguf"]


def fake_tool(folder: Path, name: str, body: str) -> dict[str, str]:
    """A stand-in for one of llama.cpp's tools: a script that does as told."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n# fake {name}\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"LLAMA_CPP_DIR": str(folder), "PATH": os.environ["PATH"], "PLIMSOLL_CONVERT_PYTHON": "/bin/sh"}


def test_the_tools_of_llama_cpp_are_used_where_they_are(tmp_path: Path) -> None:
    source = whole(tmp_path / "m.gguf")
    environ = fake_tool(tmp_path, "llama-quantize", 'echo "[   1/   4] blk"; echo "[   4/   4] blk"; cp "$2" "$3"')
    told: list[tuple[int, int | None]] = []
    progress = lambda _, done, total: told.append((done, total))  # noqa: E731
    quantize_gguf(source, tmp_path / "q.gguf", "Q4_0", environ=environ, progress=progress)
    assert told == [(1, 4), (4, 4)]
    assert tensors(tmp_path / "q.gguf") == TENSORS
    (tmp_path / "model").mkdir()
    environ = fake_tool(tmp_path, "convert_hf_to_gguf.py", f'cp {source} "$3"')
    safetensors_to_gguf(tmp_path / "model", tmp_path / "c.gguf", environ=environ)
    assert tensors(tmp_path / "c.gguf") == TENSORS


def test_a_tool_that_fails_is_told_in_its_own_words(tmp_path: Path) -> None:
    source = whole(tmp_path / "m.gguf")
    body = 'echo "requantizing from type q4_0 is disabled"; echo x > "$3"; exit 3'
    environ = fake_tool(tmp_path, "llama-quantize", body)
    with pytest.raises(WeightError, match=r"llama-quantize failed \(3\): requantizing from type q4_0 is disabled"):
        quantize_gguf(source, tmp_path / "q.gguf", "Q8_0", environ=environ)
    environ = fake_tool(tmp_path, "llama-quantize", 'echo x > "$3"')
    with pytest.raises(WeightError, match="is not a GGUF file"):
        quantize_gguf(source, tmp_path / "q.gguf", "Q8_0", environ=environ)
    with pytest.raises(WeightError, match="is not a quantization"):
        quantize_gguf(source, tmp_path / "q.gguf", "--help", environ=environ)
    with pytest.raises(WeightError, match="llama-quantize is not on this machine"):
        quantize_gguf(source, tmp_path / "q.gguf", "Q8_0", environ={"PATH": ""})
    assert not list(tmp_path.glob("*q.gguf*"))[1:]
