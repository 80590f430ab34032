"""What Plimsoll must remember when it dies: one SQLite file in the state directory, read and written by short SQL."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from plimsoll.errors import LaunchError
from plimsoll.launch.identity import Identity

DeploymentState = Literal["starting", "running", "failed", "stopping", "stopped"]

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE deployments (id TEXT PRIMARY KEY, name TEXT NOT NULL, spec TEXT NOT NULL, plan TEXT NOT NULL,"
        " gateway TEXT NOT NULL, supervisor_pid INTEGER, supervisor_birth TEXT, created REAL NOT NULL,"
        " state TEXT NOT NULL)",
        "CREATE TABLE replicas (deployment TEXT NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL,"
        " reason TEXT NOT NULL, changed REAL NOT NULL, PRIMARY KEY (deployment, name))",
        "CREATE TABLE processes (run TEXT PRIMARY KEY, deployment TEXT NOT NULL, replica TEXT NOT NULL,"
        " process TEXT NOT NULL, pid INTEGER, birth TEXT, pgid INTEGER, argv TEXT NOT NULL, rendered TEXT NOT NULL,"
        " ports TEXT NOT NULL, log_path TEXT NOT NULL, started REAL NOT NULL, ended REAL, exit_code INTEGER,"
        " signal INTEGER, cause TEXT)",
        "CREATE INDEX processes_running ON processes (deployment) WHERE ended IS NULL",
        "CREATE TABLE observations (run TEXT NOT NULL, engine TEXT NOT NULL, engine_version TEXT NOT NULL,"
        " device TEXT NOT NULL, model TEXT NOT NULL, quantity TEXT NOT NULL, planned REAL, actual REAL NOT NULL,"
        " created REAL NOT NULL, PRIMARY KEY (run, quantity))",
        "CREATE TABLE bench_runs (id TEXT PRIMARY KEY, created REAL NOT NULL, json TEXT NOT NULL)",
    ),
)
"""Statements that lead from one `PRAGMA user_version` to the next. Append only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentRow:
    """One `plimsoll up`. `spec` is its text, `plan` its JSON, `gateway` `host:port` or ""."""

    id: str
    name: str
    spec: str = ""
    plan: str = ""
    gateway: str = ""
    supervisor: Identity | None = None
    created: float = 0.0
    """Seconds since the epoch; filled in when it is saved."""
    state: DeploymentState = "starting"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaRow:
    """Where a replica stood last, and why."""

    deployment: str
    name: str
    state: str
    reason: str
    changed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRow:
    """One run of one process; times in seconds since the epoch. `ended` is None while it runs, as far as was seen."""

    run: str
    deployment: str
    replica: str
    process: str
    argv: tuple[str, ...]
    rendered: str
    """Digest of everything that it was started with; what is planned the same way may be adopted."""
    ports: tuple[int, ...]
    """The one that serves, then the extra ones."""
    log_path: str
    started: float
    pid: int | None = None
    """None: it was about to be started."""
    birth: str | None = None
    pgid: int | None = None
    ended: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    cause: str | None = None

    @property
    def identity(self) -> Identity | None:
        """The operating system's process, once it has been started."""
        if self.pid is None or self.birth is None:
            return None
        return Identity(pid=self.pid, birth=self.birth)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One quantity of one run, as planned and as the engine reported it. Bytes, tokens or seconds."""

    run: str
    engine: str
    engine_version: str
    device: str
    model: str
    quantity: str
    planned: float | None
    actual: float
    created: float


class State:
    """The state file of one directory; belongs to the thread that opened it.

    Raises LaunchError when the directory cannot be written, the disk is full, the file is locked for longer than
    `busy_s`, is no database, or comes from a newer Plimsoll.
    """

    def __init__(self, directory: Path, *, busy_s: float = 2.0) -> None:
        self.directory = directory
        self.path = directory / "state.db"
        with self._explained():
            # Specs may hold API keys: the directory is the user's alone.
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=busy_s, isolation_level=None)
        try:
            with self._explained():
                self._db.row_factory = sqlite3.Row
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._migrate()
        except LaunchError:
            self._db.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def __enter__(self) -> State:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Deployments.

    def save_deployment(self, row: DeploymentRow) -> None:
        """Add it, or put new text, plan, gateway and state in place of the old; its supervisor is left as it is."""
        with self._explained():
            self._db.execute(
                "INSERT INTO deployments (id, name, spec, plan, gateway, created, state) VALUES (?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET name = excluded.name, spec = excluded.spec, plan = excluded.plan,"
                " gateway = excluded.gateway, state = excluded.state",
                (row.id, row.name, row.spec, row.plan, row.gateway, row.created or time.time(), row.state),
            )

    def claim(self, deployment: str, supervisor: Identity) -> None:
        """Make `supervisor` the one that owns the deployment; LaunchError when another that lives owns it."""
        with self._explained(), self._transaction():
            row = self.deployment(deployment)
            if row is None:
                raise LaunchError(f"there is no deployment {deployment}", source=str(self.path))
            if row.supervisor is not None and row.supervisor != supervisor and row.supervisor.alive:
                raise LaunchError(
                    f"{row.name} is already run by the plimsoll with pid {row.supervisor.pid}",
                    hint="`plimsoll ps` shows it, `plimsoll down` stops it",
                    source=str(self.path),
                )
            self._db.execute(
                "UPDATE deployments SET supervisor_pid = ?, supervisor_birth = ? WHERE id = ?",
                (supervisor.pid, supervisor.birth, deployment),
            )

    def set_deployment(self, deployment: str, state: DeploymentState) -> None:
        """Note where it stands; one that is stopped has no supervisor any more."""
        free = ", supervisor_pid = NULL, supervisor_birth = NULL" if state == "stopped" else ""
        with self._explained():
            self._db.execute(f"UPDATE deployments SET state = ?{free} WHERE id = ?", (state, deployment))  # noqa: S608

    def deployment(self, deployment: str) -> DeploymentRow | None:
        """The one of that id."""
        return next((row for row in self.deployments() if row.id == deployment), None)

    def deployments(self) -> tuple[DeploymentRow, ...]:
        """All of them, newest first."""
        with self._explained():
            rows = self._db.execute("SELECT * FROM deployments ORDER BY created DESC, rowid DESC").fetchall()
        return tuple(_deployment(row) for row in rows)

    # Replicas and processes.

    def set_replica(self, deployment: str, name: str, *, state: str, reason: str) -> None:
        """Note where a replica stands."""
        with self._explained():
            self._db.execute(
                "INSERT OR REPLACE INTO replicas VALUES (?, ?, ?, ?, ?)", (deployment, name, state, reason, time.time())
            )

    def replicas(self, deployment: str) -> tuple[ReplicaRow, ...]:
        """All that the deployment has or had."""
        with self._explained():
            rows = self._db.execute(
                "SELECT * FROM replicas WHERE deployment = ? ORDER BY rowid", (deployment,)
            ).fetchall()
        return tuple(ReplicaRow(**dict(row)) for row in rows)

    def save_process(self, row: ProcessRow) -> None:
        """Add a run, or replace what was known of it."""
        values = asdict(row) | {"argv": json.dumps(row.argv), "ports": json.dumps(row.ports)}
        names = ", ".join(values)
        marks = ", ".join("?" * len(values))
        with self._explained():
            self._db.execute(
                f"INSERT OR REPLACE INTO processes ({names}) VALUES ({marks})",  # noqa: S608
                tuple(values.values()),
            )

    def end_process(self, run: str, *, cause: str, exit_code: int | None = None, signal: int | None = None) -> None:
        """Note that a run is over, unless that is known already."""
        with self._explained():
            self._db.execute(
                "UPDATE processes SET ended = ?, exit_code = ?, signal = ?, cause = ? WHERE run = ? AND ended IS NULL",
                (time.time(), exit_code, signal, cause, run),
            )

    def processes(self, deployment: str, *, running: bool = False) -> tuple[ProcessRow, ...]:
        """The deployment's runs, oldest first; only those not known to have ended when `running`."""
        only = " AND ended IS NULL" if running else ""
        with self._explained():
            rows = self._db.execute(
                f"SELECT * FROM processes WHERE deployment = ?{only} ORDER BY rowid",  # noqa: S608
                (deployment,),
            ).fetchall()
        return tuple(
            ProcessRow(**dict(row) | {key: tuple(json.loads(row[key])) for key in ("argv", "ports")}) for row in rows
        )

    # What was measured.

    def add_observations(self, observations: Sequence[Observation]) -> None:
        """Store what an engine reported; a later report of the same run and quantity replaces the earlier."""
        names = [item.name for item in fields(Observation)]
        marks = ", ".join("?" * len(names))
        with self._explained(), self._transaction():
            self._db.executemany(
                f"INSERT OR REPLACE INTO observations ({', '.join(names)}) VALUES ({marks})",  # noqa: S608
                [tuple(asdict(item).values()) for item in observations],
            )

    def observations(self, *, run: str | None = None, engine: str | None = None) -> tuple[Observation, ...]:
        """Those of one run, of one engine, or all; newest first."""
        with self._explained():
            rows = self._db.execute(
                "SELECT * FROM observations WHERE run = coalesce(?, run) AND engine = coalesce(?, engine)"
                " ORDER BY created DESC, rowid",
                (run, engine),
            ).fetchall()
        return tuple(Observation(**dict(row)) for row in rows)

    def add_bench_run(self, bench: str, record: str) -> None:
        """Store a measured run as JSON text."""
        with self._explained():
            self._db.execute("INSERT INTO bench_runs VALUES (?, ?, ?)", (bench, time.time(), record))

    def bench_runs(self) -> tuple[tuple[str, float, str], ...]:
        """(id, seconds since the epoch, JSON) of all, newest first."""
        with self._explained():
            rows = self._db.execute("SELECT * FROM bench_runs ORDER BY created DESC, rowid DESC").fetchall()
        return tuple((row["id"], row["created"], row["json"]) for row in rows)

    # The file.

    def _migrate(self) -> None:
        with self._transaction():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version > len(MIGRATIONS):
                raise LaunchError(
                    f"{self.path} is of a newer Plimsoll (format {version}, this one knows {len(MIGRATIONS)})",
                    hint="upgrade plimsoll-llm, or use another state directory",
                )
            for statements in MIGRATIONS[version:]:
                for statement in statements:
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise LaunchError(
                f"the state directory {self.directory} cannot be used: {error}",
                hint=_hint(str(error)),
                source=str(self.path),
            ) from error


def _hint(error: str) -> str:
    for words, hint in (
        ("full", "free some disk space, or use another state directory"),
        ("No space", "free some disk space, or use another state directory"),
        ("locked", "another program holds the file; end it and try again"),
        ("not a database", "the file is damaged; move it away"),
        ("malformed", "the file is damaged; move it away"),
    ):
        if words in error:
            return hint
    return "make the directory writable, or use another state directory"


def _deployment(row: sqlite3.Row) -> DeploymentRow:
    values: dict[str, Any] = dict(row)
    pid, birth = values.pop("supervisor_pid"), values.pop("supervisor_birth")
    return DeploymentRow(**values, supervisor=None if pid is None else Identity(pid=pid, birth=birth))
