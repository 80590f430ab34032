"""`up`: plan, fetch, start the service, ask it something, measure it, then stay or leave."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Protocol

from plimsoll.app import running as looking
from plimsoll.app.chat import FirstAnswer, first_answer
from plimsoll.app.environments import install_engine, missing_orders
from plimsoll.app.measuring import measure, of_deployment
from plimsoll.app.planning import make_plan, refuse_unfit
from plimsoll.app.running import RunningDeployment
from plimsoll.app.serial import error_from_json, plan_to_json
from plimsoll.app.settings import Settings
from plimsoll.app.target import Overrides, deployment_name, spec_of
from plimsoll.app.weights import fetch_weights, local_weights
from plimsoll.bench.measure import Level
from plimsoll.engines.builds import Order
from plimsoll.errors import LaunchError
from plimsoll.launch.logs import last_words, new_log, read_lines
from plimsoll.launch.state import DeploymentRow, State
from plimsoll.plan.types import Plan, Replica
from plimsoll.spec.deployment import Spec
from plimsoll.spec.dump import dump_spec
from plimsoll.units import GB, format_bytes

ASK_ABOVE_BYTES = 2 * GB
"""A download larger than this is confirmed first."""
_STOP_WAIT_S = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UpRequest:
    """What `plimsoll up` was asked for."""

    target: str | None
    overrides: Overrides
    bench: bool = True
    detach: bool = False
    dry_run: bool = False
    yes: bool = True
    install: bool | None = True
    """Whether engines that are missing are installed; None: after asking."""


class UpReport(Protocol):
    """Told of each step as it happens; draws it, or collects it for --json."""

    def planned(self, plan: Plan) -> None:
        """The plan is made."""

    def confirm(self, question: str) -> bool:
        """Whether to go on."""
        ...

    def installing(self, order: Order) -> None:
        """An engine is being installed."""

    def installer_said(self, line: str) -> None:
        """One line of the installer."""

    def fetching(self, name: str, done_bytes: int, total_bytes: int | None) -> None:
        """Weights are arriving."""

    def starting(self, replicas: tuple[Replica, ...], *, state_dir: Path) -> None:
        """The service is being started."""

    def ready(self, running: RunningDeployment, *, start_s: float) -> None:
        """Every replica has made a real token."""

    def answered(self, answer: FirstAnswer) -> None:
        """The first request through the gateway came back."""

    def measured(self, level: Level) -> None:
        """One concurrency of the sweep is done."""

    def up(self, running: RunningDeployment, *, detached: bool) -> None:
        """All is done; in the foreground it stays until Ctrl-C."""

    def stopping(self) -> None:
        """Ctrl-C came."""


def bring_up(request: UpRequest, settings: Settings, report: UpReport) -> None:
    """The whole road. Returns when detached, or when Ctrl-C or the service's own end stopped it.

    SpecError, FactError, PlanError, WeightError, LaunchError or GatewayError say what is wrong; then nothing is left
    running.
    """
    spec = spec_of(request.target, request.overrides)
    name = deployment_name(request.target, spec)
    if not request.dry_run and (other := looking.named(settings, name)) and other.supervised:
        raise LaunchError(
            f"{name} is already up" + (f" at {other.address}" if other.address else ""),
            hint="`plimsoll down` stops it; `plimsoll chat` talks to it",
        )
    plan = make_plan(spec, settings)
    report.planned(plan)
    refuse_unfit(plan)
    if request.dry_run:
        return
    if _install_missing(plan, settings, report, install=request.install):
        # The build for this machine may be of another version than was planned with.
        plan = make_plan(spec, settings)
        report.planned(plan)
        refuse_unfit(plan)
    _check_port(spec)
    plan = _with_weights(plan, settings, report, yes=request.yes)
    report.starting(plan.replicas, state_dir=settings.state_dir)
    with start_service(name, spec, plan, settings, detach=request.detach) as service:
        began = time.monotonic()
        running = service.wait_ready()
        report.ready(running, start_s=time.monotonic() - began)
        for replica in plan.replicas:
            if replica.candidate.model.task in ("chat", "completion"):
                report.answered(first_answer(running.address, model=_served(replica), api_key=running.api_key))
                if request.bench:
                    job = of_deployment(running, _served(replica))
                    measure(job, settings=settings, on_level=report.measured)
                break
        report.up(service.look(), detached=request.detach)
        if not request.detach:
            service.hold(report)


@dataclass(slots=True, kw_only=True)
class Service:
    """The service process as the one who started it sees it."""

    deployment: str
    process: subprocess.Popen[bytes]
    report: IO[str]
    """Its one line of JSON: up, or why not."""
    log_path: Path
    settings: Settings

    def look(self) -> RunningDeployment:
        """What runs now."""
        return looking.by_id(self.settings, self.deployment)

    def wait_ready(self) -> RunningDeployment:
        """Until every replica has made a token; the error that the service reports if one cannot."""
        line = self.report.readline()
        if not line:
            raise self._ended(self.process.wait())
        message = json.loads(line)
        if "error" in message:
            raise error_from_json(message["error"])
        return self.look()

    def hold(self, report: UpReport) -> None:
        """Until Ctrl-C, SIGTERM, or the end of the service; LaunchError if that was not in peace."""
        try:
            code = self.process.wait()
        except KeyboardInterrupt:
            report.stopping()
            return
        if code:
            raise self._ended(code)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL should it not end in time; its engines are then the next `down`'s to find."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(_STOP_WAIT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _ended(self, code: int) -> LaunchError:
        return LaunchError(
            f"the service ended with exit code {code}",
            hint=f"`plimsoll down` cleans up what it may have left; its log is {self.log_path}",
            source=str(self.log_path),
            log=last_words(read_lines(self.log_path)),
        )


@contextmanager
def start_service(name: str, spec: Spec, plan: Plan, settings: Settings, *, detach: bool) -> Iterator[Service]:
    """Start the service process; stop it on the way out unless it is to stay (detached, and no error)."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # under nohup a closed terminal is to be survived
            signal.signal(number, _interrupt)
    with State(settings.state_dir) as state:
        previous = next((row for row in state.deployments() if row.name == name), None)
        deployment = previous.id if previous else uuid.uuid4().hex[:12]
        state.save_deployment(
            DeploymentRow(id=deployment, name=name, spec=dump_spec(spec), plan=plan_to_json(plan), state="starting")
        )
    log_path = new_log(
        settings.state_dir / "logs", deployment=deployment, replica="service", process="service", keep=10
    )
    reading, writing = os.pipe()
    argv = [sys.executable, "-m", "plimsoll.app.service", "--state", str(settings.state_dir), "--id", deployment]
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [*argv, "--report", str(writing), *([] if detach else ["--attached"])],
            stdin=subprocess.DEVNULL if detach else subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=(writing,),
            start_new_session=True,
            cwd=settings.state_dir,
        )
    os.close(writing)
    with os.fdopen(reading) as line:
        service = Service(deployment=deployment, process=process, report=line, log_path=log_path, settings=settings)
        stays = False
        try:
            yield service
            stays = detach
        finally:
            if not stays:
                service.stop()
            if process.stdin:
                process.stdin.close()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _served(replica: Replica) -> str:
    return replica.candidate.deployment.name


def _install_missing(plan: Plan, settings: Settings, report: UpReport, *, install: bool | None) -> bool:
    """Install the engines that the plan needs and this machine lacks, after asking; whether there were any."""
    orders = missing_orders(plan)
    for order in orders:
        what = f"{order.build.engine} {order.version}"
        agreed = report.confirm(f"{what} is not installed here. Install it?") if install is None else install
        if not agreed:
            raise LaunchError(
                f"not started: {what} is not installed here",
                hint=f"--yes installs it, and so does `plimsoll engines install {order.build.engine}`",
            )
        report.installing(order)
        install_engine(order, settings, report.installer_said)
    return bool(orders)


def _check_port(spec: Spec) -> None:
    """Fail before anything is fetched or started if the gateway could not listen."""
    host, port = spec.gateway.host, spec.gateway.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as problem:
            raise LaunchError(
                f"the gateway cannot listen on {host}:{port}: {problem.strerror}",
                hint="another program has the port: give another with --port, or --port 0 for any free one",
            ) from problem


def _with_weights(plan: Plan, settings: Settings, report: UpReport, *, yes: bool) -> Plan:
    """The plan with every replica's weights on this machine."""
    candidates = [replica.candidate for replica in plan.replicas]
    missing = {
        candidate.deployment.model: candidate.model.weight_bytes
        for candidate in candidates
        if local_weights(candidate.deployment, settings) is None
    }
    size = sum(missing.values())
    if size > ASK_ABOVE_BYTES and not yes and not report.confirm(f"Download {format_bytes(size)} of weights?"):
        raise LaunchError("not started: the download was declined", hint="`--yes` downloads without asking")
    paths = [str(fetch_weights(candidate, settings, progress=report.fetching)) for candidate in candidates]
    replicas = tuple(replace(one, model_path=path) for one, path in zip(plan.replicas, paths, strict=True))
    return replace(plan, replicas=replicas)
