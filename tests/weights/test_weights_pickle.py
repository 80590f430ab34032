import hashlib
import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.errors import WeightError
from plimsoll.weights.convert import pickle_machine
from plimsoll.weights.convert.from_pickle import pickle_to_safetensors
from plimsoll.weights.convert.output import read_steps
from plimsoll.weights.convert.pickle_machine import PickleMachine
from plimsoll.weights.convert.safetensors_file import read_header
from plimsoll.weights.convert.torch_file import read_checkpoint

REAL = Path(__file__).parent / "torch_files"
EXPECTED = json.loads((REAL / "expected.json").read_text())


def model(tmp_path: Path, *names: str, config: str = "{}") -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(config)
    (folder / "tokenizer.json").write_text("[]")
    for number, name in enumerate(names, 1):
        new = "pytorch_model.bin" if len(names) == 1 else f"pytorch_model-{number:05d}-of-{len(names):05d}.bin"
        (folder / new).write_bytes((REAL / name).read_bytes())
    return folder


def contents(path: Path) -> dict[str, list[object]]:
    raw = path.read_bytes()
    return {
        tensor.name: [list(tensor.shape), hashlib.sha256(raw[tensor.start : tensor.end]).hexdigest()]
        for tensor in read_header(path).tensors
    }


@pytest.mark.parametrize("name", ["zip.bin", "legacy.bin", "module.bin", "new_types.bin", "trainer.bin"])
def test_every_tensor_of_a_real_checkpoint_is_bit_equal(tmp_path: Path, name: str) -> None:
    step = pickle_to_safetensors(model(tmp_path, name), tmp_path / "new")
    assert contents(tmp_path / "new/model.safetensors") == EXPECTED[name]
    assert sorted(os.listdir(tmp_path / "new")) == [
        "config.json", "model.safetensors", "plimsoll-conversion.json", "tokenizer.json",
    ]  # fmt: skip
    assert read_steps(tmp_path / "new")[0]["tensors"] == step.tensors == len(EXPECTED[name])


def test_dtypes_are_kept(tmp_path: Path) -> None:
    pickle_to_safetensors(model(tmp_path, "zip.bin"), tmp_path / "new")
    kinds = {tensor.name: tensor.dtype for tensor in read_header(tmp_path / "new/model.safetensors").tensors}
    assert (kinds["bf16"], kinds["f16"], kinds["bool"], kinds["i64"]) == ("BF16", "F16", "BOOL", "I64")


def test_shared_tensors_are_left_out_only_where_the_config_ties_them(tmp_path: Path) -> None:
    step = pickle_to_safetensors(model(tmp_path, "zip.bin", config='{"tie_word_embeddings": true}'), tmp_path / "new")
    header = read_header(tmp_path / "new/model.safetensors")
    assert "lm_head.weight" not in {tensor.name for tensor in header.tensors}
    assert header.metadata == {"format": "pt", "lm_head.weight": "embed.weight"}
    assert "left out lm_head.weight: tied to embed.weight" in step.notes


def test_shards_get_a_new_index(tmp_path: Path) -> None:
    folder = model(tmp_path, "zip.bin", "module.bin")
    names = [*EXPECTED["zip.bin"], *EXPECTED["module.bin"]]
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "../../etc/passwd")}))
    told: list[int] = []
    pickle_to_safetensors(folder, tmp_path / "new", progress=lambda _, done, total: told.append(done))
    written = json.loads((tmp_path / "new/model.safetensors.index.json").read_text())
    assert sorted(written["weight_map"]) == sorted(names)
    assert set(written["weight_map"].values()) == {f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}
    assert written["metadata"]["total_size"] == told[-1]
    index.write_text(json.dumps({"weight_map": {"lost": "x"}}))
    with pytest.raises(WeightError, match="names 1 tensors that are in no file, first lost"):
        pickle_to_safetensors(folder, tmp_path / "newer")


def test_nothing_is_overwritten_and_nothing_half_is_left(tmp_path: Path) -> None:
    folder = model(tmp_path, "zip.bin")
    (tmp_path / "new").mkdir()
    with pytest.raises(WeightError, match="exists"):
        pickle_to_safetensors(folder, tmp_path / "new")
    (tmp_path / "new").rmdir()
    (tmp_path / ".new.partial").mkdir()
    (tmp_path / ".new.partial/model.safetensors").write_bytes(b"of a run that was killed")

    def break_off(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pickle_to_safetensors(folder, tmp_path / "new", progress=break_off)
    assert [name for name in os.listdir(tmp_path) if not name.endswith(".lock")] == ["model"]


def test_a_link_out_of_the_model_is_refused(tmp_path: Path) -> None:
    folder = model(tmp_path, "zip.bin")
    (tmp_path / "secret").write_text("secret")
    (folder / "vocab.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(WeightError, match=r"vocab.txt links to .*secret, outside the model"):
        pickle_to_safetensors(folder, tmp_path / "new")


class Evil:
    def __reduce__(self) -> object:
        return os.system, ("touch /tmp/plimsoll-was-here",)


class EvalEvil:
    def __reduce__(self) -> object:
        return eval, ("__import__('os').system('touch /tmp/plimsoll-was-here')",)


def zipped(data: bytes, *, name: str = "archive/data.pkl") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, data)
        archive.writestr("archive/data/0", bytes(64))
    return file.getvalue()


def raw(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


BILLION = b"]q\x00" + b"h\x00a" * 10 + b"ccollections\nOrderedDict\nh\x00\x85R" * 1000
HOSTILE = {
    "os.system": (pickle.dumps(Evil()), "asks for posix.system|asks for os.system|asks for nt.system"),
    "protocol 0": (pickle.dumps(Evil(), protocol=0), "the opcode|asks for"),
    "eval in a table": (pickle.dumps(OrderedDict(a=EvalEvil()), protocol=2), "asks for (builtins|__builtin__).eval"),
    "getattr": (raw(b"cbuiltins\ngetattr\n(cos\nsystem\nX\x01\x00\x00\x00xtR"), "asks for builtins.getattr"),
    "inst opcode": (raw(b"(X\x02\x00\x00\x00idios\nsystem\n"), "the opcode 0x69"),
    "obj opcode": (raw(b"(cos\nsystem\nX\x02\x00\x00\x00ido"), "the opcode 0x6f"),
    "extension": (raw(b"\x82\x01"), "the opcode 0x82"),
    "newobj": (raw(b"csubprocess\nPopen\n)\x81"), "asks for subprocess.Popen"),
    "build": (raw(b"cos\nsystem\n}b"), "the state of an object"),
    "a call of text": (raw(b"X\x01\x00\x00\x00x)R"), "a call of a value"),
    "storage of another module": (
        raw(b"(X\x07\x00\x00\x00storagecos\nsystem\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"), "os.system",
    ),
    "memo bomb": (raw(b"Nr\xff\xff\xff\x7f"), "holds no table"),
    "bytearray bomb": (raw(b"\x96" + struct.pack("<Q", 1 << 40)), "the opcode 0x96"),
    "text bomb": (raw(b"X\xff\xff\xff\x7f"), "broken at byte"),
    "long bomb": (raw(b"\x8b\xff\xff\xff\x7f"), "the opcode 0x8b"),
    "copies bomb": (raw(BILLION), "broken at byte"),
    "deep": (raw(b"(" * 20_000), "too many values at once"),
    "many tables": (raw(b"}0" * 20_000), "more than 10000 objects"),
    "empty": (b"", "broken at byte"),
    "no stop": (b"\x80\x02}", "broken at byte"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "said"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_pickle_runs_nothing_and_takes_no_memory(
    tmp_path: Path, data: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickle_machine, "_MAX_VALUES", 10_000)
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(zipped(data))
    tracemalloc.start()
    try:
        with pytest.raises(WeightError, match=said) as caught:
            read_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert "\n" not in caught.value.message
    assert not Path("/tmp/plimsoll-was-here").exists()


def storage(count: int) -> bytes:
    number = b"\x8a\x08" + count.to_bytes(8, "little")
    return b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + number + b"tQ"


def tensor(offset: int, size: int, stride: int, *, count: int = 16) -> bytes:
    number = [b"\x8a\x08" + value.to_bytes(8, "little", signed=True) for value in (offset, size, stride)]
    view = number[0] + number[1] + b"\x85" + number[2] + b"\x85\x89N"
    return raw(b"}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(" + storage(count) + view + b"tRs")


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, 17, 1),
        (1, 16, 1),
        (0, 16, 2),
        (0, 1 << 60, 0),
        (-1, 4, 1),
        (0, 4, -1),
        (1 << 61, 1, 1),
        (0, -4, 1),
        (0, 2, 1 << 60),
    ],
)
def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path, offset: int, size: int, stride: int) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(zipped(tensor(offset, size, stride, count=1 << 61)))
    with pytest.raises(WeightError):
        read_checkpoint(path)
    path.write_bytes(zipped(tensor(0, 16, 1)))
    assert read_checkpoint(path).tensors[0].size_bytes == 64


@pytest.mark.parametrize("name", ["zip.bin", "legacy.bin"])
@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_damage_is_told_or_harmless(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    content = bytearray((REAL / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(content)
    try:
        checkpoint = read_checkpoint(path)
    except WeightError:
        return
    assert all(one.start >= 0 and one.start <= len(content) for one in checkpoint.tensors)


@given(st.binary(max_size=400))
def test_no_bytes_break_the_machine(data: bytes) -> None:
    try:
        PickleMachine(data, name="x").run()
    except WeightError as error:
        assert "\n" not in error.message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html>", "is not a file of torch.save: it begins with b'<!DO'"),
        (b"PK\3\4 broken", "is broken"),
        (zipped(b"", name="other/file"), "is a zip file, but not one of torch.save"),
        (zipped(b"")[:-6] + b"\xff\xff\xff\x7f\0\0", "is broken"),
        (b"", "is not a file of torch.save"),
    ],
)
def test_what_is_no_checkpoint(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(WeightError, match=said):
        pickle_to_safetensors(tmp_path, tmp_path.with_name("new"))


def test_a_directory_without_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightError, match=r"there is no \.bin"):
        pickle_to_safetensors(tmp_path, tmp_path.with_name("new"))
    with pytest.raises(WeightError, match="is not a model directory"):
        pickle_to_safetensors(tmp_path / "nowhere", tmp_path / "new")
