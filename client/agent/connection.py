"""The resident client: it dials out, takes requests, runs the installed app, sends replies.

With `link` the only file of a site that knows Flower's private names.
Nothing that arrives is ever executed: the app is the one that is installed. Whatever breaks between
here and the coordinator is retried with a capped pause; only a revoked, expired or unknown
certificate ends it.
"""

import datetime
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Final

import httpx
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.proto import fleet_pb2, heartbeat_pb2, node_pb2
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient

from client.agent.bounded_http import bounded
from client.agent.credentials import Enrolled
from client.agent.link import Limit, Link, NodeAuth
from client.agent.renewal import PATH, Renewal
from client.agent.route import Pauses, Route
from client.agent.transfers import PARALLEL, Transfers
from client.doctor.network_check import tls_reason
from privacy.identity.certificates import issued_by
from privacy.identity.keys import private_key

_HEARTBEAT: Final = 30.0
_BEAT_SECONDS: Final = 10.0
_CONNECT_SECONDS: Final = 30.0  # who gives up before its handshake's turn comes again, last
_PATIENCE: Final = 120.0
_GONE: Final = 410

Log = Callable[..., None]


class Refused(Exception):
    """The coordinator does not want this site any more, or its certificate is not good."""


class Agent:
    """Keeps one site connected to one coordinator until `stop` is set; `refused` says why it is."""

    def __init__(
        self,
        app: ClientApp,
        site: Enrolled,
        route: Route,
        *,
        log: Log,
        stop: threading.Event,
        limit: Limit = lambda fields, kind: 1 << 30,
    ) -> None:
        self._limit = limit
        self._app, self._site, self._route = app, site, route
        self._log, self.stop, self.refused = log, stop, ""
        self._reply: Message | None = None
        self._contexts: dict[int, Context] = {}
        self._idle: Link | None = None
        self._transfers = Transfers(log)
        self._renewal = Renewal(site, log)
        self._pauses = Pauses()

    def close(self) -> None:
        """After `stop` was set: take leave, which ends a waiting poll.

        Work in hand is finished first, and its reply sent: it is paid for.
        """
        if (link := self._idle) is not None:
            link.take_leave()

    @contextmanager
    def in_thread(self) -> Iterator["Agent"]:
        """Serve while the block runs; at its end work in hand is finished."""
        logging.getLogger("flwr").setLevel(logging.CRITICAL)  # it prints texts of exceptions
        logging.getLogger("httpx").setLevel(logging.WARNING)

        def serve() -> None:
            self.refused = "failed"  # unless it ends in good order
            try:
                self.run()
                self.refused = ""
            except Refused as error:
                self.refused = str(error)
            finally:
                self.stop.set()

        thread = threading.Thread(target=serve, name="agent", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.stop.set()
            self.close()
            thread.join()

    def run(self) -> None:
        """Serve until stopped; Refused where trying again is useless."""
        failures = 0
        while not self.stop.is_set():
            try:
                with self._connected() as link:
                    proxy = self._route.via()
                    through = {} if proxy is None else {"proxy": str(proxy)}
                    self._log("connected", server=self._route.server, **through)
                    self._renewal.connected()
                    if self._renew(link):
                        continue
                    for _ in self._serve(link):
                        failures = 0  # a connection that serves, not one that merely stands
                        if self._renewal.is_due() and self._renew(link):
                            break
            except Refused:
                raise
            except Exception as error:  # noqa: BLE001 - whatever a coordinator sends, its site comes back
                why = self._why(error)
                if isinstance(error, httpx.TransportError) and not self._route.advance():
                    self._log("disconnected", why=why, retry_in=0, server=self._route.server)
                    continue  # the coordinator has another address
                pause = self._pauses.after(failures)
                failures += 1
                if not self.stop.is_set():
                    self._log("disconnected", why=why, retry_in=round(pause, 1))
                    self.stop.wait(pause)

    def _serve(self, link: Link) -> Iterator[None]:
        """Answer what is asked; yields after every exchange that went well."""
        while True:
            reply = self._reply
            if reply is not None and reply.metadata.src_node_id != link.node.node_id:
                # Node ids end with a coordinator's process: the next one asks for the round again,
                # and is answered by the stored reply.
                self._log("reply_dropped", reason="coordinator_restarted")
                self._reply = None
            elif reply is not None:
                link.send(reply)
                self._reply = None
            self._idle = link  # before looking at `stop`: `close` comes after it was set
            try:
                if self.stop.is_set():
                    return
                message = link.pull()
            finally:
                self._idle = None
            yield
            if message is not None:
                head, tree = message
                self._reply = self._answer(link.fetch(head, tree))

    def _renew(self, link: Link) -> bool:
        """Ask for the bundle; True: connect again, to show the new certificate."""
        client = link.client._client
        return self._renewal.ask(lambda: client.post(f"https://{self._route.server}{PATH}"))

    def _answer(self, message: Message) -> Message:
        """The app's reply; an app that fails says so and nothing else."""
        meta = message.metadata
        TaskIdentity.task_id, TaskIdentity.run_id = 1, meta.run_id
        TaskIdentity.node_id = meta.dst_node_id
        if meta.run_id not in self._contexts:
            self._contexts.clear()  # a coordinator's process has one run
        context = self._contexts.setdefault(
            meta.run_id,
            Context(
                run_id=meta.run_id,
                node_id=meta.dst_node_id,
                node_config={"site": self._site.name},
                state=RecordDict(),
                run_config={},
            ),
        )
        try:
            return self._app(message, context)
        except Exception as error:  # noqa: BLE001 - an exception's text may hold data: none leaves
            self._log("failed", error=type(error).__name__)
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            return Message(Error(code, "the client failed"), reply_to=message)

    def _dial(self) -> FleetHttpClient:
        key = private_key(self._site.key.read_bytes())
        client = FleetHttpClient(
            f"https://{self._route.server}",
            interceptors=[NodeAuth(key)],
            verify=self._site.tls(),
        )
        proxy = self._route.via()
        client.close()  # its own would follow redirects and drop idle connections
        client._client = httpx.Client(
            verify=self._site.tls(),
            proxy=None if proxy is None else proxy.url,
            trust_env=False,
            timeout=httpx.Timeout(_PATIENCE, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(keepalive_expiry=60.0),
            headers={"Accept-Encoding": "identity"},
            event_hooks={"response": [bounded, self._pauses.told]},
        )
        return client

    def _check(self) -> None:
        """Whether our own certificate is one to show: what refuses it only hangs up."""
        certificate = self._site.read_certificate()
        if certificate.age(datetime.datetime.now(datetime.UTC)) == "expired":
            raise Refused("expired")
        if not issued_by(self._site.certificate.read_bytes(), self._site.ca.read_bytes()):
            raise Refused("not of the coordinator's authority")

    @contextmanager
    def _connected(self) -> Iterator[Link]:
        self._check()
        public = public_key_to_bytes(private_key(self._site.key.read_bytes()).public_key())
        with self._dial() as client, ThreadPoolExecutor(PARALLEL) as pool:
            answer = client.ActivateNode(
                fleet_pb2.ActivateNodeRequest(public_key=public, heartbeat_interval=_HEARTBEAT)
            )
            node = node_pb2.Node(node_id=answer.node_id)
            over = threading.Event()
            beat = threading.Thread(target=self._beat, args=(client, node, over), daemon=True)
            beat.start()
            link = Link(client, node, pool, self._transfers, self._limit)
            try:
                yield link
            finally:
                over.set()
                if self.stop.is_set():
                    link.take_leave()
                beat.join(_BEAT_SECONDS)

    def _beat(self, client: FleetHttpClient, node: node_pb2.Node, over: threading.Event) -> None:
        request = heartbeat_pb2.SendNodeHeartbeatRequest(node=node, heartbeat_interval=_HEARTBEAT)
        while not over.wait(_BEAT_SECONDS):
            # What fails here fails in the main loop too, which knows what to do.
            with suppress(httpx.HTTPError, ValueError, RuntimeError):
                client.SendNodeHeartbeat(request)

    def _why(self, error: Exception) -> str:
        """What went wrong, in words for the log; Refused where it will not get better."""
        if isinstance(error, httpx.HTTPStatusError):
            status = error.response.status_code
            if status == _GONE:
                raise Refused("revoked") from None
            if status == 413:
                self._reply = None
                return "the reply was too large: given up"
            return f"refused ({status})"
        reason = tls_reason(error)
        if reason in ("expired", "not known to the coordinator"):
            raise Refused(reason) from None
        return reason or type(error).__name__.removeprefix("_")
