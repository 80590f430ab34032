"""Engines of this machine: those found, those installed, and installing what a plan lacks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from plimsoll.app.settings import Settings
from plimsoll.discover.engines import engines
from plimsoll.discover.machine import this_machine
from plimsoll.engines.builds import Order, choose_build
from plimsoll.engines.installed import Record, installed_environments, read_record
from plimsoll.engines.protocol import Engine
from plimsoll.errors import LaunchError
from plimsoll.launch.environments import Install, Tell, find_uv, install, remove, verify
from plimsoll.plan.types import Plan
from plimsoll.spec.deployment import Deployment


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """An environment with its record."""

    path: Path
    record: Record


def known_engines(settings: Settings, deployments: Iterable[Deployment] = ()) -> Mapping[str, Engine]:
    """Every engine as it can be started here; of one that a deployment names with a version, that version."""
    pinned = (deployment.engine.partition("==") for deployment in deployments)
    versions = {name: version for name, _, version in pinned if version}
    return engines(installed_environments(settings.engines_dir), versions=versions)


def parse_name(text: str) -> tuple[str, str | None]:
    """`vllm==0.18.1` as its name and its version, `vllm` as its name and None; dashes are read as underscores."""
    name, _, version = text.partition("==")
    return name.strip().replace("-", "_"), version.strip() or None


def order_engine(text: str) -> Order:
    """What would be installed for `vllm` or `vllm==0.18.1` on this machine. LaunchError where nothing can work."""
    name, version = parse_name(text)
    return choose_build(name, version, this_machine())


def install_engine(order: Order, settings: Settings, tell: Tell, *, indexes: tuple[str, ...] = ()) -> Installed:
    """Carry out an order, with uv where there is one. LaunchError with the installer's last words."""
    how = Install(directory=settings.engines_dir, uv=find_uv(), environment=dict(os.environ), indexes=indexes)
    record = install(order, how, tell)
    return Installed(path=settings.engines_dir / record.name, record=record)


def list_installed(settings: Settings) -> tuple[Installed, ...]:
    """Every engine that was installed, by name."""
    found = ((path, read_record(path)) for path in installed_environments(settings.engines_dir))
    return tuple(Installed(path=path, record=record) for path, record in found if record)


def find_installed(settings: Settings, text: str) -> tuple[Installed, ...]:
    """Those that `vllm` or `vllm==0.18.1` names. LaunchError if there is none."""
    name, version = parse_name(text)
    found = tuple(
        one for one in list_installed(settings) if one.record.engine == name and version in (None, one.record.version)
    )
    if not found:
        raise LaunchError(f"{text} was not installed by Plimsoll", hint="`plimsoll engines list` shows what was")
    return found


def verify_engine(one: Installed) -> tuple[str, ...]:
    """What is wrong with it; () when it imports."""
    return verify(one.path)


def remove_engine(one: Installed, tell: Tell) -> None:
    """Remove it. LaunchError while something runs from it."""
    remove(one.path, tell)


def missing_orders(plan: Plan) -> tuple[Order, ...]:
    """What must be installed before `plan` can run here. LaunchError for an engine that cannot be."""
    wanted: dict[str, None] = {}
    for replica in plan.replicas:
        if not replica.candidate.engine.installed:
            named = replica.candidate.deployment.engine
            pinned = named.startswith(f"{replica.candidate.engine.name}==")
            wanted[named if pinned else replica.candidate.engine.name] = None
    return tuple(order_engine(name) for name in wanted)
