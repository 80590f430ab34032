from __future__ import annotations

from pathlib import Path

import pytest
from gguf_bytes import gguf, llama

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
