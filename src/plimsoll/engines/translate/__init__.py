"""Old launches brought up to date: a command line, script, `docker run`, compose file, unit, Modelfile or config.json.

`translate` gives deployments for today's engines and a note for each flag that was renamed, removed, made default or
void since, or that plimsoll takes care of itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace

from pydantic import ValidationError

from plimsoll.engines.translate.documents import (
    Container,
    compose_services,
    docker_run,
    mindie_draft,
    modelfile_draft,
    unit_command,
)
from plimsoll.engines.translate.draft import Draft
from plimsoll.engines.translate.notes import Fate, Note, Translation
from plimsoll.engines.translate.programs import draft_of, helper_of, recognise
from plimsoll.engines.translate.words import Command, commands
from plimsoll.errors import SpecError
from plimsoll.spec.deployment import Deployment, GatewaySpec

__all__ = ["Fate", "Note", "Translation", "translate"]

_OPEN = ("0.0.0.0", "::")  # noqa: S104


def translate(text: str, *, model: str | None = None) -> Translation:
    """The deployments that `text` starts.

    `model` is put in where the text names none (an Ollama service). SpecError where no engine is recognised.
    """
    drafts, notes = _drafts(text)
    if not drafts and not notes:
        raise SpecError(
            "no engine is recognised in it",
            hint="Known: vllm, sglang, llama-server, ollama, fastchat, transformers serve, MindIE's config.json.",
        )
    deployments: list[Deployment] = []
    for draft in drafts:
        if model is not None and not draft.spec.get("model"):
            draft.spec["model"] = model
        notes += draft.notes
        if not draft.spec.get("model"):
            notes.append(Note(what=draft.engine, fate="refused", why="it serves what was pulled, and names no model"))
            continue
        deployments.append(_renamed(draft.deployment(), {made.name for made in deployments}))
    gateway = _gateway(drafts, notes)
    nodes = max((draft.nodes for draft in drafts), default=1)
    if nodes > 1:
        notes.append(Note(what=f"{nodes} machines", fate="moved", why="name them under `hosts` in the spec"))
    return Translation(deployments=tuple(deployments), gateway=gateway, notes=tuple(notes), nodes=nodes)


def _drafts(text: str) -> tuple[list[Draft], list[Note]]:
    stripped = text.strip()
    if stripped.startswith("{"):
        return [mindie_draft(_object(stripped))], []
    if re.search(r"^services:", text, re.MULTILINE):
        return _from_containers(compose_services(text))
    if re.search(r"^ExecStart\s*=", text, re.MULTILINE):
        return _from_commands([unit_command(text)])
    if re.search(r"^\s*FROM\s+\S+", text, re.MULTILINE):
        return [modelfile_draft(text)], []
    return _from_commands(commands(text))


def _object(text: str) -> dict[str, object]:
    try:
        return dict(json.loads(text))
    except ValueError as error:
        raise SpecError(
            f"not JSON: {error}", hint="A text that begins with { is read as MindIE's config.json."
        ) from None


def _from_commands(found: Iterable[Command]) -> tuple[list[Draft], list[Note]]:
    drafts: list[Draft] = []
    notes: list[Note] = []
    for command in found:
        container = docker_run(command)
        if container is not None:
            more, said = _from_containers([container])
            drafts += more
            notes += said
            continue
        known = recognise(command)
        if known is not None:
            drafts.append(draft_of(*known, command.env))
            continue
        instead = helper_of(command)
        if instead is not None:
            notes.append(Note(what=" ".join(command.words[:4]), fate="moved", why=instead))
    return drafts, notes


def _from_containers(containers: Iterable[Container]) -> tuple[list[Draft], list[Note]]:
    drafts: list[Draft] = []
    notes: list[Note] = []
    for container in containers:
        inner = _unwrapped(Command(words=container.words(), env=container.env))
        known = recognise(inner)
        if known is None:
            continue
        draft = draft_of(*known, inner.env)
        if draft.spec.get("model"):
            draft.spec["model"] = container.outside(str(draft.spec["model"]))
        if draft.port is not None or container.ports:
            inside = draft.port if draft.port is not None else next(iter(container.ports))
            draft.port = container.ports.get(inside, inside)
        if container.devices:
            draft.spec["devices"] = tuple(int(part) for part in container.devices.split(",") if part.isdigit()) or None
        if not container.shared_memory and draft.parallel.get("tensor", 1) > 1:
            why = "64 MB of /dev/shm is too little for several ranks: --ipc=host or --shm-size 16g; plimsoll sees to it"
            notes.append(Note(what="docker run", fate="changed", why=why))
        drafts.append(draft)
    return drafts, notes


def _unwrapped(command: Command) -> Command:
    """The command inside `bash -c "..."`."""
    if command.words[:1] and command.words[0].rpartition("/")[2] in ("bash", "sh") and len(command.words) > 2:
        inner = next(iter(commands(command.words[-1])), command)
        return replace(inner, env={**command.env, **inner.env})
    return command


def _renamed(deployment: Deployment, taken: set[str]) -> Deployment:
    """The deployment under a name of its own."""
    name, number = deployment.name, 2
    while name in taken:
        name, number = f"{deployment.name}-{number}", number + 1
    return deployment if name == deployment.name else deployment.model_copy(update={"name": name})


def _gateway(drafts: list[Draft], notes: list[Note]) -> GatewaySpec:
    """One address for what had one each: the first one's."""
    ports = [draft.port for draft in drafts if draft.port]
    keys = tuple(dict.fromkeys(key for draft in drafts for key in draft.keys))
    host = next((draft.host for draft in drafts if draft.host), None)
    if len(set(ports)) > 1:
        rest = ", ".join(str(port) for port in dict.fromkeys(ports[1:]))
        notes.append(Note(what=f"port {rest}", fate="moved", why=f"one address for all models: port {ports[0]}"))
    if host in _OPEN and not keys:
        notes.append(Note(what=f"host {host}", fate="changed", why="loopback only until gateway.api_keys are given"))
        host = None
    found: dict[str, object] = {"api_keys": keys}
    if host:
        found["host"] = host
    if ports:
        found["port"] = ports[0]
    try:
        return GatewaySpec.model_validate(found)
    except ValidationError as error:
        where = f"{host or ''}:{ports[0] if ports else ''}"
        raise SpecError(f"the address {where} cannot be used", hint="Ports end at 65535.") from error
