"""`docker run` and compose files. Containers share the host's network: the same ports and addresses as without them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from plimsoll.engines.render.container import HUB_CACHE, Container, container_of, dump_yaml
from plimsoll.engines.render.placed import (
    Placed,
    RenderedFile,
    by_node,
    health_url,
    node_suffix,
    wait_command,
)


def docker_scripts(placed: Sequence[Placed], *, image: str | None = None) -> tuple[RenderedFile, ...]:
    """`docker.sh`, or one for each node: files, setup and `docker run` of each process."""
    files = []
    for node, group in by_node(placed):
        lines = ["#!/usr/bin/env bash", "set -euo pipefail"]
        for one in group:
            lines += ["", f"# {one.replica.name}: {one.process.name}", *_docker(one, container_of(one, image=image))]
        text = "\n".join(lines) + "\n"
        files.append(RenderedFile(path=f"docker{node_suffix(placed, node)}.sh", text=text, executable=True))
    return tuple(files)


def _docker(one: Placed, container: Container) -> list[str]:
    process = one.process
    lines = [wait_command(url) for other in one.before() if (url := health_url(other))]
    for path, text in process.files.items():
        there = f"files/{path.lstrip('./')}"
        lines += [
            f"mkdir -p {shlex.quote(there.rpartition('/')[0])}",
            f"printf %s {shlex.quote(text)} > {shlex.quote(there)}",
            f"chmod 640 {shlex.quote(there)}",
        ]
    shared = _run_words(one, container)
    for argv in process.setup:
        lines.append(_docker_run(["--rm", *shared], container, argv))
    lines.append(
        _docker_run(
            ["--detach", "--name", one.name, "--restart", "unless-stopped", *shared], container, process.argv, wrap=True
        )
    )
    if process.once_up:
        lines += [wait_command(url)] if (url := health_url(process)) else []
        lines += [f"docker exec {one.name} {shlex.join(argv)}" for argv in process.once_up]
    return lines


def _run_words(one: Placed, container: Container) -> list[str]:
    """Options of `docker run`; a word that begins with $ is left to the shell."""
    words = ["--network", "host", "--ipc", "host"]
    if container.vendor == "nvidia" and container.devices:
        words += ["--gpus", f'"device={",".join(str(index) for index in container.devices)}"']
    for path in container.device_files:
        words += ["--device", path]
    if container.vendor == "amd":
        words += ["--group-add", "video", "--security-opt", "seccomp=unconfined"]
    for name, value in container.env.items():
        words += ["--env", f"{name}={value}"]
    if one.process.cwd:
        words += ["--workdir", one.process.cwd]
    for path in container.mounts:
        words += ["--volume", f"{path}:{path}:ro"]
    for path in one.process.files:
        words += ["--volume", f"$PWD/files/{path.lstrip('./')}:{path}:ro"]
    if container.hub:
        words += ["--volume", f"$HOME/.cache/huggingface:{HUB_CACHE}"]
    return words


def _docker_run(options: Sequence[str], container: Container, argv: Sequence[str], *, wrap: bool = False) -> str:
    parts = ["docker run"]
    for word in options:
        quoted = f'"{word[:5]}"{shlex.quote(word[5:])}' if word.startswith(("$PWD/", "$HOME")) else shlex.quote(word)
        if word.startswith("--"):
            parts.append(quoted)
        else:
            parts[-1] += f" {quoted}"
    parts.append(f"--entrypoint {shlex.quote(argv[0])} {shlex.quote(container.image)}")
    for word in argv[1:]:
        if word.startswith("--"):
            parts.append(shlex.quote(word))
        else:
            parts[-1] += f" {shlex.quote(word)}"
    return (" \\\n  " if wrap else " ").join(parts)


def compose_files(placed: Sequence[Placed], *, image: str | None = None) -> tuple[RenderedFile, ...]:
    """`compose.yaml`, or one for each node, and the files that are mounted."""
    rendered = []
    for node, group in by_node(placed):
        services: dict[str, Any] = {}
        for one in group:
            container = container_of(one, image=image)
            services |= _services(one, container)
            rendered += [
                RenderedFile(path=f"files/{path.lstrip('./')}", text=text) for path, text in one.process.files.items()
            ]
        name = f"compose{node_suffix(placed, node)}.yaml"
        text = dump_yaml({"services": services})
        rendered.append(RenderedFile(path=name, text=text))
    return tuple(rendered)


def escape_compose(text: str) -> str:
    """Compose puts variables in for `$NAME`: a dollar that means itself is doubled."""
    return text.replace("$", "$$")


def _services(one: Placed, container: Container) -> dict[str, Any]:
    """The process, and before and after it a short-lived service for each command."""
    process = one.process
    shared = _service(one, container)
    services: dict[str, Any] = {}
    waits: dict[str, Any] = {one.sibling_name(other): {"condition": "service_started"} for other in one.before()}
    for place, argv in enumerate(process.setup):
        name = f"{one.name}-setup-{place}"
        services[name] = shared | _command(argv) | {"restart": "no"}
        waits[name] = {"condition": "service_completed_successfully"}
    services[one.name] = (
        shared | _command(process.argv) | {"restart": "unless-stopped"} | ({"depends_on": waits} if waits else {})
    )
    for place, argv in enumerate(process.once_up):
        # It fails until the server answers, and each waits for the one before.
        before = f"{one.name}-once-{place - 1}" if place else one.name
        condition = "service_completed_successfully" if place else "service_started"
        services[f"{one.name}-once-{place}"] = (
            shared | _command(argv) | {"restart": "on-failure", "depends_on": {before: {"condition": condition}}}
        )
    return services


def _command(argv: Sequence[str]) -> dict[str, Any]:
    return {"entrypoint": [escape_compose(argv[0])], "command": [escape_compose(word) for word in argv[1:]]}


def _service(one: Placed, container: Container) -> dict[str, Any]:
    service: dict[str, Any] = {"image": container.image, "network_mode": "host", "ipc": "host"}
    if container.env:
        service["environment"] = {name: escape_compose(value) for name, value in container.env.items()}
    if one.process.cwd:
        service["working_dir"] = escape_compose(one.process.cwd)
    volumes = [_bind(escape_compose(path), escape_compose(path)) for path in container.mounts]
    volumes += [
        _bind(f"./files/{escape_compose(path.lstrip('./'))}", escape_compose(path)) for path in one.process.files
    ]
    if container.hub:
        volumes.append(_bind("${HOME}/.cache/huggingface", HUB_CACHE, read_only=False))
    if volumes:
        service["volumes"] = volumes
    if container.device_files:
        service["devices"] = [f"{path}:{path}" for path in container.device_files]
    if container.vendor == "amd":
        service |= {"group_add": ["video"], "security_opt": ["seccomp=unconfined"]}
    if container.vendor == "nvidia" and container.devices:
        device = {
            "driver": "nvidia",
            "device_ids": [str(index) for index in container.devices],
            "capabilities": ["gpu"],
        }
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return service


def _bind(source: str, target: str, *, read_only: bool = True) -> dict[str, Any]:
    return {"type": "bind", "source": source, "target": target, "read_only": read_only}
