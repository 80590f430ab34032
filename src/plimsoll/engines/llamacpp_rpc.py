"""llama.cpp over several hosts: one `ggml-rpc-server` for every card of the other nodes, one `llama-server` in front.

An rpc server hands out all cards that it sees, so each sees one: a card can then be named, left out and restarted by
itself. ggml's scheduler takes 16 backends in all, the CPU being one (`GGML_SCHED_MAX_BACKENDS`): 15 cards at most.
"""

from __future__ import annotations

from plimsoll.engines.devices import VARIABLES, node_address, node_devices
from plimsoll.engines.protocol import Ports, Process
from plimsoll.errors import PlanError
from plimsoll.plan.types import Candidate

COMMAND = "ggml-rpc-server"
FIRST_PORT = 50052
MOST_CARDS = 15
_SOURCE = "llama.cpp b11434: ggml/src/ggml-backend.cpp:904"


def rpc_servers(candidate: Candidate, ports: Ports, *, command: str = COMMAND) -> tuple[Process, ...]:
    """The servers of nodes 1 and up, to be started before `llama-server`; PlanError for more cards than it can drive.

    They keep the tensors that they are sent on disk (`--cache`), so that the next start does not wait for the network.
    """
    cards = len(candidate.devices)
    if cards > MOST_CARDS:
        raise PlanError(
            f"llama.cpp drives {MOST_CARDS} cards at most, not {cards}: its scheduler has 16 backends, the CPU is one",
            hint=f"use {MOST_CARDS} cards, or build llama.cpp with -DGGML_SCHED_MAX_BACKENDS={cards + 1}",
            source=_SOURCE,
        )
    processes = []
    for node in range(1, candidate.nodes):
        for place, device in enumerate(node_devices(candidate, node)):
            host = node_address(ports.addresses, node)
            processes.append(
                Process(
                    name=f"rpc-{node}-{place}",
                    argv=(command, "--host", host, "--port", str(FIRST_PORT + place), "--cache"),
                    env={VARIABLES[device.vendor]: str(device.index)} if device.vendor in VARIABLES else {},
                    node=node,
                )
            )
    return tuple(processes)


def rpc_endpoints(candidate: Candidate, ports: Ports) -> str:
    """What `--rpc` names: HOST:PORT of every card of the other nodes."""
    return ",".join(
        f"{node_address(ports.addresses, node)}:{FIRST_PORT + place}"
        for node in range(1, candidate.nodes)
        for place in range(len(node_devices(candidate, node)))
    )
