import json
from pathlib import Path

import pytest

from plimsoll.errors import WeightError
from plimsoll.weights.remote_code import accept_remote_code, check_remote_code, remote_code


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    entries = {"AutoModel": "modeling_x.XModel", "AutoTokenizer": ["other/repo--tok.T", None]}
    (folder / "config.json").write_text(json.dumps({"auto_map": entries}))
    (folder / "modeling_x.py").write_text("import os\nos.system('true')\n")
    (folder / "unused.txt").write_text("x")
    return folder


def test_code_is_shown_before_it_is_trusted_and_asked_for_again_when_it_changes(model: Path, tmp_path: Path) -> None:
    code = remote_code(model)
    assert code is not None
    assert [(file.path, file.lines) for file in code.files] == [("modeling_x.py", 3)]
    with pytest.raises(WeightError) as caught:
        check_remote_code("org/x", code, store=tmp_path)
    assert caught.value.message == (
        "org/x brings code that would be run by the engine: modeling_x.py (3 lines); "
        "it loads code from other/repo too, unseen"
    )
    accept_remote_code("org/x", code, store=tmp_path)
    check_remote_code("org/x", code, store=tmp_path)
    with pytest.raises(WeightError, match="would be run"):
        check_remote_code("org/y", code, store=tmp_path)
    (model / "helper.py").write_text("pass")
    changed = remote_code(model)
    assert changed is not None
    with pytest.raises(WeightError, match=r"changed since it was accepted: helper.py \(1 lines\)"):
        check_remote_code("org/x", changed, store=tmp_path)


@pytest.mark.parametrize("config", ["{}", '{"auto_map": []}', "[]", "{", '{"auto_map": {"a": 5}}', "[" * 100_000])
def test_a_model_that_asks_for_no_code(model: Path, config: str) -> None:
    (model / "config.json").write_text(config)
    assert remote_code(model) is None


def test_code_behind_a_link_out_of_the_model_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.py").write_text("")
    (model / "link.py").symlink_to("../secret.py")
    with pytest.raises(WeightError, match="outside the model"):
        remote_code(model)
