import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_hub import File, Hub, cut, slam, spoil, status

from plimsoll.errors import WeightError
from plimsoll.weights import ranges
from plimsoll.weights.http import Session, shown
from plimsoll.weights.lock import locked
from plimsoll.weights.transfer import Arrived, Expected, Patience, download

DATA = random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
QUICK = Patience(attempts=4, attempts_before_an_answer=2, first_wait_s=0.001)


@pytest.fixture(autouse=True)
def _small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FIRST_BYTES", "_LEAST_BYTES", "_MOST_BYTES"):
        monkeypatch.setattr(ranges, name, 40_000)
    monkeypatch.setattr(ranges, "_RECORD_BYTES", 5_000)


def get(
    hub: Hub, target: Path, *, urls: tuple[str, ...] = ("/f",), connections: int = 4, **expected: object
) -> Arrived:
    session = Session(timeout_s=0.5)
    try:
        return download(
            [url if "://" in url else hub.url + url for url in urls], target, session=session, connections=connections,
            expected=Expected(**expected), patience=QUICK,  # type: ignore[arg-type]
        )  # fmt: skip
    finally:
        session.close()


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("size", [0, 1, 39_999, 40_000, 40_001, 300_000])
def test_a_file_arrives_whole(hub: Hub, tmp_path: Path, size: int, connections: int) -> None:
    hub.files["/f"] = File(DATA[:size])
    arrived = get(hub, tmp_path / "f", connections=connections)
    assert (tmp_path / "f").read_bytes() == DATA[:size]
    assert arrived.sha256 == hashlib.sha256(DATA[:size]).hexdigest()
    assert hub.sent_bytes == size
    assert os.listdir(tmp_path) == ["f"]


FAULTS = {
    "a cut": cut(777), "a cut at once": cut(0), "no answer": slam, "503": status(503),
    "429": status(429, Retry_After="0"), "other bytes": spoil, "500": status(500),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_any_mix_of_faults_is_borne_or_told(hub: Hub, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    hub.files["/f"] = File(DATA)
    hub.faults.extend(chance.choice([*FAULTS.values(), *[lambda _: False] * 4]) for _ in range(20))
    for _ in range(12):
        try:
            get(hub, tmp_path / "f", sha256=SHA256, size_bytes=len(DATA))
            break
        except WeightError as error:
            assert "\n" not in error.message
            assert not (tmp_path / "f").exists()
    assert (tmp_path / "f").read_bytes() == DATA


def test_what_has_arrived_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    hub.files["/f"] = File(DATA)
    hub.faults.extend([lambda _: False, lambda _: False, *[status(404)] * 6])
    with pytest.raises(WeightError, match="does not have it"):
        get(hub, tmp_path / "f", connections=1, sha256=SHA256)
    before = hub.sent_bytes
    assert before == 80_000
    hub.faults.clear()
    get(hub, tmp_path / "f", connections=1, sha256=SHA256)
    assert hub.sent_bytes == len(DATA)


def test_a_part_of_another_version_is_not_continued(hub: Hub, tmp_path: Path) -> None:
    hub.files["/f"] = File(DATA)
    hub.faults.extend([lambda _: False, *[status(404)] * 2])
    with pytest.raises(WeightError):
        get(hub, tmp_path / "f", connections=1)
    hub.faults.clear()
    hub.files["/f"] = File(DATA[::-1])
    get(hub, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA[::-1]


def test_a_part_that_was_damaged_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    hub.files["/f"] = File(DATA)
    hub.faults.extend([lambda _: False, *[status(404)] * 2])
    with pytest.raises(WeightError):
        get(hub, tmp_path / "f", connections=1, sha256=SHA256)
    hub.faults.clear()
    with (tmp_path / "f.part").open("r+b") as file:
        file.write(b"damage")
    get(hub, tmp_path / "f", sha256=SHA256)
    assert (tmp_path / "f").read_bytes() == DATA


def test_another_source_continues_and_a_dead_one_is_passed_over(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"/a": File(DATA), "/b": File(DATA, etag='"other"')}
    hub.faults.extend([lambda _: False, lambda _: False, status(404)])
    get(hub, tmp_path / "f", urls=("/a", "/b"), connections=1, sha256=SHA256, size_bytes=len(DATA))
    assert hub.sent_bytes == len(DATA)
    assert [path for _, path, _ in hub.seen].count("/a") == 3


def test_a_server_without_ranges_will_do(hub: Hub, tmp_path: Path) -> None:
    for number, file in enumerate([File(DATA, ranges=False), File(DATA, ranges=False, length=False)]):
        hub.files["/f"] = file
        hub.faults.extend([cut(100_000)])
        get(hub, tmp_path / f"{number}", sha256=SHA256)
        assert (tmp_path / f"{number}").read_bytes() == DATA
        get(hub, tmp_path / f"{number}s", sha256=SHA256, size_bytes=len(DATA))
        assert (tmp_path / f"{number}s").read_bytes() == DATA


@pytest.mark.parametrize(
    ("file", "expected", "said"),
    [
        (File(DATA, length=False, ranges=False), {}, "tells neither size nor checksum"),
        (File(DATA), {"size_bytes": 5}, "has 300000 bytes, expected 5"),
        (File(DATA), {"size_bytes": 5, "sha256": SHA256}, "has 300000 bytes, expected 5"),
        (File(DATA), {"sha256": "0" * 64}, "gave other bytes than the source announces"),
        (File(DATA), {"git_sha1": "0" * 40}, "gave other bytes than the source announces"),
        (File(DATA, headers={"Content-Encoding": "gzip"}), {}, "is sent compressed"),
        (File(b"", status=403), {}, r"forbids it \(403\)"),
        (File(b"", status=418), {}, r"answers 418 \(418\)"),
        (File(b"", status=503), {}, r"it answers 503 \(2 attempts\)"),
        (File(b"", redirect="/f"), {}, "redirects without end"),
        (File(b"", redirect="ftp://x/y"), {}, "not an http or https address"),
    ],
)
def test_what_cannot_be_had_is_said_in_one_line(
    hub: Hub, tmp_path: Path, file: File, expected: dict[str, object], said: str
) -> None:
    hub.files["/f"] = file
    with pytest.raises(WeightError, match=said) as caught:
        get(hub, tmp_path / "f", **expected)
    assert "\n" not in caught.value.message
    assert not (tmp_path / "f").exists()


def test_git_checksums_are_checked(hub: Hub, tmp_path: Path) -> None:
    hub.files["/f"] = File(DATA)
    sha1 = hashlib.sha1(b"blob 300000\0" + DATA, usedforsecurity=False).hexdigest()
    assert get(hub, tmp_path / "f", git_sha1=sha1, size_bytes=300_000).size_bytes == 300_000


def test_a_changed_etag_in_the_middle_is_told(hub: Hub, tmp_path: Path) -> None:
    def change(_: object) -> bool:
        hub.files["/f"] = File(DATA, etag='"new"')
        return False

    hub.files["/f"] = File(DATA)
    hub.faults.extend([lambda _: False, lambda _: False, change])
    with pytest.raises(WeightError, match="changed while it was being fetched"):
        get(hub, tmp_path / "f", connections=1)


def test_a_redirect_is_asked_once_and_again_when_it_ran_out(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"/f": File(b"", redirect="/cdn?key=1"), "/cdn?key=1": File(DATA), "/cdn?key=2": File(DATA)}

    def run_out(handler: object) -> bool:
        hub.files["/f"] = File(b"", redirect="/cdn?key=2")
        hub.files["/cdn?key=1"] = File(b"", status=403)
        return False

    hub.faults.extend([*[lambda _: False] * 3, run_out])
    get(hub, tmp_path / "f", connections=1)
    assert (tmp_path / "f").read_bytes() == DATA
    assert [path for _, path, _ in hub.seen].count("/f") == 2


def test_a_stalled_line_is_cut_and_continued(hub: Hub, tmp_path: Path) -> None:
    def stall(handler: object) -> bool:
        time.sleep(0.8)
        return False

    hub.files["/f"] = File(DATA)
    hub.faults.extend([lambda _: False, stall])
    get(hub, tmp_path / "f", sha256=SHA256)
    assert (tmp_path / "f").read_bytes() == DATA


def test_messages_hold_no_secrets() -> None:
    assert shown("https://me:secret@host:8443/a/b?X-Amz-Signature=secret") == "https://host:8443/a/b"


CHILD = """
import sys
from pathlib import Path
from plimsoll.weights import ranges
from plimsoll.weights.http import Session
from plimsoll.weights.lock import locked
from plimsoll.weights.transfer import Expected, download
ranges._FIRST_BYTES = ranges._LEAST_BYTES = ranges._MOST_BYTES = 40_000
ranges._RECORD_BYTES = 5_000
url, target, sha256 = sys.argv[1:]
print("up", flush=True)
with locked(Path(target + ".lock")):
    download([url], Path(target), session=Session(), expected=Expected(sha256=sha256 or None), connections=3)
"""


def kill_and_resume(hub: Hub, folder: Path, rounds: int, *, sha256: str) -> int:
    """Fetch again and again, killing at random moments until one run ends by itself; how often it was killed."""
    chance = random.Random(rounds)
    hub.files["/f"] = File(DATA)
    hub.pause_s = 0.003
    killed = whole = 0
    while killed + whole < rounds:
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, f"{hub.url}/f", str(folder / "f"), sha256], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            try:
                child.wait(chance.uniform(0, 0.06))
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                killed += 1
        if (folder / "f").exists():
            assert (folder / "f").read_bytes() == DATA
            whole += 1
            (folder / "f").unlink()
    return killed


@pytest.mark.parametrize("sha256", [SHA256, ""], ids=["checksum", "etag only"])
def test_killed_at_random_moments_it_ends_whole(hub: Hub, tmp_path: Path, sha256: str) -> None:
    assert kill_and_resume(hub, tmp_path, 4, sha256=sha256) > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("sha256", [SHA256, ""], ids=["checksum", "etag only"])
def test_killed_two_hundred_times_it_ends_whole(hub: Hub, tmp_path: Path, sha256: str) -> None:
    assert kill_and_resume(hub, tmp_path, 200, sha256=sha256) > 100


def test_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    code = "import sys\nfrom pathlib import Path\nfrom plimsoll.weights.lock import locked\n"
    code += "with locked(Path(sys.argv[1])):\n print('held', flush=True)\n sys.stdin.read()"
    path = tmp_path / "locks" / "a.lock"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        told: list[str] = []

        def waiting(pid: str) -> None:
            told.append(pid)
            holder.kill()

        with locked(path, waiting=waiting, poll_s=0.01):
            assert told == [str(holder.pid)]
