"""A process with the replica that it belongs to, and what every form asks of it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from plimsoll.engines.protocol import Process
from plimsoll.plan.types import Replica


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """One process of one replica."""

    replica: Replica
    process: Process
    siblings: tuple[Process, ...]
    """All processes of the replica, itself among them, in the order in which they start."""

    @property
    def name(self) -> str:
        """Unique in the plan and usable anywhere: lower case letters, digits and hyphens."""
        words = [self.replica.name] if len(self.siblings) == 1 else [self.replica.name, self.process.name]
        return plain_name("-".join(words))

    @property
    def several_nodes(self) -> bool:
        """Whether the replica's processes lie on more than one node."""
        return self.replica.candidate.nodes > 1

    def before(self) -> tuple[Process, ...]:
        """The processes on the same node that must be up before it starts."""
        return tuple(one for one in self.siblings if one.name in self.process.after and one.node == self.process.node)

    def sibling_name(self, process: Process) -> str:
        """The name of another process of the replica."""
        return Placed(replica=self.replica, process=process, siblings=self.siblings).name


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedFile:
    """One file to be written: its path below the output directory."""

    path: str
    text: str
    executable: bool = False


def plain_name(text: str) -> str:
    """`text` as a DNS label: what compose, units, tmux and Kubernetes all take."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:52].strip("-") or "served"


def by_node(placed: Iterable[Placed]) -> list[tuple[int, list[Placed]]]:
    """The processes of each node, in the order in which they start."""
    ordered = sorted(placed, key=lambda one: one.process.node)
    return [(node, list(group)) for node, group in groupby(ordered, key=lambda one: one.process.node)]


def node_suffix(placed: Sequence[Placed], node: int) -> str:
    """`-node1` where there are several nodes, else nothing."""
    return f"-node{node}" if any(one.process.node for one in placed) else ""


def health_url(process: Process) -> str | None:
    """Where a process on this host says that it is up; None where it has no such route."""
    port = process.ready.health_port or process.port
    if process.ready.health_path is None or port is None:
        return None
    return f"http://127.0.0.1:{port}{process.ready.health_path}"


def wait_command(url: str) -> str:
    """A line of shell that waits for a health route."""
    return f"until curl --fail --silent --output /dev/null {shlex.quote(url)}; do sleep 1; done"
