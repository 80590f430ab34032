import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_api import put_huggingface, put_modelscope, put_ollama
from fake_hub import File, Hub, cut, spoil, status

from plimsoll.errors import WeightError
from plimsoll.weights.fetch import Request, fetch, find_local, list_remote
from plimsoll.weights.models import find_models, list_models, remove_model, usage_bytes, verify_model
from plimsoll.weights.selection import choose, quantization_of
from plimsoll.weights.sources import Ref, parse_ref

WEIGHTS = random.Random(2).randbytes(50_000)
FILES = {
    "config.json": b"{}", "tokenizer.json": b"[]", "model-1.safetensors": WEIGHTS, "model-2.safetensors": WEIGHTS[::-1],
    "pytorch_model.bin": WEIGHTS[1:], "onnx/model.onnx": WEIGHTS[2:], "README.md": b"read", ".gitattributes": b"",
}  # fmt: skip
NEEDED = ["config.json", "model-1.safetensors", "model-2.safetensors", "tokenizer.json"]


@pytest.fixture
def environ(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.url, "MODELSCOPE_ENDPOINT": hub.url, "OLLAMA_REGISTRY": hub.url,
        "HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "home" / "hf"),
    }  # fmt: skip


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_model_of_the_hub_is_fetched_once_and_only_what_is_needed(
    hub: Hub, tmp_path: Path, environ: dict[str, str]
) -> None:
    put_huggingface(hub, "org/name", FILES)
    told: list[tuple[str, int, int | None]] = []
    request = Request(ref="org/name")
    folder = fetch(request, store=tmp_path / "s", environ=environ, progress=lambda *news: told.append(news))
    assert folder == tmp_path / "s/models--org--name/snapshots" / ("c" * 40)
    assert names(folder) == NEEDED
    assert all((folder / name).read_bytes() == FILES[name] for name in NEEDED)
    assert told[-1] == ("org/name", 100_004, 100_004)
    asked = len(hub.seen)
    assert find_local(request, store=tmp_path / "s", environ=environ) == folder
    assert fetch(request, store=tmp_path / "s", environ=environ) == folder
    assert fetch(Request(ref="org/name", revision="c" * 40), store=tmp_path / "s", environ=environ) == folder
    assert len(hub.seen) == asked
    assert find_local(Request(ref="org/name", include=("*.md",)), store=tmp_path / "s", environ=environ) is None


def test_any_form_that_will_do_is_found(hub: Hub, tmp_path: Path, environ: dict[str, str]) -> None:
    put_huggingface(hub, "org/name", FILES | {"name-Q8_0.gguf": WEIGHTS, "name-Q4_K_M.gguf": WEIGHTS[1:]})
    path = fetch(Request(ref="org/name", formats=("gguf",)), store=tmp_path, environ=environ)
    assert path.name == "name-Q4_K_M.gguf"
    assert find_local(Request(ref="org/name"), store=tmp_path, environ=environ) == path
    assert find_local(Request(ref="org/name", formats=("safetensors",)), store=tmp_path, environ=environ) is None
    assert find_local(Request(ref="org/name:Q8_0"), store=tmp_path, environ=environ) is None
    assert find_local(Request(ref="org/name/name-Q4_K_M.gguf"), store=tmp_path, environ=environ) == path


def test_a_pinned_checksum_is_held_against_what_comes(hub: Hub, tmp_path: Path, environ: dict[str, str]) -> None:
    put_huggingface(hub, "org/name", {"w.gguf": WEIGHTS, "small.gguf": b"small"})
    right, wrong = hashlib.sha256(WEIGHTS).hexdigest(), "0" * 64
    for name in ("w.gguf", "small.gguf"):
        with pytest.raises(WeightError, match=r"has the checksum|gave other bytes"):
            fetch(Request(ref=f"org/name/{name}", sha256=wrong), store=tmp_path, environ=environ)
    assert fetch(Request(ref="org/name/w.gguf", sha256=right), store=tmp_path, environ=environ).name == "w.gguf"
    assert find_local(Request(ref="org/name/w.gguf", sha256=wrong), store=tmp_path, environ=environ) is None
    with pytest.raises(WeightError, match="is not one file"):
        fetch(Request(ref="org/name", include=("*",), sha256=right), store=tmp_path, environ=environ)


def test_a_path_is_used_where_it_lies(tmp_path: Path) -> None:
    assert fetch(Request(ref=str(tmp_path)), store=tmp_path / "s", update=True) == tmp_path


def test_a_branch_moves_only_when_asked(hub: Hub, tmp_path: Path, environ: dict[str, str]) -> None:
    put_huggingface(hub, "org/name", FILES)
    old = fetch(Request(ref="org/name"), store=tmp_path, environ=environ)
    put_huggingface(hub, "org/name", FILES | {"config.json": b"[1]"}, commit="d" * 40)
    assert fetch(Request(ref="org/name"), store=tmp_path, environ=environ) == old
    sent = hub.sent_bytes
    new = fetch(Request(ref="org/name"), store=tmp_path, environ=environ, update=True)
    assert (new / "config.json").read_bytes() == b"[1]"
    assert hub.sent_bytes - sent < 2_000, "unchanged files are not fetched again"
    assert [model.revision[0] for model in list_models(tmp_path)] == ["c", "d"]


def test_the_same_bytes_in_two_models_are_there_once(hub: Hub, tmp_path: Path, environ: dict[str, str]) -> None:
    put_huggingface(hub, "org/a", {"config.json": b"{}", "model.safetensors": WEIGHTS})
    put_huggingface(hub, "org/b", {"config.json": b"{}", "model.safetensors": WEIGHTS})
    a = fetch(Request(ref="org/a"), store=tmp_path, environ=environ)
    sent = hub.sent_bytes
    b = fetch(Request(ref="org/b"), store=tmp_path, environ=environ)
    assert hub.sent_bytes - sent < 2_000
    assert (a / "model.safetensors").samefile(b / "model.safetensors")
    assert usage_bytes(tmp_path) < 60_000
    assert remove_model(find_models(tmp_path, "org/a")[0]) < 10_000
    assert (b / "model.safetensors").read_bytes() == WEIGHTS
    assert remove_model(find_models(tmp_path, "org/b")[0]) > 50_000
    assert list_models(tmp_path) == ()


def test_what_other_tools_fetched_is_linked(hub: Hub, tmp_path: Path, environ: dict[str, str]) -> None:
    put_huggingface(hub, "org/na.me", {"config.json": b"{}", "model.safetensors": WEIGHTS})
    home = tmp_path / "home"
    cached = home / "hf/hub/models--org--na.me/snapshots" / ("e" * 40)
    cached.mkdir(parents=True)
    (cached / "config.json").write_bytes(b"{}")
    (cached / "model.safetensors").write_bytes(WEIGHTS[::-1])  # as large, and wrong
    other = home / ".cache/modelscope/hub/models/org/na___me"
    other.mkdir(parents=True)
    (other / "model.safetensors").write_bytes(WEIGHTS)
    folder = fetch(Request(ref="org/na.me"), store=tmp_path / "s", environ=environ)
    assert (folder / "model.safetensors").samefile(other / "model.safetensors")
    assert (folder / "config.json").samefile(cached / "config.json")
    assert [path for _, path, _ in hub.seen if "/resolve/" in path or "/cdn" in path] == []


def test_a_fetch_goes_on_from_another_source(hub: Hub, tmp_path: Path, environ: dict[str, str]) -> None:
    files = {"config.json": b"{}", "model.safetensors": WEIGHTS}
    put_huggingface(hub, "org/name", files)
    put_modelscope(hub, "org/name", files)
    hub.faults.extend([*[lambda _: False] * 3, cut(30_000), *[status(404)] * 2])
    with pytest.raises(WeightError):
        fetch(Request(ref="org/name"), store=tmp_path, environ=environ)
    hub.faults.clear()
    sent = hub.sent_bytes
    folder = fetch(Request(ref="ms:org/name"), store=tmp_path, environ=environ)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.sent_bytes - sent < 22_000


def test_modelscope_and_ollama_and_a_plain_address(hub: Hub, tmp_path: Path, environ: dict[str, str]) -> None:
    put_modelscope(hub, "Qwen/Qwen2.5", FILES)
    assert names(fetch(Request(ref="ms:Qwen/Qwen2.5"), store=tmp_path, environ=environ)) == NEEDED
    chosen = environ | {"VLLM_USE_MODELSCOPE": "True"}
    assert find_local(Request(ref="Qwen/Qwen2.5"), store=tmp_path, environ=chosen) is not None
    put_ollama(hub, "library/smollm2", "135m", {"model": WEIGHTS, "template": b"{{ }}", "unknown": b"x"})
    model = fetch(Request(ref="ollama:smollm2:135m"), store=tmp_path, environ=environ)
    assert (model.name, model.read_bytes(), names(model.parent)) == ("model.gguf", WEIGHTS, ["model.gguf", "template"])
    for part in ("1", "2"):
        hub.files[f"/w-0000{part}-of-00002.gguf"] = File(WEIGHTS + part.encode())
    first = fetch(Request(ref=f"{hub.url}/w-00001-of-00002.gguf"), store=tmp_path, environ=environ)
    assert first.read_bytes()[-1:] == b"1"
    assert (first.parent / "w-00002-of-00002.gguf").read_bytes()[-1:] == b"2"
    asked = len(hub.seen)
    assert fetch(Request(ref=f"{hub.url}/w-00001-of-00002.gguf"), store=tmp_path, environ=environ) == first
    assert len(hub.seen) == asked
    assert [model.name for model in list_models(tmp_path)][:2] == ["Qwen/Qwen2.5", "ollama:smollm2"]


def test_a_damaged_file_is_found_and_fetched_again(hub: Hub, tmp_path: Path, environ: dict[str, str]) -> None:
    put_huggingface(hub, "org/name", FILES)
    folder = fetch(Request(ref="org/name"), store=tmp_path, environ=environ)
    model = find_models(tmp_path, "org/name@main")[0]
    assert verify_model(model) == ()
    (folder / "model-1.safetensors").write_bytes(WEIGHTS[::-1])
    assert [(fault.path, fault.what) for fault in verify_model(model)] == [
        ("model-1.safetensors", "other bytes than were fetched")
    ]
    fetch(Request(ref="org/name"), store=tmp_path, environ=environ)
    assert verify_model(model) == ()


def test_after_a_restart_of_the_machine_files_are_read_again_once(
    hub: Hub, tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_huggingface(hub, "org/name", FILES)
    request = Request(ref="org/name")
    folder = fetch(request, store=tmp_path, environ=environ)
    time_of_change = (folder / "model-1.safetensors").stat()
    durable = next(tmp_path.glob("models--*/plimsoll")) / f"{'c' * 40}.durable"
    monkeypatch.setattr("plimsoll.weights.store.boot_id", lambda: "another")
    assert find_local(request, store=tmp_path, environ=environ) == folder
    assert not durable.exists(), "it was written just now"
    monkeypatch.setattr("plimsoll.weights.store._WRITTEN_BACK_S", 0.0)
    assert find_local(request, store=tmp_path, environ=environ) == folder
    assert durable.exists()
    durable.unlink()
    (folder / "model-1.safetensors").write_bytes(bytes(50_000))  # as a file whose pages never reached the disk
    os.utime(folder / "model-1.safetensors", ns=(time_of_change.st_atime_ns, time_of_change.st_mtime_ns))
    assert find_local(request, store=tmp_path, environ=environ) is None
    fetch(request, store=tmp_path, environ=environ)
    assert (folder / "model-1.safetensors").read_bytes() == WEIGHTS


def test_an_interrupted_fetch_ends_at_once_and_goes_on_later(
    hub: Hub, tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plimsoll.weights.fetch._SMALL_BYTES", 1000)
    put_huggingface(hub, "org/name", {"a.safetensors": WEIGHTS, "b.safetensors": WEIGHTS[::-1]})
    hub.pause_s = 0.2

    def interrupt(name: str, done: int, total: int | None) -> None:
        if threading.current_thread() is not threading.main_thread():
            signal.raise_signal(signal.SIGINT)

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fetch(Request(ref="org/name"), store=tmp_path, environ=environ, progress=interrupt)
    assert time.monotonic() - started < 3
    hub.pause_s = 0
    folder = fetch(Request(ref="org/name"), store=tmp_path, environ=environ)
    assert (folder / "a.safetensors").read_bytes() == WEIGHTS


def test_many_at_once_share_one_fetch(hub: Hub, tmp_path: Path, environ: dict[str, str]) -> None:
    put_huggingface(hub, "org/name", FILES)
    hub.pause_s = 0.005
    threads = [
        threading.Thread(target=fetch, args=(Request(ref="org/name"),), kwargs={"store": tmp_path, "environ": environ})
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([path for _, path, _ in hub.seen if path.startswith("/cdn")]) == 2
    assert len(list_models(tmp_path)[0].files) == 4


@pytest.mark.parametrize("seed", range(5))
def test_faults_on_the_way_leave_no_wrong_file(hub: Hub, tmp_path: Path, environ: dict[str, str], seed: int) -> None:
    chance = random.Random(seed)
    put_huggingface(hub, "org/name", FILES)
    kinds = [cut(1000), cut(0), spoil, status(503, Retry_After="0"), status(404), *[lambda _: False] * 4]
    hub.faults.extend(chance.choice(kinds) for _ in range(12))
    for _ in range(14):
        try:
            folder = fetch(Request(ref="org/name"), store=tmp_path, environ=environ)
            break
        except WeightError:
            assert list_models(tmp_path) == ()
    assert all((folder / name).read_bytes() == FILES[name] for name in NEEDED)


CHILD = """
import os, sys
from pathlib import Path
from plimsoll.weights import fetch, ranges
fetch._SMALL_BYTES, ranges._LEAST_BYTES, ranges._FIRST_BYTES, ranges._RECORD_BYTES = 1000, 10_000, 10_000, 2_000
print("up", flush=True)
fetch.fetch(fetch.Request(ref="org/name"), store=Path(sys.argv[1]), environ=dict(os.environ))
"""


def kill_and_fetch(hub: Hub, store: Path, environ: dict[str, str], rounds: int) -> int:
    """Fetch a model again and again, killing at random moments; how often it was killed before it was whole."""
    chance = random.Random(rounds)
    put_huggingface(hub, "org/name", FILES)
    hub.pause_s = 0.003
    killed = whole = 0
    while killed + whole < rounds:
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, str(store)], stdout=subprocess.PIPE, env={**os.environ, **environ}
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            try:
                child.wait(chance.uniform(0, 0.12))
            except subprocess.TimeoutExpired:
                child.kill()
                killed += 1
        found = find_local(Request(ref="org/name"), store=store, environ=environ)
        if found is not None:
            assert {name: (found / name).read_bytes() for name in NEEDED} == {name: FILES[name] for name in NEEDED}
            assert verify_model(list_models(store)[0]) == ()
            whole += 1
            remove_model(list_models(store)[0])
    return killed


def test_killed_at_random_moments_a_model_ends_whole(hub: Hub, tmp_path: Path, environ: dict[str, str]) -> None:
    assert kill_and_fetch(hub, tmp_path, environ, 4) > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_two_hundred_times_a_model_ends_whole(hub: Hub, tmp_path: Path, environ: dict[str, str]) -> None:
    assert kill_and_fetch(hub, tmp_path, environ, 200) > 100


def answer(status_code: int, code: str) -> object:
    return status(status_code, X_Error_Code=code)


@pytest.mark.parametrize(
    ("fault", "said", "hint"),
    [
        (answer(403, "GatedRepo"), "org/name is gated: its terms must be accepted", "HF_TOKEN"),
        (answer(401, "RepoNotFound"), "has no model org/name", "ms: in front"),
        (answer(404, "RevisionNotFound"), "org/name has no revision main", "commits"),
        (status(418), "answers 418", "check the address"),
    ],
)
def test_a_refusal_is_explained(
    hub: Hub, tmp_path: Path, environ: dict[str, str], fault: object, said: str, hint: str
) -> None:
    hub.faults.append(fault)  # type: ignore[arg-type]
    with pytest.raises(WeightError, match=said) as caught:
        fetch(Request(ref="org/name"), store=tmp_path, environ=environ)
    assert hint in str(caught.value.hint)


def test_the_token_goes_to_the_hub_alone(hub: Hub, tmp_path: Path, environ: dict[str, str]) -> None:
    put_huggingface(hub, "org/name", FILES)
    address = hub.url.replace("127.0.0.1", "localhost")
    for path, file in hub.files.items():
        if "/resolve/" in path and file.redirect:
            file.redirect = hub.url + file.redirect
    fetch(Request(ref="org/name"), store=tmp_path, environ=environ | {"HF_ENDPOINT": address, "HF_TOKEN": "hf_x"})
    sent = {path.partition("?")[0].split("/")[1]: headers.get("Authorization") for _, path, headers in hub.seen}
    assert sent == {"api": "Bearer hf_x", "org": "Bearer hf_x", "cdn": None}


def hostile(path: str) -> File:
    return File(json.dumps({"sha": "c" * 40, "siblings": [{"rfilename": path, "size": 1}]}).encode())


@pytest.mark.parametrize(
    "path", ["../../.bashrc", "/etc/cron.d/x", "a/../../b", "a\\..\\b", "x\0y", "n" * 300, "", ".."]
)
def test_a_hostile_list_of_files_reaches_nothing_outside(
    hub: Hub, tmp_path: Path, environ: dict[str, str], path: str
) -> None:
    hub.files["/api/models/org/name/revision/main?blobs=true"] = hostile(path)
    with pytest.raises(WeightError, match="is not a path inside a model"):
        fetch(Request(ref="org/name"), store=tmp_path / "s", environ=environ)
    assert names(tmp_path / "s") == [".locks/models--org--name.lock"]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"sha": 5, "siblings": []}', b'{"sha": "../x", "siblings": []}', b"[" * 100_000]
)
def test_a_broken_answer_of_the_hub_is_told(hub: Hub, tmp_path: Path, environ: dict[str, str], body: bytes) -> None:
    hub.files["/api/models/org/name/revision/main?blobs=true"] = File(body)
    with pytest.raises(WeightError):
        fetch(Request(ref="org/name"), store=tmp_path, environ=environ)


def test_a_file_and_a_folder_of_one_name(hub: Hub, tmp_path: Path, environ: dict[str, str]) -> None:
    put_huggingface(hub, "org/name", {"a.json": b"1", "a.json/b.json": b"2", "model.safetensors": WEIGHTS})
    with pytest.raises(WeightError, match="cannot make"):
        fetch(Request(ref="org/name"), store=tmp_path, environ=environ)


def test_offline_says_so(tmp_path: Path) -> None:
    with pytest.raises(WeightError, match="is not on this machine"):
        fetch(Request(ref="org/name"), store=tmp_path, environ={"HF_HUB_OFFLINE": "1"})
    with pytest.raises(WeightError, match="does not exist"):
        fetch(Request(ref="./nowhere"), store=tmp_path)


HUB = {
    "org/name": Ref(kind="huggingface", id="org/name"),
    "org/name@v1": Ref(kind="huggingface", id="org/name", revision="v1"),
    "org/name:Q4_K_M": Ref(kind="huggingface", id="org/name", quant="Q4_K_M"),
    "org/name/sub/w.gguf": Ref(kind="huggingface", id="org/name", file="sub/w.gguf"),
    "hf:gpt2": Ref(kind="huggingface", id="gpt2"),
    "ms:org/name": Ref(kind="modelscope", id="org/name"),
    "https://huggingface.co/org/name": Ref(kind="huggingface", id="org/name"),
    "https://huggingface.co/org/name/blob/main/w.gguf?x=1": Ref(
        kind="huggingface", id="org/name", revision="main", file="w.gguf"
    ),
    "https://modelscope.cn/models/org/name/summary": Ref(kind="modelscope", id="org/name"),
    "https://www.modelscope.cn/models/org/name/file/view/master/w.gguf": Ref(
        kind="modelscope", id="org/name", revision="master", file="w.gguf"
    ),
    "ollama:smollm2:135m": Ref(kind="ollama", id="library/smollm2", revision="135m"),
    "ollama:me/mine": Ref(kind="ollama", id="me/mine", revision="latest"),
    "https://example.org/a/w.gguf": Ref(kind="url", id="https://example.org/a/w.gguf"),
}


@pytest.mark.parametrize(("text", "ref"), HUB.items(), ids=HUB)
def test_references_are_understood(text: str, ref: Ref) -> None:
    assert parse_ref(text, environ={}) == ref


@pytest.mark.parametrize(
    "text", ["", "a b", "org/../x", "org/name/../../x", "-x/y", "ollama:", "https://huggingface.co/x"]
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(WeightError):
        parse_ref(text, environ={})


GGUFS = [
    "README.md", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf",
    "BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf", "m-UD-IQ1_S.gguf",
]  # fmt: skip


def test_one_quantization_is_chosen() -> None:
    assert choose(GGUFS).main == "m-Q4_K_M.gguf"
    assert choose(GGUFS).paths == ("m-Q4_K_M.gguf", "mmproj-F16.gguf")
    assert choose(GGUFS, quant="bf16").paths[:2] == tuple(GGUFS[5:7])
    assert choose(GGUFS, file="BF16/m-BF16-00002-of-00002.gguf").main == GGUFS[5]
    with pytest.raises(WeightError, match="no GGUF is Q2_K") as caught:
        choose(GGUFS, quant="Q2_K")
    assert "BF16, Q4_K_M, Q8_0, UD-IQ1_S" in str(caught.value.hint)
    with pytest.raises(WeightError, match="several GGUFs fit"):
        choose(["a-Q8_0.gguf", "a-Q5_0.gguf"])
    with pytest.raises(WeightError, match="is not there"):
        choose(["m-00001-of-00002.gguf"])


def test_no_second_copy_is_chosen() -> None:
    paths = ["consolidated.safetensors", "model.safetensors", "model.fp16.safetensors", "x.py", "original/params.json"]
    assert choose(paths).paths == ("model.safetensors", "x.py")
    assert choose(["pytorch_model.bin", "training_args.bin"]).paths == ("pytorch_model.bin",)
    with pytest.raises(WeightError, match="no weights as safetensors here"):
        choose(["pytorch_model.bin"], formats=("safetensors",))


def test_quantizations_are_read_off_names() -> None:
    names = {"Qwen3-8B-Q4_K_M.gguf": "Q4_K_M", "SmolLM2-135M-Instruct.Q4_1.gguf": "Q4_1", "a-iq2_xxs.gguf": "IQ2_XXS",
             "gpt-oss-20b-mxfp4.gguf": "MXFP4", "q4_0/w.gguf": "Q4_0", "llama.gguf": None}  # fmt: skip
    assert {name: quantization_of(name) for name in names} == names


def test_a_list_can_be_had_without_a_fetch(hub: Hub, environ: dict[str, str]) -> None:
    put_huggingface(hub, "org/name", FILES)
    listing = list_remote(Request(ref="org/name"), environ=environ)
    sizes = {file.path: file.expected.size_bytes for file in listing.files}
    assert sizes["model-1.safetensors"] == 50_000
    sha256 = {file.path: file.expected.sha256 for file in listing.files}
    assert sha256["model-1.safetensors"] == hashlib.sha256(WEIGHTS).hexdigest()
