"""Which package of an engine works on a machine: its device, driver, compute capability and C library decide.

The table is `engines/data/builds.toml`, read off the packages' own metadata. Pure.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from packaging.version import Version

from plimsoll.errors import LaunchError
from plimsoll.facts.hardware import Device, Host, Vendor
from plimsoll.facts.versions import in_range

_DRIVERS = ((580, 13), (525, 12), (450, 11))
"""From which driver on which CUDA runs: docs.nvidia.com/deploy/cuda-compatibility, minor version compatibility."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One row of the table: the versions of an engine that are packaged alike for one kind of device."""

    engine: str
    vendor: Vendor
    versions: str
    """The range, as PEP 440 writes it."""
    newest: str
    """Installed where no version is asked for."""
    package: str
    module: str
    requires: tuple[str, ...]
    glibc: str
    """At least."""
    python: str
    source: str
    cuda: int | None = None
    """The CUDA generation that the driver must carry."""
    capability: float = 0.0
    """At least, of every card."""
    index: str = ""
    alone: bool = False
    without: tuple[str, ...] = ()
    reason: str = ""
    prerelease: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to install: a build in one version; `why` says why not the newest."""

    build: Build
    version: str
    why: str = ""

    @property
    def requirements(self) -> tuple[str, ...]:
        """For the installer."""
        return tuple(one.format(version=self.version) for one in self.build.requires)


@cache
def builds() -> tuple[Build, ...]:
    """The whole table, of one engine and device the newest versions first."""
    text = resources.files("plimsoll.engines").joinpath("data/builds.toml").read_text(encoding="utf-8")
    return tuple(Build(**_row(row)) for row in tomllib.loads(text)["build"])


def choose_build(engine: str, version: str | None, host: Host) -> Order:
    """The build for `host`: of the version asked for, else the newest one that works.

    LaunchError for an engine that is not installed as a package, for a device that it has no build for, and for a
    version that cannot work here; the hint names one that would.
    """
    known = [build for build in builds() if build.engine == engine]
    if not known:
        names = ", ".join(dict.fromkeys(build.engine for build in builds()))
        raise LaunchError(f"{engine} is not installed as a Python package", hint=f"Plimsoll installs {names}")
    rows, cards = _for_devices(known, host)
    if not rows:
        vendors = ", ".join(dict.fromkeys(build.vendor for build in known))
        raise LaunchError(
            f"there is no package of {engine} for {_named(host)}, only for {vendors}",
            hint=f"an environment that was built by hand is found and used: {engine} on PATH or in the active one",
        )
    obstacles = {build: _obstacles(build, cards, host) for build in rows}
    working = next((build for build in rows if not obstacles[build]), None)
    if version is None:
        if working is None:
            raise LaunchError(
                f"no version of {engine} works here: {obstacles[rows[0]]}",
                hint="llama.cpp asks the least of a machine",
                source=rows[0].source,
            )
        return Order(build=working, version=working.newest, why=obstacles[rows[0]])
    meant = next((build for build in rows if in_range(version, build.versions)), None)
    hint = f"{engine}=={working.newest} would work here" if working else "no version known would work here"
    if meant is None:
        ranges = "; ".join(dict.fromkeys(build.versions for build in rows))
        raise LaunchError(f"no package of {engine} {version} is known for {rows[0].vendor}: {ranges}", hint=hint)
    # One version may be there in several builds: one for each CUDA generation.
    fit = next((build for build in rows if in_range(version, build.versions) and not obstacles[build]), None)
    if fit is None:
        raise LaunchError(f"{engine} {version} cannot work here: {obstacles[meant]}", hint=hint, source=meant.source)
    return Order(build=fit, version=version)


def _for_devices(known: list[Build], host: Host) -> tuple[list[Build], tuple[Device, ...]]:
    """The rows for the first kind of device that there are any for, accelerators first, and those devices."""
    for vendor in dict.fromkeys((*(device.vendor for device in host.devices), "cpu")):
        if rows := [build for build in known if build.vendor == vendor]:
            return rows, tuple(device for device in host.devices if device.vendor == vendor)
    return [], ()


def _obstacles(build: Build, cards: tuple[Device, ...], host: Host) -> str:
    """What keeps the build from working; "" if nothing is known to."""
    if host.glibc and Version(host.glibc) < Version(build.glibc):
        return f"its packages need GLIBC {build.glibc}, this system has {host.glibc}"
    for card in cards:
        carried = _cuda_of(card)
        if build.cuda and carried and carried < build.cuda:
            needs = next(driver for driver, cuda in _DRIVERS if cuda == build.cuda)
            driver = f"driver {card.driver}" if card.driver else "the driver"
            return f"its packages need CUDA {build.cuda} (driver {needs}), {driver} carries CUDA {carried}"
        if build.capability and card.arch.replace(".", "").isdigit() and float(card.arch) < build.capability:
            return f"its kernels are for compute capability {build.capability} and newer, {card.name} has {card.arch}"
    return ""


def _cuda_of(card: Device) -> int | None:
    if card.runtime:
        return int(card.runtime.partition(".")[0])
    major = (card.driver or "").partition(".")[0]
    return next((cuda for driver, cuda in _DRIVERS if major.isdigit() and int(major) >= driver), None)


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}


def _named(host: Host) -> str:
    return host.devices[0].name if host.devices else host.cpu.name
