"""What an engine's file must offer: facts, the processes of a replica, and reading what the engine reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from plimsoll.facts.engine import EngineFacts
from plimsoll.plan.types import Replica


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Ports on the host that were free when asked for: `serve` for the API, `extra` for whatever else it needs."""

    host: str = "127.0.0.1"
    serve: int
    extra: tuple[int, ...] = ()
    addresses: tuple[str, ...] = ()
    """Of the replica's nodes, the head's first; empty where all is on this host."""
    interface: str | None = None
    """The network interface between the nodes, such as bond0."""
    directory: str = ""
    """Where files of the replica's processes go; "" is the directory that they start in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """When a process counts as up: its health route answers 200, then a request makes a real token."""

    health_path: str | None = None
    """None: it is up as soon as it runs (a helper process)."""
    probe_path: str | None = None
    probe_body: Mapping[str, object] = field(default_factory=dict)
    timeout_s: float = 600.0
    """Without a sign of life in the log or the port."""
    health_port: int | None = None
    """Where that is another port than the one that serves (MindIE's management port)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One operating-system process, exactly as it will be started. No shell is involved."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """On top of the environment it inherits."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Path to text, written before it starts, for its owner and group alone to read (MindIE refuses any other)."""
    cwd: str | None = None
    setup: tuple[tuple[str, ...], ...] = ()
    """Commands to run to their end before it starts."""
    once_up: tuple[tuple[str, ...], ...] = ()
    """Commands to run to their end, in its environment, once its health route answers and before the probe
    (`ollama create` needs its server)."""
    node: int = 0
    after: tuple[str, ...] = ()
    """Names of processes that must be up before it starts."""
    port: int | None = None
    ready: Ready = field(default_factory=Ready)
    served_name: str | None = None
    """The name that requests to it must carry, where it is not the deployment's."""
    image: str = ""
    """A published container image that has the program; "" where there is none."""


Quantity = Literal[
    "weights_bytes", "kv_cache_bytes", "kv_tokens", "kv_blocks", "compute_bytes", "output_bytes", "graphs_bytes",
    "activations_bytes",
    "context_tokens", "sequences", "total_bytes", "load_s", "max_concurrency", "non_torch_bytes",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What the engine itself reported of one run; a quantity that it did not report is absent."""

    quantities: Mapping[Quantity, float] = field(default_factory=dict)
    """Per device where the engine reports per device (the largest is kept)."""
    version: str | None = None
    lines: tuple[str, ...] = ()
    """The log lines that they were read from."""


class Engine(Protocol):
    """An inference engine. All methods are pure: tests compare their results with golden files."""

    @property
    def facts(self) -> EngineFacts:
        """What the engine can do, for the version that is planned for."""
        ...

    def processes(self, replica: Replica, ports: Ports) -> tuple[Process, ...]:
        """The exact processes that serve `replica`; the first whose `port` is `ports.serve` is the one to talk to."""
        ...

    def read_log(self, lines: Iterable[str]) -> Observed:
        """What the engine's own log says of its memory and version."""
        ...

    def metrics(self, exposition: str) -> Mapping[str, float]:
        """The engine's Prometheus text in neutral names: running, waiting, kv_usage, prompt_tokens, output_tokens."""
        ...
