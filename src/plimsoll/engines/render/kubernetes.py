"""Kubernetes manifests: a Deployment and a Service for a replica on one node, a LeaderWorkerSet over several.

Kubernetes puts variables in for `$(NAME)` in commands and environment; a dollar that means itself is doubled. Workers
of a LeaderWorkerSet share one template: their rank and their own address are variables there.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from plimsoll.engines.protocol import Process
from plimsoll.engines.render.container import HUB_CACHE, Container, container_of, dump_yaml
from plimsoll.engines.render.placed import Placed, RenderedFile, plain_name
from plimsoll.facts.hardware import Vendor
from plimsoll.plan.types import Replica

_RESOURCES: dict[Vendor, str] = {
    "nvidia": "nvidia.com/gpu",
    "amd": "amd.com/gpu",
    "ascend": "huawei.com/Ascend910",
    "intel": "gpu.intel.com/i915",
}
_OWN_ADDRESS = frozenset({"VLLM_HOST_IP", "SGLANG_HOST_IP", "HCCL_IF_IP"})
_PROBE_S = 10


def manifests(placed: Sequence[Placed], *, image: str | None = None) -> tuple[RenderedFile, ...]:
    """One file for each replica, all its objects in it."""
    files = []
    for name, group in groupby(placed, key=lambda one: one.replica.name):
        members = list(group)
        text = dump_yaml(*_objects(plain_name(name), members, image=image))
        files.append(RenderedFile(path=f"{plain_name(name)}.yaml", text=text))
    return tuple(files)


def group_addresses(replica: Replica) -> tuple[str, ...]:
    """The names that a LeaderWorkerSet of one group gives its pods, the leader's first."""
    name = plain_name(replica.name)
    return (f"{name}-0.{name}", *(f"{name}-0-{node}.{name}" for node in range(1, replica.candidate.nodes)))


def escape(text: str) -> str:
    """A dollar that means itself."""
    return text.replace("$", "$$")


def _objects(name: str, members: list[Placed], *, image: str | None) -> list[dict[str, Any]]:
    replica = members[0].replica
    labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "plimsoll"}
    files = {path: text for one in members for path, text in one.process.files.items()}
    objects: list[dict[str, Any]] = []
    if files:
        data = {_key(path): text for path, text in files.items()}
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": _meta(name, labels), "data": data})
    nodes = [[one for one in members if one.process.node == node] for node in (0, 1)]
    head = {"metadata": {"labels": labels}, "spec": _pod(name, nodes[0], image=image)}
    selector = {"app.kubernetes.io/name": name}
    if replica.candidate.nodes == 1:
        spec: dict[str, Any] = {
            "replicas": 1,
            # Two pods would want the same devices.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": selector},
            "template": head,
        }
        objects.append({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": _meta(name, labels), "spec": spec})
    else:
        role = {"plimsoll/role": "leader"}
        head["metadata"] = {"labels": {**labels, **role}}
        selector = {**selector, **role}
        workers = [_as_any_worker(one) for one in nodes[1]]
        template = {
            "size": replica.candidate.nodes,
            "restartPolicy": "RecreateGroupOnPodRestart",
            "leaderTemplate": head,
            "workerTemplate": {"metadata": {"labels": labels}, "spec": _pod(name, workers, image=image)},
        }
        objects.append(
            {
                "apiVersion": "leaderworkerset.x-k8s.io/v1",
                "kind": "LeaderWorkerSet",
                "metadata": _meta(name, labels),
                "spec": {"replicas": 1, "leaderWorkerTemplate": template},
            }
        )
    port = _serving(members).port
    objects.append(
        {
            "apiVersion": "v1",
            "kind": "Service",
            # A LeaderWorkerSet makes a headless service of its own name.
            "metadata": _meta(f"{name}-api" if replica.candidate.nodes > 1 else name, labels),
            "spec": {"selector": selector, "ports": [{"name": "http", "port": port, "targetPort": port}]},
        }
    )
    return objects


def _serving(members: Sequence[Placed]) -> Process:
    """The process to talk to: the one that is probed with a request, else the last that listens."""
    listening = [one.process for one in members if one.process.port]
    probed = [process for process in listening if process.ready.probe_path]
    return (probed or listening)[-1]


def _as_any_worker(one: Placed) -> Placed:
    """Node 1's process for whichever worker: its rank and its own address left to the pod."""
    own = group_addresses(one.replica)[1]
    words = list(one.process.argv)
    for place, word in enumerate(words):
        if words[place - 1] == "--node-rank":
            words[place] = "\0LWS_WORKER_INDEX\0"
        elif word == own:
            words[place] = "\0POD_IP\0"
    return replace(one, process=replace(one.process, argv=tuple(words)))


def _text(text: str) -> str:
    """Escaped, but for the variables that were put in above; no argument can hold the mark they were put in with."""
    parts = escape(text).split("\0")
    return "".join(f"$({part})" if place % 2 else part for place, part in enumerate(parts))


def _meta(name: str, labels: dict[str, str]) -> dict[str, Any]:
    return {"name": name, "labels": labels}


def _key(path: str) -> str:
    """A ConfigMap's key for a path."""
    return path.strip("/.").replace("/", "_")


def _pod(name: str, members: Sequence[Placed], *, image: str | None) -> dict[str, Any]:
    containers = [(one, container_of(one, image=image)) for one in members]
    mounted = tuple(dict.fromkeys(path for _, container in containers for path in container.mounts))
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    volumes += [{"name": f"host-{place}", "hostPath": {"path": path}} for place, path in enumerate(mounted)]
    if any(container.hub for _, container in containers):
        volumes.append({"name": "hub", "emptyDir": {}})
    if any(one.process.files for one in members):
        volumes.append({"name": "files", "configMap": {"name": name, "defaultMode": 0o640}})
    pod: dict[str, Any] = {"containers": [_container(one, container, mounted) for one, container in containers]}
    setup = [
        _setup(one, container, mounted, argv, place)
        for one, container in containers
        for place, argv in enumerate(one.process.setup)
    ]
    return {**({"initContainers": setup} if setup else {}), **pod, "volumes": volumes}


def _base(one: Placed, container: Container, mounted: Sequence[str], argv: Sequence[str]) -> dict[str, Any]:
    mounts: list[dict[str, Any]] = [{"name": "shm", "mountPath": "/dev/shm"}]  # noqa: S108 - the engines' own place
    mounts += [
        {"name": f"host-{mounted.index(path)}", "mountPath": path, "readOnly": True} for path in container.mounts
    ]
    if container.hub:
        mounts.append({"name": "hub", "mountPath": HUB_CACHE})
    mounts += [{"name": "files", "mountPath": path, "subPath": _key(path)} for path in one.process.files]
    env: list[dict[str, Any]] = []
    own_ip = {"valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    if "\0POD_IP\0" in argv:
        env.append({"name": "POD_IP", **own_ip})
    env += [
        {"name": key, **own_ip} if key in _OWN_ADDRESS else {"name": key, "value": _text(value)}
        for key, value in container.env.items()
    ]
    base: dict[str, Any] = {
        "image": container.image,
        "command": [_text(argv[0])],
        "args": [_text(word) for word in argv[1:]],
    }
    return base | ({"env": env} if env else {}) | {"volumeMounts": mounts}


def _setup(
    one: Placed, container: Container, mounted: Sequence[str], argv: Sequence[str], place: int
) -> dict[str, Any]:
    return {"name": plain_name(f"{one.process.name}-setup-{place}"), **_base(one, container, mounted, argv)}


def _container(one: Placed, container: Container, mounted: Sequence[str]) -> dict[str, Any]:
    process = one.process
    made: dict[str, Any] = {
        "name": plain_name(process.name),
        **_base(one, container, mounted, process.argv),
    }
    if process.cwd:
        made["workingDir"] = process.cwd
    if process.port:
        made["ports"] = [{"containerPort": process.port}]
    if container.devices and container.vendor in _RESOURCES:
        made["resources"] = {"limits": {_RESOURCES[container.vendor]: str(len(container.devices))}}
    if process.ready.health_path and process.port:
        probe = {"httpGet": {"path": process.ready.health_path, "port": process.ready.health_port or process.port}}
        tries = max(1, round(process.ready.timeout_s / _PROBE_S))
        made["startupProbe"] = {**probe, "periodSeconds": _PROBE_S, "failureThreshold": tries}
        made["readinessProbe"] = {**probe, "periodSeconds": _PROBE_S, "timeoutSeconds": 5}
        made["livenessProbe"] = {**probe, "periodSeconds": _PROBE_S, "timeoutSeconds": 10, "failureThreshold": 6}
    if process.once_up:
        # In one shell: a hook has a single command, and the server is not up when it begins.
        steps = " && ".join(f"until {shlex.join(argv)}; do sleep 1; done" for argv in process.once_up)
        made["lifecycle"] = {"postStart": {"exec": {"command": ["/bin/sh", "-c", steps]}}}
    return made
