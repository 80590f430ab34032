"""What control groups allow this process: CPU time and memory, both cgroup versions, every level up to the root."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from plimsoll.discover.procfs import read_fields, read_int, read_text

_UNLIMITED = 1 << 60
"""cgroup v1 writes "no limit" as a number just under 2^63."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """The tightest limits above this process; None where there is none."""

    cores: float | None = None
    memory_bytes: int | None = None
    memory_free_bytes: int | None = None
    """Limit less use, at the level where that is least; file cache counts as free: it is given up on demand."""
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mount:
    point: PurePosixPath
    root: PurePosixPath
    controllers: frozenset[str]
    """Empty for version 2."""


def read_allowance(root: Path = Path("/")) -> Allowance:
    """The limits of the cgroups that /proc/self/cgroup names, below `root`; unreadable files are no limit."""
    cores: list[tuple[float, str]] = []
    limits: list[tuple[int, str]] = []
    free: list[int] = []
    for directory, version in _own_directories(root):
        quota = _quota_v2(directory) if version == 2 else _quota_v1(directory)
        if quota is not None:
            cores.append((quota, str(directory)))
        limit, used = _memory_v2(directory) if version == 2 else _memory_v1(directory)
        if limit is not None and limit < _UNLIMITED:
            limits.append((limit, str(directory)))
            free.append(max(0, limit - used))
    return Allowance(
        cores=min(cores)[0] if cores else None,
        memory_bytes=min(limits)[0] if limits else None,
        memory_free_bytes=min(free) if free else None,
        source=", ".join(sorted({min(found)[1] for found in (cores, limits) if found})),
    )


def _own_directories(root: Path) -> Iterator[tuple[Path, int]]:
    """Each cgroup directory that holds this process, innermost first, with its version."""
    mounts = list(_mounts(root))
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        wanted = frozenset(name for name in names.split(",") if name)
        for mount in mounts:
            if mount.controllers != wanted and not (wanted & mount.controllers):
                continue
            yield from _levels(root, mount, PurePosixPath(path or "/"), version=1 if wanted else 2)
            break


def _levels(root: Path, mount: _Mount, path: PurePosixPath, *, version: int) -> Iterator[tuple[Path, int]]:
    # In a container the path may be the host's: then what the mount shows at its root is our own group.
    inside = path.relative_to(mount.root) if path.is_relative_to(mount.root) else path.relative_to("/")
    top = root / mount.point.relative_to("/")
    here = top / inside
    while here != top:
        if here.is_dir() and ".." not in inside.parts:
            yield here, version
        here = here.parent
    yield top, version


def _mounts(root: Path) -> Iterator[_Mount]:
    known = {"cpu", "cpuacct", "memory"}
    for line in read_text(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3 or not fields[4].startswith("/") or not fields[3].startswith("/"):
            continue
        where = {"point": PurePosixPath(fields[4]), "root": PurePosixPath(fields[3])}
        if kind[0] == "cgroup2":
            yield _Mount(**where, controllers=frozenset())
        elif kind[0] == "cgroup":
            names = frozenset(kind[2].split(",")) & known
            if names:
                yield _Mount(**where, controllers=names)


def _quota_v2(directory: Path) -> float | None:
    fields = read_text(directory / "cpu.max").split()
    if len(fields) != 2 or not all(field.isdigit() for field in fields) or int(fields[1]) == 0:
        return None
    return int(fields[0]) / int(fields[1])


def _quota_v1(directory: Path) -> float | None:
    quota, period = (read_int(directory / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return quota / period if quota is not None and quota > 0 and period else None


def _memory_v2(directory: Path) -> tuple[int | None, int]:
    limit = read_int(directory / "memory.max")
    stat = read_fields(directory / "memory.stat")
    cache = sum(stat.get(key, 0) for key in ("inactive_file", "active_file", "slab_reclaimable"))
    return limit, max(0, (read_int(directory / "memory.current") or 0) - cache)


def _memory_v1(directory: Path) -> tuple[int | None, int]:
    limit = read_int(directory / "memory.limit_in_bytes")
    stat = read_fields(directory / "memory.stat")
    cache = stat.get("total_inactive_file", 0) + stat.get("total_active_file", 0)
    return limit, max(0, (read_int(directory / "memory.usage_in_bytes") or 0) - cache)
