from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from gguf_bytes import gguf, llama

from plimsoll.discover.hub_ref import parse_hub_ref
from plimsoll.discover.models import find_model
from plimsoll.errors import FactError


def test_a_gguf_file_and_the_directory_that_holds_it(tmp_path: Path) -> None:
    file = tmp_path / "small-Q4_K_M.gguf"
    file.write_bytes(gguf(*llama()))
    assert find_model(str(file)).weight_bytes == find_model("org/small", path=tmp_path).weight_bytes
    assert find_model("org/small", path=tmp_path).id == "org/small"


def test_a_split_gguf_is_one_model_whichever_part_is_named(tmp_path: Path) -> None:
    metadata, tensors = llama()
    names = list(tensors)
    halves = [{name: tensors[name] for name in part} for part in (names[:5], names[5:])]
    files = [tmp_path / f"m-{number:05d}-of-00002.gguf" for number in (1, 2)]
    files[0].write_bytes(gguf({**metadata, "split.no": 0, "split.count": 2}, halves[0]))
    files[1].write_bytes(gguf({"split.no": 1, "split.count": 2}, halves[1]))
    found = [find_model(str(ref)) for ref in (*files, tmp_path)]
    assert len({model.weight_bytes for model in found}) == 1
    assert len(found[0].files) == 2
    files[1].unlink()
    with pytest.raises(FactError, match="1 are missing, first m-00002-of-00002"):
        find_model(str(files[0]))


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FactError, match="does not exist"):
        find_model(str(tmp_path / "none.gguf"))
    with pytest.raises(FactError, match="holds no model"):
        find_model(str(tmp_path))


CONFIG = {
    "architectures": ["BertModel"], "model_type": "bert", "hidden_size": 8, "intermediate_size": 16,
    "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 32, "max_position_embeddings": 16,
    "type_vocab_size": 2, "torch_dtype": "float32",
}  # fmt: skip


def test_a_directory_as_downloaded_from_a_hub(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    derived = find_model(str(tmp_path))
    assert (derived.task, derived.format, derived.files) == ("embed", "safetensors", ())
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(100))
    assert find_model(str(tmp_path)).format == "pytorch"
    header = json.dumps({"embeddings.word_embeddings.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}})
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(16))
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    stored = find_model("org/name", path=tmp_path)
    assert (stored.weight_bytes, stored.chat_template, stored.format) == (16, True, "safetensors")


def test_a_directory_that_lacks_a_weight_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FactError, match="lacks 2 of 2 weight files"):
        find_model(str(tmp_path))


def test_a_path_that_is_not_here_is_known_by_its_name() -> None:
    """A plan for other machines names paths of theirs."""
    assert find_model("/root/qwen/Qwen-72B-Chat-Int4").quantization is not None


def test_an_adapter_names_the_model_it_was_made_for(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen3-8B"}')
    with pytest.raises(FactError, match="holds an adapter") as caught:
        find_model(str(tmp_path))
    assert "Qwen/Qwen3-8B" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("ref", "parts"),
    [
        ("Qwen/Qwen3-8B", ("Qwen/Qwen3-8B", None, None, None, None)),
        ("ms:Qwen/Qwen3-8B@v1", ("Qwen/Qwen3-8B", "modelscope", "v1", None, None)),
        ("a/b-GGUF:Q4_K_M", ("a/b-GGUF", None, None, "Q4_K_M", None)),
        ("a/b-GGUF/x/y-Q8_0.gguf", ("a/b-GGUF", None, None, None, "x/y-Q8_0.gguf")),
        ("https://huggingface.co/a/b", ("a/b", "huggingface", None, None, None)),
        ("https://hf-mirror.com/a/b/blob/main/c.gguf?download=true", ("a/b", "huggingface", "main", None, "c.gguf")),
        ("https://www.modelscope.cn/models/a/b", ("a/b", "modelscope", None, None, None)),
    ],
)
def test_references_to_hubs(ref: str, parts: tuple[str | None, ...]) -> None:
    found = parse_hub_ref(ref)
    assert found is not None
    assert (found.id, found.kind, found.revision, found.quant, found.file) == parts


@pytest.mark.parametrize("ref", ["qwen2.5:7b", "Qwen3-8B", "a/../b", "a//b", ""])
def test_what_is_no_reference_to_a_hub(ref: str) -> None:
    assert parse_hub_ref(ref) is None
