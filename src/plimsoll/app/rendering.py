"""The exact commands and files of a plan, for reading and for copying: the same ones that `up` starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from plimsoll.app.environments import known_engines
from plimsoll.app.settings import Settings
from plimsoll.app.weights import weights_path
from plimsoll.discover.engines import container_engines, reference_engines
from plimsoll.engines.protocol import Ports, Process
from plimsoll.engines.render.forms import CONTAINERS, Form, render
from plimsoll.engines.render.kubernetes import group_addresses
from plimsoll.engines.render.placed import Placed, RenderedFile, plain_name
from plimsoll.engines.render.shell import command_line, prepare
from plimsoll.errors import PlanError
from plimsoll.plan.types import Plan, Replica

_FIRST_PORT, _STEP = 8100, 10
"""Shown where free ports would be chosen at launch: one that serves and those that follow it, for each replica."""
_RAY = ("vllm", "vllm_ascend")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One process of one replica."""

    replica: str
    process: Process

    def as_shell(self) -> str:
        """A shell script that does the same: files, setup, then the command with its environment."""
        lines = [f"# {self.replica}: {self.process.name}", *prepare(self.process)]
        return "\n".join([*lines, command_line(self.process, wrap=True)])

    def as_json(self) -> dict[str, object]:
        """The same as plain data."""
        return {
            "replica": self.replica,
            "process": self.process.name,
            "argv": list(self.process.argv),
            "env": dict(self.process.env),
            "files": dict(self.process.files),
            "setup": [list(command) for command in self.process.setup],
            "once_up": [list(command) for command in self.process.once_up],
            "node": self.process.node,
            "cwd": self.process.cwd,
        }


def rendered(plan: Plan, settings: Settings, *, hosts: Sequence[str] = (), elsewhere: bool = False) -> list[Command]:
    """Every process of every replica, in the order in which they start.

    `hosts`: addresses of the nodes. `elsewhere`: the plan is for other machines, whatever is installed here.
    """
    placed = _placed(plan, settings, form="shell", hosts=hosts, elsewhere=elsewhere)
    return [Command(replica=one.replica.name, process=one.process) for one in placed]


def rendered_files(
    plan: Plan,
    settings: Settings,
    form: Form,
    *,
    hosts: Sequence[str] = (),
    elsewhere: bool = False,
    image: str | None = None,
) -> tuple[RenderedFile, ...]:
    """The plan in one of the forms. PlanError where the form cannot hold it: no image, no Ray for the engine.

    `image`: a container image in place of the published one.
    """
    return render(form, _placed(plan, settings, form=form, hosts=hosts, elsewhere=elsewhere), image=image)


def write_files(files: Sequence[RenderedFile], directory: Path) -> list[Path]:
    """Write them below `directory`; the paths written."""
    written = []
    for file in files:
        path = directory / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text, encoding="utf-8")
        path.chmod(0o755 if file.executable else 0o640)
        written.append(path)
    return written


def _placed(plan: Plan, settings: Settings, *, form: Form, hosts: Sequence[str], elsewhere: bool) -> list[Placed]:
    placed: list[Placed] = []
    for index, planned in enumerate(plan.replicas):
        deployment = planned.candidate.deployment
        if form in CONTAINERS:
            known = container_engines()
        else:
            known = reference_engines() if elsewhere else known_engines(settings, (deployment,))
        path = planned.candidate.deployment.model if elsewhere else weights_path(planned, settings)
        replica = replace(planned, model_path=path)
        if form == "ray":
            replica = _by_ray(replica)
        first = _FIRST_PORT + index * _STEP
        name = plain_name(replica.name)
        ports = Ports(
            # A pod has an address of its own, and only what listens on it can be reached.
            host="0.0.0.0" if form == "k8s" else "127.0.0.1",  # noqa: S104
            serve=first,
            extra=tuple(range(first + 1, first + _STEP)),
            addresses=group_addresses(replica) if form == "k8s" else tuple(hosts),
            directory=f"/etc/plimsoll/{name}" if form in CONTAINERS or form == "systemd" else f"./{name}",
        )
        processes = known[replica.candidate.engine.name].processes(replica, ports)
        placed += [Placed(replica=replica, process=process, siblings=processes) for process in processes]
    return placed


def _by_ray(replica: Replica) -> Replica:
    """The replica with its nodes joined by Ray."""
    candidate = replica.candidate
    if candidate.engine.name not in _RAY or candidate.nodes == 1:
        raise PlanError(
            f"{replica.name}: a Ray cluster is for vLLM over several nodes, "
            f"not for {candidate.engine.name} on {candidate.nodes}",
            hint="--as shell has the processes as they are",
        )
    options = {**candidate.options, "distributed_executor_backend": "ray"}
    return replace(replica, candidate=replace(candidate, options=options))
