"""Launches that are not commands: docker run, compose files, systemd units, Modelfiles, MindIE's config.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from plimsoll.engines.translate.draft import Draft, Value
from plimsoll.engines.translate.words import Command, split_words
from plimsoll.errors import SpecError

_IMAGES = {
    "vllm/vllm-openai": ("vllm", "serve"),
    "vllm-openai": ("vllm", "serve"),
    "lmsysorg/sglang": (),
    "llama.cpp": ("llama-server",),
    "llamacpp": ("llama-server",),
    "ollama/ollama": ("ollama", "serve"),
}
"""What an image runs when only flags are given: part of the image's name, the command."""

_DOCKER_SWITCHES = {
    "-d", "-it", "-i", "-t", "-dt", "-dit", "-itd", "--rm", "--privileged", "--init", "--detach", "--interactive",
    "--tty", "--read-only", "--no-healthcheck", "-P",
}  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Container:
    """What a container's launch says besides its command."""

    image: str = ""
    command: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    ports: dict[int, int] = field(default_factory=dict)
    """Inside to outside."""
    mounts: dict[str, str] = field(default_factory=dict)
    """Inside to outside."""
    devices: str = ""
    shared_memory: bool = False
    """Whether --shm-size, or --ipc=host, is given."""

    def words(self) -> tuple[str, ...]:
        """The command that runs inside, with the image's own program where only flags are given."""
        if self.command and not self.command[0].startswith("-"):
            return self.command
        program = next((words for part, words in _IMAGES.items() if part in self.image), ())
        return (*program, *self.command)

    def outside(self, path: str) -> str:
        """A path inside as it is called outside."""
        for inside, outside in self.mounts.items():
            if path == inside or path.startswith(f"{inside.rstrip('/')}/"):
                return outside.rstrip("/") + path[len(inside.rstrip("/")) :]
        return path


def docker_run(command: Command) -> Container | None:
    """What a `docker run` says; None if the command is none."""
    words = list(command.words)
    if len(words) < 3 or words[0].rpartition("/")[2] not in ("docker", "podman", "nerdctl"):
        return None
    verb = next((index for index, word in enumerate(words[1:3], 1) if word in ("run", "create")), None)
    if verb is None:
        return None
    found = Container(env=dict(command.env))
    rest = words[verb + 1 :]
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            found.image, found.command = word, tuple(rest)
            return found
        name, equals, value = word.partition("=")
        if not equals and name not in _DOCKER_SWITCHES and rest:
            value = rest.pop(0)
        _docker_option(found, name, value)
    return found


def _docker_option(found: Container, name: str, value: str) -> None:
    match name:
        case "-e" | "--env":
            key, _, text = value.partition("=")
            found.env[key] = text
        case "-p" | "--publish":
            _publish(found, value)
        case "-v" | "--volume":
            outside, _, inside = value.partition(":")
            found.mounts[inside.partition(":")[0]] = outside
        case "--gpus":
            found.devices = "" if value == "all" else value.strip("\"'").removeprefix("device=")
        case "--shm-size":
            found.shared_memory = True
        case "--ipc":
            found.shared_memory = found.shared_memory or value == "host"
        case "--entrypoint":
            found.command = tuple(split_words(value))


def _publish(found: Container, value: str) -> None:
    parts = value.partition("/")[0].split(":")
    if parts[-1].isdigit():
        outside = parts[-2] if len(parts) > 1 else parts[-1]
        found.ports[int(parts[-1])] = int(outside) if outside.isdigit() else int(parts[-1])


def compose_services(text: str) -> Iterator[Container]:
    """The services of a compose file; SpecError if it is none."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"not YAML: {error}", hint="A compose file is expected where `services:` stands.") from error
    services = document.get("services") if isinstance(document, dict) else None
    if not isinstance(services, dict):
        raise SpecError("the file has no services", hint="A compose file has `services:` at the top.")
    for service in services.values():
        if not isinstance(service, dict):
            continue
        found = Container(image=str(service.get("image", "")))
        found.command = (*_word_list(service.get("entrypoint")), *_word_list(service.get("command")))
        found.env = _environment(service.get("environment"))
        for port in service.get("ports") or ():
            published = f"{port['published']}:{port['target']}" if isinstance(port, dict) else str(port)
            _publish(found, published)
        for volume in service.get("volumes") or ():
            if isinstance(volume, str):
                outside, _, inside = volume.partition(":")
                found.mounts[inside.partition(":")[0]] = outside
            elif volume.get("type") == "bind":
                found.mounts[str(volume["target"])] = str(volume["source"])
        found.shared_memory = "shm_size" in service or service.get("ipc") == "host"
        found.devices = _reserved(service)
        yield found


def _word_list(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(split_words(value)) if isinstance(value, str) else tuple(str(word) for word in value)


def _environment(value: Any) -> dict[str, str]:
    if isinstance(value, dict):
        return {str(key): str(text) for key, text in value.items()}
    pairs = (str(line).partition("=") for line in value or ())
    return {key: text for key, _, text in pairs}


def _reserved(service: Mapping[str, Any]) -> str:
    resources = ((service.get("deploy") or {}).get("resources") or {}).get("reservations") or {}
    ids = [str(number) for device in resources.get("devices") or () for number in device.get("device_ids") or ()]
    return ",".join(ids)


def unit_command(text: str) -> Command:
    """ExecStart of a systemd unit with its Environment; SpecError if it has none."""
    joined = re.sub(r"\\\r?\n", " ", text)
    env: dict[str, str] = {}
    start = ""
    for line in joined.splitlines():
        key, equals, value = line.strip().partition("=")
        if not equals or key.startswith("#"):
            continue
        if key == "ExecStart":
            start = value.lstrip("-@+!:")
        elif key == "Environment":
            env |= dict(word.split("=", 1) for word in split_words(value, comments=True) if "=" in word)
    if not start:
        raise SpecError("the unit has no ExecStart", hint="Only service units start something.")
    return Command(words=tuple(split_words(start)), env=env)


def modelfile_draft(text: str) -> Draft:
    """Ollama's Modelfile."""
    draft = Draft(engine="ollama", flags={}, env={})
    stops = 0
    for line in _instructions(text):
        word, _, rest = line.partition(" ")
        value = rest.strip().strip('"')
        match word.upper():
            case "FROM":
                draft.spec["model"] = value
            case "PARAMETER":
                name, _, setting = value.partition(" ")
                stops += name == "stop"
                _parameter(draft, name, setting.strip().strip('"'))
            case "ADAPTER":
                draft.note("ADAPTER", "refused", "merge the adapter, or serve it with vllm --lora-modules")
            case "SYSTEM" | "MESSAGE":
                draft.note(word, "moved", "clients send it with each request")
            case "TEMPLATE":
                draft.note("TEMPLATE", "default", "the model's own template is used")
    if stops:
        draft.note("PARAMETER stop", "moved", "clients send it with each request; the template's own are kept")
    return draft


def _instructions(text: str) -> Iterator[str]:
    without = re.sub(r'"""(.*?)"""', lambda match: match[1].replace("\n", " "), text, flags=re.DOTALL)
    yield from (line.strip() for line in without.splitlines() if line.strip() and not line.lstrip().startswith("#"))


def _parameter(draft: Draft, name: str, value: str) -> None:
    if name == "num_ctx" and value.isdigit():
        draft.spec["context"] = int(value)
    elif name in ("num_gpu", "main_gpu", "num_thread", "num_batch", "use_mmap", "draft_num_predict"):
        draft.extra.append(f"{name}={value}")
    elif (
        name in ("low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "penalize_newline")
        or "mirostat" in name
    ):
        draft.note(f"PARAMETER {name}", "void", "deprecated: it is ignored")
    elif name != "stop":
        draft.note(f"PARAMETER {name}", "moved", "a setting of sampling, which clients send with each request")


_MINDIE_KEYS = {
    "maxSeqLen", "maxBatchSize", "modelName", "modelWeightPath", "worldSize", "npuDeviceIds", "port", "ipAddress",
    "trustRemoteCode",
}  # fmt: skip
_MINDIE_OLD = {"OtherParam", "ModelDeployParam", "WorkFlowParam"}
_MINDIE_VOID = {"managementIpAddress", "engineName", "Version", "logLevel", "logPath", "multiNodesInferEnabled"}
_TLS = re.compile(r"(tls|kmc|managementTls|interNodeTls|interNodeKmc)[A-Z]")
"""Certificates and key stores, which matter where TLS is on only."""


def mindie_draft(config: Mapping[str, Any]) -> Draft:
    """MindIE's config.json, of today's shape or that of its first releases."""
    draft = Draft(engine="mindie", flags={}, env={})
    old = _MINDIE_OLD & set(config)
    if old:
        draft.note(", ".join(sorted(old)), "renamed", "the shape of MindIE 1.0; today ServerConfig and BackendConfig")
    flat = dict(_leaves(config))
    draft.spec["model"] = flat.get("modelWeightPath")
    draft.spec["name"] = flat.get("modelName")
    draft.spec["context"] = _whole(flat.get("maxSeqLen"))
    draft.spec["concurrency"] = _whole(flat.get("maxBatchSize"))
    world = _whole(flat.get("worldSize"))
    if world and world > 1:
        draft.parallel["tensor"] = world
    ids = re.findall(r"\d+", json.dumps(flat.get("npuDeviceIds", [])))
    if ids:
        draft.spec["devices"] = tuple(int(part) for part in ids)
    draft.host, draft.port = str(flat["ipAddress"]) if "ipAddress" in flat else None, _whole(flat.get("port"))
    if flat.get("trustRemoteCode") is True:
        draft.spec["trust_remote_code"] = True
    if flat.get("templateName") not in (None, "Standard_LLM"):
        draft.note(f"templateName {flat.pop('templateName')}", "renamed", "Standard_LLM is the only one today")
    between_nodes = flat.get("multiNodesInferEnabled") is True
    if not between_nodes:
        flat = {key: value for key, value in flat.items() if not key.startswith("interNode")}
    if flat.get("httpsEnabled") is not True and not between_nodes:
        flat = {key: value for key, value in flat.items() if not _TLS.match(key)}
    for key, value in flat.items():
        if key not in _MINDIE_KEYS | _MINDIE_VOID and isinstance(value, (str, int, float, bool)):
            draft.extra.append(f"{key}={_text(value)}")
    return draft


def _leaves(config: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            yield from _leaves(value[0])
        else:
            yield key, value


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
