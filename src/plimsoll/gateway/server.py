"""The gateway: one address in front of every replica in the table."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import itertools
import os
import ssl
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping

import orjson

from plimsoll.errors import GatewayError
from plimsoll.gateway import answers, cors
from plimsoll.gateway.client import Client, Request, is_request_id
from plimsoll.gateway.exchange import Exchange
from plimsoll.gateway.keys import Holder, KeyRing, named_keys
from plimsoll.gateway.lanes import Lane, Target
from plimsoll.gateway.metrics import Metrics, escape
from plimsoll.gateway.routes import NAMES, ROUTES, Route
from plimsoll.gateway.settings import Observer, Record, Settings
from plimsoll.gateway.table import RouteTable

_SWEEP_S = 0.25
_LAST_TURNS = 1000
"""Of the loop, for every transport to say connection_lost after it was cut; TLS takes a few."""
_PROMETHEUS = b"text/plain; version=0.0.4; charset=utf-8"


class Gateway:
    """Serves a route table; every method is called in the event loop that `start` ran in."""

    def __init__(self, settings: Settings | None = None, *, observe: Observer | None = None) -> None:
        self.settings = settings or Settings()
        self.clients: set[Client] = set()
        self.metrics = Metrics()
        self.loop: asyncio.AbstractEventLoop
        self.now: Callable[[], float]
        self.observers: list[Observer] = [] if observe is None else [observe]
        """Called with every finished request, in the event loop: they must be quick."""
        self._keys: KeyRing | None = None
        self.wakers: list[Callable[[str], None]] = []
        """Called with a model's name whenever a request comes for it and all its replicas are asleep."""
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._table = RouteTable()
        self._targets: dict[tuple[str, str, int], Target] = {}
        self._lanes: dict[str, Lane] = {}
        self._draining = False
        self._id_prefix = os.urandom(6).hex().encode()
        self._ids = itertools.count(1)

    # life

    async def start(self, host: str = "127.0.0.1", port: int = 8000, *, reuse_port: bool = False) -> None:
        """Listen; GatewayError when the port is taken, or the host is open to others while no key is asked for."""
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time
        if self.settings.api_keys and self._keys is None:
            self._keys = KeyRing(named_keys(self.settings.api_keys), now_s=self.now(), unix_s=time.time())
        if self._keys is None and not is_loopback(host):
            raise GatewayError(
                f"Without an API key the gateway listens on the loopback address only, not on {host}.",
                hint="Set gateway.api_keys, or gateway.host: 127.0.0.1.",
            )
        try:
            self._server = await self.loop.create_server(
                lambda: Client(self),
                host,
                port,
                backlog=1024,
                reuse_port=reuse_port or None,
                ssl=_tls(self.settings),
            )
        except OSError as error:
            raise _listen_error(error, host, port) from error
        self._sweeper = self.loop.create_task(self._sweep())

    def use_keys(self, keys: KeyRing) -> None:
        """Accept these keys, and nobody without one, from now on."""
        if self._keys is not None:
            keys.take_over(self._keys)
        self._keys = keys

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that it listens on."""
        if self._server is None or not self._server.sockets:
            raise GatewayError("The gateway is not listening.")
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    def update(self, table: RouteTable) -> None:
        """Route by another table from now on; requests in work go on, those that wait are told if all is lost."""
        old = self._targets
        self._targets = {}
        lanes: dict[tuple[tuple[str, str, int], ...], Lane] = {}
        by_name: dict[str, Lane] = {}
        before = {tuple(target.upstream.key for target in lane.targets): lane for lane in self._lanes.values()}
        for upstream in {each.key: each for group in table.models.values() for each in group}.values():
            target = old.get(upstream.key) or Target(upstream, self.settings, self.loop)
            if upstream.healthy and not target.upstream.healthy:
                target.failures = 0
            target.upstream = upstream
            target.lanes = []
            self._targets[upstream.key] = target
        for name, group in table.models.items():
            keys = tuple(upstream.key for upstream in group)
            lane = lanes.get(keys) or before.get(keys)
            if lane is None:
                lane = Lane(name, tuple(self._targets[key] for key in keys), self.settings, self._wake)
            if keys not in lanes:
                lanes[keys] = lane
                for target in lane.targets:
                    target.lanes.append(lane)
            by_name[name] = lane
        for key, target in old.items():
            if key not in self._targets:
                target.pool.close()
        for keys, lane in before.items():
            if keys not in lanes:
                lane.dissolve(by_name, self.now())
        self._lanes = by_name
        self._table = table
        for lane in lanes.values():
            lane.sweep(self.now())

    async def stop(self, drain_s: float | None = None) -> None:
        """Accept nobody, let what is in work end within `drain_s` seconds, then cut the rest."""
        self._draining = True
        if self._server is not None:
            self._server.close()
        deadline_s = self.loop.time() + (self.settings.drain_s if drain_s is None else drain_s)
        for client in list(self.clients):
            client.drain()
        while any(client.answering for client in self.clients) and self.loop.time() < deadline_s:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        for client in list(self.clients):
            client.abort()
        for target in self._targets.values():
            target.pool.close()
            target.pool.cancel()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        for _ in range(_LAST_TURNS):
            if not self.clients:
                break
            await asyncio.sleep(0)
        if self._server is not None:
            await self._server.wait_closed()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            now_s = self.now()
            for client in list(self.clients):
                client.sweep(now_s)
            for lane in set(self._lanes.values()):
                lane.sweep(now_s)

    # requests

    def handle(self, client: Client, request: Request) -> None:
        """Answer one request, or hand it to an exchange."""
        request_id = request.headers.get(b"x-request-id", b"")
        if not is_request_id(request_id):
            request_id = b"%b-%x" % (self._id_prefix, next(self._ids))
        if self._draining:
            request.keep_alive = False
        path = request.target.partition(b"?")[0]
        if self.settings.cors_origins:
            request.cors = cors.allowed(self.settings.cors_origins, request.headers)
            if request.method == b"OPTIONS":
                client.write(cors.preflight(request.cors, request.headers, keep_alive=request.keep_alive))
                client.answered(keep_alive=request.keep_alive)
                return
        try:
            holder = None if path == b"/health" else self._holder(request.headers)
            route = ROUTES.get(path)
            if route is None:
                self._answer_locally(client, request, path, request_id)
                return
            if request.method != b"POST":
                raise _method_error(request.method, path, "POST")
            exchange = Exchange(self, client, request, route, request_id, holder)
            client.exchange = exchange
            exchange.begin()
        except GatewayError as error:
            exchange_ = client.exchange
            if exchange_ is not None:
                exchange_.refuse(error)
            else:
                self._note_refused(client, request_id, error)
                headers = b"x-request-id: %b\r\n%b" % (request_id, request.cors)
                client.refuse(error, headers, keep_alive=request.keep_alive)

    def model_name(self, given: object, route: Route) -> str:
        """The model that a body names, or the only one that fits where the route lets it out; else GatewayError 400."""
        if isinstance(given, str) and given:
            return given
        if given is None and route.default_model:
            fit = _fitting(self._table, route)
            if len(fit) == 1:
                return fit[0]
        raise GatewayError(
            "The body has no 'model'.", status=400, kind="invalid_request_error",
            hint="Name one of those that GET /v1/models lists.",
        )  # fmt: skip

    def lane(self, model: str, route: Route) -> tuple[str, Lane]:
        """The name that a model is served under, and its lane; GatewayError 404 if there is none."""
        name = model if model in self._lanes else self._table.resolve(model)
        lane = self._lanes[name]
        if route.tasks and lane.targets and not any(t in lane.targets[0].upstream.tasks for t in route.tasks):
            tasks = ", ".join(lane.targets[0].upstream.tasks)
            raise GatewayError(
                f"The model '{model}' serves {tasks}, not {route.name}.",
                status=400,
                kind="invalid_request_error",
                hint=_others(self._table, route),
            )
        if route.required and lane.targets and not lane.targets[0].upstream.serves(route.name):
            raise GatewayError(
                f"The engine of '{model}' does not serve {route.name}.", status=501, kind="invalid_request_error",
                hint="Serve the model with an engine that does.",
            )  # fmt: skip
        return name, lane

    def idle_s(self, model: str) -> float | None:
        """Seconds since a model was last asked for; None while it works, or was never asked for."""
        lane = self._lanes.get(model)
        if lane is None or not lane.used_s or lane.waiting or any(target.running for target in lane.targets):
            return None
        return self.now() - max(lane.used_s, *(target.freed_s for target in lane.targets))

    def _wake(self, model: str) -> None:
        for wake in self.wakers:
            wake(model)

    def note(self, record: Record) -> None:
        """Count a finished request and tell the observer."""
        self.metrics.note(record)
        for observe in self.observers:
            observe(record)

    def _note_refused(self, client: Client, request_id: bytes, error: GatewayError) -> None:
        self.note(
            Record(
                request_id=request_id.decode(), client=client.host, route="", model="", upstream="", key="",
                status=error.status, stream=False, prompt_tokens=0, output_tokens=0, exact=False, queued_s=0.0,
                first_byte_s=0.0, duration_s=0.0, error=error.message,
            )
        )  # fmt: skip

    def stranger(self, headers: Mapping[bytes, bytes]) -> GatewayError | None:
        """Why these headers' sender may not send anything; None: it may."""
        try:
            self._holder(headers)
        except GatewayError as error:
            return error
        return None

    def _holder(self, headers: Mapping[bytes, bytes]) -> Holder | None:
        """Whose key a request comes with; GatewayError 401 without a valid one."""
        if self._keys is None:
            return None
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            token = headers.get(b"x-api-key", b"")
        return self._keys.find(token.strip(), time.time())

    def _answer_locally(self, client: Client, request: Request, path: bytes, request_id: bytes) -> None:
        path = path.rstrip(b"/") or b"/"
        content_type = answers.JSON
        status = 200
        if path in (b"/v1/models", b"/models", b"/v1/v1/models"):
            body = orjson.dumps(
                {"object": "list", "data": [self._model(name) for name in self._table.models if name[-1] != "*"]}
            )
        elif path.startswith((b"/v1/models/", b"/models/")):
            name = urllib.parse.unquote(path.partition(b"models/")[2].decode("latin-1"))
            self._table.resolve(name)
            body = orjson.dumps(self._model(name))
        elif path == b"/health":
            status, health = self.health()
            if self._keys is not None and self.stranger(request.headers):
                health = {"status": health["status"]}
            body = orjson.dumps(health)
        elif path == b"/metrics":
            content_type = _PROMETHEUS
            body = self.metrics.render(self._gauges()).encode()
        else:
            raise GatewayError(
                f"There is no {path.decode('utf-8', 'replace')[:200]} here.", status=404, kind="invalid_request_error",
                hint=f"Served: /v1/models, /health, /metrics, {', '.join(NAMES)}.",
            )  # fmt: skip
        if request.method not in (b"GET", b"HEAD"):
            raise _method_error(request.method, path, "GET")
        whole = answers.answer(
            status, body, content_type=content_type, headers=b"x-request-id: %b\r\n%b" % (request_id, request.cors),
            keep_alive=request.keep_alive,
        )  # fmt: skip
        client.write(whole[: len(whole) - len(body)] if request.method == b"HEAD" else whole)
        client.answered(keep_alive=request.keep_alive)

    def traffic(self, upstream: str) -> tuple[int, float] | None:
        """Requests that a replica owes, and for how many seconds it has sent nothing; None if it is not known."""
        target = next((one for one in self._targets.values() if one.upstream.name == upstream), None)
        return None if target is None else (target.running, self.now() - target.heard_s)

    def health(self) -> tuple[int, dict[str, object]]:
        """Status and body of /health: 200 while any model can be served (or none is planned), else 503."""
        now_s = self.now()
        models = {
            name: {
                "ready": sum(target.usable(now_s) or target.probing for target in lane.targets),
                "replicas": len(lane.targets),
                "running": sum(target.running for target in lane.targets),
                "waiting": lane.waiting,
                "reasons": [t.upstream.reason for t in lane.targets if not t.upstream.healthy and t.upstream.reason],
            }
            for name, lane in self._lanes.items()
        }
        ready = [bool(model["ready"]) for model in models.values()]
        state = "ok" if all(ready) else "degraded" if any(ready) else "down"
        return (503 if state == "down" else 200), {"status": state, "models": models}

    def _model(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": int(self._table.created_s), "owned_by": "plimsoll"}

    def _gauges(self) -> Iterable[tuple[str, str, str, float]]:
        now_s = self.now()
        for target in self._targets.values():
            labels = f'upstream="{escape(target.upstream.name)}"'
            yield "plimsoll_requests_running", "Requests that a replica works on.", labels, target.running
        for target in self._targets.values():
            labels = f'upstream="{escape(target.upstream.name)}"'
            yield "plimsoll_upstream_up", "Whether a replica may be sent requests.", labels, target.usable(now_s)
        for name, lane in self._lanes.items():
            yield "plimsoll_requests_waiting", "Requests in the queue.", f'model="{escape(name)}"', lane.waiting
        yield "plimsoll_client_connections", "Open connections of clients.", "", len(self.clients)


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise GatewayError(
            f"The certificate {settings.tls_cert} cannot be used: {error}.",
            hint="gateway.tls_cert needs a PEM file with the chain, gateway.tls_key the key without a password.",
        ) from error
    return context


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen_error(error: OSError, host: str, port: int) -> GatewayError:
    if error.errno == errno.EADDRINUSE:
        return GatewayError(
            f"The port {port} on {host} is taken.",
            hint=f"Stop what listens there (`ss -ltnp 'sport = :{port}'` names it), or choose another with --port.",
        )
    return GatewayError(
        f"The gateway cannot listen on {host}:{port}: {error.strerror or error}.",
        hint="Check gateway.host and gateway.port.",
    )


def _method_error(method: bytes, path: bytes, right: str) -> GatewayError:
    return GatewayError(
        f"{path.decode('utf-8', 'replace')[:200]} does not take {method.decode('ascii', 'replace')}.",
        status=405,
        kind="invalid_request_error",
        hint=f"Use {right}.",
    )


def _others(table: RouteTable, route: Route) -> str:
    fit = _fitting(table, route)
    return f"Served here for {route.name}: {', '.join(fit[:10])}." if fit else "No model here serves that."


def _fitting(table: RouteTable, route: Route) -> list[str]:
    """Names of the models that serve one of the route's tasks."""
    return sorted(
        name
        for name, group in table.models.items()
        if group and (not route.tasks or any(task in group[0].tasks for task in route.tasks))
    )
