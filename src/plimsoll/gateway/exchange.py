"""One request on its way: admitted, sent, retried while nothing has reached the client, spliced back, accounted for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from plimsoll.errors import GatewayError
from plimsoll.gateway.adapters import MALFORMED
from plimsoll.gateway.answers import JSON
from plimsoll.gateway.bodies import Form, ask_usage, read_body, set_model, wants_usage
from plimsoll.gateway.reply import Reply
from plimsoll.gateway.settings import Record

if TYPE_CHECKING:
    from plimsoll.gateway.adapters import Adapter
    from plimsoll.gateway.client import Client, Request
    from plimsoll.gateway.keys import Holder
    from plimsoll.gateway.lanes import Lane, Target
    from plimsoll.gateway.routes import Route
    from plimsoll.gateway.server import Gateway
    from plimsoll.gateway.upstream import Connection

CLIENT_LEFT = 499
_RETRY_STATUS = frozenset({502, 503})
_BYTES_PER_TOKEN = 4
"""Of English text in common vocabularies, roughly: for balancing and limits until the engine has counted."""
_REQUEST = b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b\r\n%b"


class Exchange:
    """A request and its answer, driven by the client, its lane, the upstream connection and the sweeper."""

    __slots__ = (
        "_adapter", "_ask_usage", "_attempts", "_charged", "_content", "_first_byte_s", "_gateway", "_heard", "_holder",
        "_lane", "_reply", "_sent_s", "_started_s", "_status", "_stream", "_upstream_name", "avoid", "body", "client",
        "connection", "deadline_s", "gone", "key", "model", "request", "request_id", "route", "session", "target",
        "tokens",
    )  # fmt: skip

    def __init__(
        self,
        gateway: Gateway,
        client: Client,
        request: Request,
        route: Route,
        request_id: bytes,
        holder: Holder | None,
    ) -> None:
        self._gateway = gateway
        self.client = client
        self.request = request
        self.route = route
        self.request_id = request_id
        self.key = holder.key.name if holder is not None else ""
        self._holder = holder
        self._charged: int | None = None
        self.body = request.body
        self.model = ""
        self.tokens = 0
        self.gone = False
        self.avoid = ""
        self.session = request.headers.get(b"x-session-id", b"")
        self.deadline_s = 0.0
        self.target: Target | None = None
        self.connection: Connection | None = None
        self._lane: Lane | None = None
        self._stream = False
        self._ask_usage = False
        self._content: dict[str, Any] = {}
        self._adapter: Adapter | None = None
        self._attempts = 0
        self._status = 0
        self._heard = False
        self._reply: Reply | None = None
        self._started_s = gateway.now()
        self._sent_s = 0.0
        self._upstream_name = ""
        self._first_byte_s = 0.0

    # from the client's side

    def begin(self) -> None:
        """Find the model and ask for a slot; GatewayError if that cannot be."""
        self._content = content = read_body(self.body, self.request.headers.get(b"content-type", b""))
        name = self._gateway.model_name(content.get("model"), self.route)
        self.model, lane = self._gateway.lane(name, self.route)
        self._lane = lane
        if self.route.adapt is not None and lane.targets:
            try:
                self._adapter = self.route.adapt(self.body, content, lane.targets[0].upstream)
            except MALFORMED as error:
                raise GatewayError(
                    f"The body is not of the form that {self.route.name} takes ({error}).",
                    status=400,
                    kind="invalid_request_error",
                ) from error
        if self.route.streams:
            self._stream = content.get("stream") is True
        limit = content.get("max_completion_tokens") or content.get("max_tokens")
        self.tokens = len(self.body) // _BYTES_PER_TOKEN + (limit if isinstance(limit, int) else 256)
        if self._holder is not None:
            self._holder.admit(
                model=name, route=self.route.name, tokens=self.tokens, now_s=self._started_s, unix_s=time.time()
            )
            self._charged = self.tokens
        lane.submit(self, self._started_s)

    def client_left(self) -> None:
        """The client hung up: stop the engine's work at once."""
        if not self.gone:
            self._status = CLIENT_LEFT
            self._release(failed=False)
            self._end("the client left")

    def pause(self) -> None:
        """The client reads more slowly than the engine writes."""
        if self.connection is not None:
            self.connection.pause()

    def resume(self) -> None:
        """The client has caught up."""
        if self.connection is not None:
            self.connection.resume()

    # from the lane's side

    def assign(self, target: Target) -> None:
        """A slot is ours: send."""
        self.target = target
        self._upstream_name = target.upstream.name
        self._sent_s = self._gateway.now()
        if target.running == 1:
            target.heard_s = self._sent_s
        self.deadline_s = self._sent_s + self._gateway.settings.first_byte_wait_s
        target.pool.send(self)

    def move(self, lane: Lane, now_s: float) -> None:
        """The model is served by other replicas now."""
        self._lane = lane
        lane.submit(self, now_s)

    def refuse(self, error: GatewayError) -> None:
        """Answer with an error instead; nothing has been sent yet."""
        self._fail(error)

    def sweep(self, now_s: float) -> None:
        """Give up on an engine that has been silent for too long."""
        if self._heard:
            self._heard = False
            if self.target is not None:
                self.target.heard_s = now_s
            self.deadline_s = now_s + self._gateway.settings.between_bytes_wait_s
        if self.target is not None and now_s >= self.deadline_s:
            self._broken(f"the engine was silent for {now_s - self._sent_s:.0f} s", status=504)

    # from the upstream connection's side

    def request_bytes(self) -> bytes:
        """The request as the engine gets it."""
        target = self.target
        assert target is not None  # noqa: S101 - a connection is asked for only after assign
        upstream = target.upstream
        content_type = JSON
        if self._adapter is not None:
            path, body = self._adapter.request(upstream)
        else:
            path = upstream.base_path.encode() + self.route.path if upstream.base_path else self.route.path
            body = set_model(self.body, self._content, upstream.model)
            if isinstance(self._content, Form):
                content_type = self.request.headers[b"content-type"]
            may_ask = self._stream and self.route.usage_option and upstream.stream_usage
            self._ask_usage = may_ask and not wants_usage(self._content)
            if self._ask_usage:
                body = ask_usage(body, self._content)
        forwarded = self.request.forwarded()
        return _REQUEST % (path, target.host, content_type, len(body), self.request_id, forwarded, body)

    def received(self, connection: Connection, data: bytes, *, complete: bool) -> None:
        """A part of the answer."""
        self._heard = True
        if complete:
            self.connection = None
        reply = self._reply
        if reply is None:
            if connection.status in _RETRY_STATUS and self._may_retry():
                self._again(failed=False)
                return
            reply = self._reply = Reply(
                self.client, self.request, self.request_id, connection, adapter=self._adapter, stream=self._stream,
                strip_usage=self._ask_usage, anthropic=self.route.anthropic,
                hold_bytes=self._gateway.settings.buffered_bytes,
            )  # fmt: skip
            if self.client.paused:  # by the answer before
                self.pause()
        try:
            reply.feed(data, complete=complete)
        except GatewayError as error:
            if reply.begun:
                self._broken(error.message.rstrip("."), status=error.status)
            else:
                self._release(failed=False, answered=True)
                self._fail(error)
            return
        except EOFError:
            self._broken("the engine closed the connection in the middle of its answer", status=503)
            return
        if not self._first_byte_s and reply.has_text:
            self._first_byte_s = self._gateway.now()
        if complete:
            self._finish(reply)

    def lost(self, reason: str, *, stale: bool = False, status: int = 503) -> None:
        """The connection ended before the answer did."""
        if self.gone:
            return
        self.connection = None
        target = self.target
        if stale and target is not None:
            target.pool.send(self, fresh=True)  # the engine closed an idle connection just as we used it
            return
        self._broken(reason, status=status)

    def _finish(self, reply: Reply) -> None:
        self._status = reply.status
        self._release(failed=False, answered=True)
        self._end("" if reply.status < 400 else f"the engine answered {reply.status}")
        self.client.answered(keep_alive=reply.framed and self.request.keep_alive)

    # what goes wrong

    def _may_retry(self) -> bool:
        """Whether another replica may answer better than this one did."""
        return (
            self._attempts < self._gateway.settings.retries and self._lane is not None and len(self._lane.targets) > 1
        )

    def _again(self, *, failed: bool) -> None:
        """Ask for another slot, by the table as it is now; whatever goes wrong there ends the exchange."""
        self._attempts += 1
        self.avoid = self.target.upstream.name if self.target else ""
        self._reply = None
        self._release(failed=failed, answered=not failed)
        try:
            _, lane = self._gateway.lane(self.model, self.route)
            self._lane = lane
            lane.submit(self, self._gateway.now())
        except GatewayError as error:
            self._fail(error)

    def _broken(self, reason: str, *, status: int) -> None:
        """The upstream failed: retry, or tell the client."""
        error = self._upstream_error(reason, status)
        reply = self._reply
        if reply is not None and reply.begun:
            self._status = status
            self._release(failed=True)
            told = reply.fail(error)
            self._end(reason)
            if told:
                self.client.answered(keep_alive=False)
            else:
                self.client.abort()  # a length was promised that cannot be kept
        elif self._attempts < self._gateway.settings.retries and status != 504:
            self._again(failed=True)
        else:
            self._release(failed=True)
            self._fail(error)

    def _upstream_error(self, reason: str, status: int) -> GatewayError:
        name = self.target.upstream.name if self.target else self.model
        cause = self.target.upstream.reason if self.target else None
        return GatewayError(
            f"{name}: {cause or reason}.",
            status=status,
            kind="server_error",
            hint="The request may be sent again; `plimsoll status` and `plimsoll logs` say more.",
            retry_after_s=self.target.upstream.retry_after_s if self.target else 5.0,
        )

    def _fail(self, error: GatewayError) -> None:
        if self.gone:
            return
        self._status = error.status
        self._end(error.message)
        headers = b"x-request-id: %b\r\n%b" % (self.request_id, self.request.cors)
        self.client.refuse(error, headers, keep_alive=self.request.keep_alive, anthropic=self.route.anthropic)

    def _release(self, *, failed: bool, answered: bool = False) -> None:
        """Give the slot back, drop the connection if the answer on it is not complete, leave the queue."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abort()
        target, self.target = self.target, None
        if target is not None:
            target.give_back(self.tokens, failed=failed, answered=answered, now_s=self._gateway.now())
        elif self._lane is not None:
            self._lane.leave(self)

    def _end(self, error: str) -> None:
        """Over, whatever happened: tell who keeps account."""
        self.gone = True
        now_s = self._gateway.now()
        reply = self._reply
        prompt, output, exact = reply.counts if reply is not None else (0, 0, False)
        if self._holder is not None and self._charged is not None:
            uncounted = 0 if exact or not self._sent_s else len(self.body) // _BYTES_PER_TOKEN
            self._holder.done(estimated=self._charged, used=prompt + output + uncounted)
        self._gateway.note(
            Record(
                request_id=self.request_id.decode(),
                client=self.client.host,
                route=self.route.name,
                model=self.model,
                upstream=self._upstream_name,
                key=self.key,
                status=self._status,
                stream=reply is not None and reply.tap is not None,
                prompt_tokens=prompt,
                output_tokens=output,
                exact=exact,
                queued_s=(self._sent_s or now_s) - self._started_s,
                first_byte_s=self._first_byte_s and self._first_byte_s - self._started_s,
                duration_s=now_s - self._started_s,
                error=error,
            )
        )
