"""Engines in Python environments of their own: install, verify, remove.

An environment cannot be moved (its scripts hold its path), so what is renamed into place is its record: a directory
without one is what a killed install left, and goes at the next. One lock stands over a whole directory of
environments; installers inherit it, so it is held for as long as one of them lives.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from packaging.specifiers import SpecifierSet

from plimsoll.engines.builds import Order
from plimsoll.engines.installed import RECORD, Record, installed_environments, read_record
from plimsoll.errors import LaunchError
from plimsoll.launch.indexes import PipSettings, read_pip_settings, uv_environment, uv_flags, without_secrets
from plimsoll.launch.logs import last_words

_CHECK_S = 300.0
_LOCK = ".lock"
Tell = Callable[[str], None]
"""Told each line of what happens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Install:
    """Where an order is carried out, and how. `uv`: its program; None where there is only pip."""

    directory: Path
    uv: Path | None
    environment: Mapping[str, str]
    indexes: tuple[str, ...] = ()
    """Asked instead of the build's own index."""


def find_uv() -> Path | None:
    """The uv beside this Python, else the one on PATH."""
    beside = Path(sysconfig.get_path("scripts")) / "uv"
    found = str(beside) if beside.is_file() else shutil.which("uv")
    return Path(found) if found else None


def install(order: Order, how: Install, tell: Tell) -> Record:
    """Install `order` below `how.directory`; the record is the last thing written.

    LaunchError with the installer's last words; then nothing is left of it. An installation of the same version
    stays as it is.
    """
    build = order.build
    target = how.directory / f"{build.engine}-{order.version}"
    with _locked(how.directory, tell) as lock:
        if (there := read_record(target)) is not None:
            return there
        _sweep(how.directory)
        pip = read_pip_settings(how.environment, prefix=Path(sys.prefix))
        sources = _sources(order, how, pip)
        run = _Runner(
            environment={**how.environment, **(uv_environment(pip, how.environment) if how.uv else {})},
            lock=lock,
            tell=tell,
        )
        done = False
        try:
            python = str(target / "bin" / "python")
            for argv in _commands(order, how, target, python, pip, sources):
                run(argv)
            tell(f"checking that {build.module} imports")
            run((python, "-c", f"import {build.module}"))
            record = Record(
                engine=build.engine,
                version=_version(target, build.package),
                vendor=build.vendor,
                package=build.package,
                module=build.module,
                requirements=order.requirements,
                sources=without_secrets(sources or (*pip.index_url, *pip.extra_index_url, *pip.find_links)),
                installer="uv" if how.uv else "pip",
                installed=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            _write(target / RECORD, record.to_json())
            done = True
        finally:
            if not done:
                shutil.rmtree(target, ignore_errors=True)
    return record


def verify(environment: Path) -> tuple[str, ...]:
    """What is wrong with an installed environment; () when its engine imports in the version that was recorded."""
    record = read_record(environment)
    if record is None:
        return ("it has no record: it was not installed to its end",)
    python = environment / "bin" / "python"
    try:
        version = _version(environment, record.package)
        done = subprocess.run(
            [str(python), "-c", f"import {record.module}"], capture_output=True, timeout=_CHECK_S, check=False,
            stdin=subprocess.DEVNULL, text=True, errors="replace",
        )  # fmt: skip
    except LaunchError as error:
        return (error.message,)
    except OSError as problem:
        return (f"{python} does not start: {problem.strerror}",)
    except subprocess.TimeoutExpired:
        return (f"importing {record.module} took longer than {_CHECK_S:.0f} s",)
    faults = [] if version == record.version else [f"{record.package} is {version}, {record.version} was installed"]
    if done.returncode:
        faults.append(f"{record.module} does not import: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
    return tuple(faults)


def remove(environment: Path, tell: Tell) -> None:
    """Remove an installed environment. LaunchError while a process runs from it."""
    with _locked(environment.parent, tell):
        for process in psutil.process_iter(["cmdline"]):
            if any(word.startswith(f"{environment}{os.sep}") for word in process.info["cmdline"] or ()):
                raise LaunchError(
                    f"process {process.pid} runs from {environment}", hint="`plimsoll down` stops what serves"
                )
        (environment / RECORD).unlink()
        shutil.rmtree(environment, ignore_errors=True)


def _sources(order: Order, how: Install, pip: PipSettings) -> tuple[str, ...]:
    """Indexes beside the user's own: those given, else the build's where the user named none."""
    own = pip.own_sources or any(name.startswith(("UV_INDEX", "UV_DEFAULT_INDEX")) for name in how.environment)
    if how.indexes or (own and not order.build.alone) or not order.build.index:
        return how.indexes
    return (order.build.index,)


def _commands(
    order: Order, how: Install, target: Path, python: str, pip: PipSettings, sources: Sequence[str]
) -> Iterator[tuple[str, ...]]:
    build = order.build
    alone = build.alone and sources == (build.index,)
    if how.uv:
        wanted = SpecifierSet(build.python)
        here = ".".join(map(str, sys.version_info[:3])) in wanted
        yield (str(how.uv), "venv", "--no-config", "--python", sys.executable if here else build.python, str(target))
        flags = ["--default-index", *sources] if alone else [
            *uv_flags(pip, how.environment), *(word for one in sources for word in ("--index", one)),
            *(("--index-strategy", "unsafe-best-match") if sources and not pip.extra_index_url else ()),
        ]  # fmt: skip
        more = ["--prerelease", "allow"] if build.prerelease else []
        yield (str(how.uv), "pip", "install", "--python", python, *flags, *more, *order.requirements)
        if build.without:
            yield (str(how.uv), "pip", "uninstall", "--python", python, *build.without)
        return
    if ".".join(map(str, sys.version_info[:3])) not in SpecifierSet(build.python):
        raise LaunchError(
            f"{build.engine} {order.version} needs Python {build.python}, this is {sys.version.split()[0]}",
            hint="`pip install plimsoll-llm[engines]` brings uv, which finds or fetches the Python that is needed",
        )
    yield (sys.executable, "-m", "venv", str(target))
    flags = ["--index-url", *sources] if alone else [word for one in sources for word in ("--extra-index-url", one)]
    more = ["--pre"] if build.prerelease else []
    yield (python, "-m", "pip", "install", "--no-input", "--progress-bar", "off", *flags, *more, *order.requirements)
    if build.without:
        yield (python, "-m", "pip", "uninstall", "-y", *build.without)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Runner:
    """Runs the installer's commands, their lines told as they come."""

    environment: Mapping[str, str]
    lock: int
    tell: Tell

    def __call__(self, argv: Sequence[str]) -> None:
        """LaunchError with what it said last if it fails."""
        said: list[str] = []
        with subprocess.Popen(
            argv, env=dict(self.environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", pass_fds=(self.lock,),
        ) as process:  # fmt: skip
            try:
                for line in process.stdout or ():
                    if line.strip():
                        said.append(line.rstrip())
                        self.tell(said[-1])
                code = process.wait()
            finally:
                if process.poll() is None:
                    process.terminate()
        if code:
            raise LaunchError(
                f"the installation failed: {Path(argv[0]).name} {argv[1]} ended with exit code {code}",
                hint="an index of your own: --index URL, or pip's and uv's own settings",
                source=" ".join(without_secrets(argv)),
                log=last_words(said),
            )


def _version(environment: Path, package: str) -> str:
    """The installed version by the name of its `.dist-info`, without the local part."""
    stem = re.sub(r"[-_.]+", "_", package)
    for entry in environment.glob(f"lib/python3*/site-packages/{stem}-*.dist-info"):
        return entry.name.removeprefix(f"{stem}-").removesuffix(".dist-info").partition("+")[0]
    raise LaunchError(f"{package} is not in {environment}", hint="remove it and install it again")


def _sweep(directory: Path) -> None:
    """Remove what killed installs left."""
    whole = installed_environments(directory)
    for path in directory.iterdir():
        if path.is_dir() and path not in whole:
            shutil.rmtree(path, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    """All of it or nothing, also when the power fails."""
    new = path.with_suffix(".new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


@contextmanager
def _locked(directory: Path, tell: Tell) -> Iterator[int]:
    """Hold the directory's lock; yields its descriptor."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as problem:
        raise LaunchError(
            f"cannot write to {directory}: {problem.strerror}", hint="choose another place with PLIMSOLL_HOME"
        ) from problem
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("waiting for another installation to end")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
