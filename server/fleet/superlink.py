"""Flower's SuperLink inside the coordinator: its state and fleet protocol behind our TLS server.

With `flower_run` the only file of the coordinator that knows Flower's private names. Of the
SuperLink it takes the state and the fleet's handlers; no other route exists. A site's requests must
come over the certificate whose key is that node's key, and touch that node's own messages alone.
"""

import asyncio
import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, Final

from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import (
    TIMESTAMP_HEADER,
)
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
)
from flwr.supercore.error import FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.superlink.servicer.fleet import fleet_handlers
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from privacy.message_objects import OBJECTS_MAX, from_whole
from server.fleet.authentication import Denied, authenticate
from server.fleet.flower_run import FlowerRun
from server.fleet.liveness import Liveness, PollWaiters
from server.fleet.pending_message import PendingMessage, PendingMessages
from server.fleet.tls import Log
from server.fleet.tls_server import PREFIX, Answer, Headers
from server.registry.sites import Member, Members

POLL_SECONDS: Final = 20.0
_HEAVY: Final = frozenset({"push-messages", "push-whole"})
_POLLS: Final = {"pull-messages": False, "pull-whole": True}
_NODE_HEADERS: Final = tuple(
    name.lower().encode()
    for name in (FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, TIMESTAMP_HEADER)
)


class Fleet:
    """Flower's state, and what each site may do to it."""

    def __init__(self, log: Log) -> None:
        self.flower = FlowerRun()
        self.state, self.run_id = self.flower.state, self.flower.run_id
        self.log = log
        self.news = threading.Condition(threading.RLock())
        self.pending = PendingMessages()
        self.arrivals = 0
        self.nodes: dict[str, int] = {}
        self.sites: dict[int, str] = {}
        self.active: set[str] = set()
        self.liveness = Liveness()
        self._keys: dict[str, str] = {}
        self._sessions: dict[str, PendingMessage] = {}
        self.waiters = PollWaiters()
        self._heavy: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="fleet")
        self._polls = ThreadPoolExecutor(2, thread_name_prefix="polls")
        self._routes: dict[str, tuple[Any, Callable[[Member, int, Any], Any]]] = {
            "deactivate-node": (fleet_pb2.DeactivateNodeRequest, self._deactivate),
            "send-node-heartbeat": (heartbeat_pb2.SendNodeHeartbeatRequest, self._heartbeat),
            "push-messages": (fleet_pb2.PushMessagesRequest, self._push),
            "push-whole": (message_pb2.PushObjectRequest, self._push_whole),
            "push-object": (message_pb2.PushObjectRequest, self._push_object),
            "pull-object": (message_pb2.PullObjectRequest, self._pull_object),
            "confirm-message-received": (message_pb2.ConfirmMessageReceivedRequest, _confirm),
        }

    def register(self, members: Members) -> None:
        """Make a node of every enrolled site; a revoked or re-keyed one is none any more."""
        with self.news:
            for site, member in members.sites.items():
                known = self._keys.get(site)
                if known is not None and (known != member.fingerprint or member.revoked):
                    self.active.discard(site)
                    self.sites.pop(self.nodes.pop(site, 0), None)
                    self._keys.pop(site)
                    for _, item in self.pending.items():
                        if item.site == site and not item.ready and not item.failure:
                            self.fail(item, "revoked")
                if site not in self._keys and not member.revoked:
                    key = member.certificate.public_pem
                    node = self.flower.create_node(site, key)
                    self.nodes[site], self.sites[node] = node, site
                    self._keys[site] = member.fingerprint
        self.waiters.notify_all()

    async def handle(self, member: Member, path: str, headers: Headers, body: bytes) -> Answer:
        """Answer one request of a known site."""
        name = path.removeprefix(PREFIX)
        try:
            authenticate(member, *(headers.get(one, b"") for one in _NODE_HEADERS))
            if name == "activate-node":
                activation = fleet_pb2.ActivateNodeRequest.FromString(body)
                return await self._in_thread(partial(self._activate, member, activation))
            if name in _POLLS:
                poll = fleet_pb2.PullMessagesRequest.FromString(body)
                return 200, await self._poll(member, self._node(member, poll), poll, _POLLS[name])
            if name not in self._routes:
                return 404, b""
            if name not in _HEAVY:
                return await self._in_thread(partial(self._routed, member, name, body))
            async with self._heavy[member.name]:  # one at a time for each site
                return await self._in_thread(partial(self._routed, member, name, body))
        except DecodeError:
            return 400, b""
        except Denied as denied:
            self.log("request_denied", site=member.name, why=str(denied))
            return denied.status, b""
        except FlowerError as error:
            self.log("request_denied", site=member.name, why=f"flower {error.code}")
            return 403, b""
        except (ValueError, KeyError, RuntimeError) as error:
            self.log("request_denied", site=member.name, why=type(error).__name__)
            return 400, b""

    def _routed(self, member: Member, name: str, body: bytes) -> Any:
        """Parse and answer, off the event loop: the cost grows with a site's own message alone."""
        kind, route = self._routes[name]
        request = kind.FromString(body)
        return route(member, self._node(member, request), request)

    async def _in_thread(self, call: Callable[[], Any]) -> Answer:
        loop = asyncio.get_running_loop()
        content = await loop.run_in_executor(self._pool, lambda: call().SerializeToString())
        return 200, content

    def _node(self, member: Member, request: Any) -> int:
        node_id = request.node.node_id if hasattr(request, "node") else request.node_id
        node = self.nodes.get(member.name)
        if node is None or node_id != node:
            raise Denied(401, "another node's id, or one of before a restart")
        if member.name not in self.active:
            raise Denied(401, "not activated")
        return node

    def _heartbeat(self, member: Member, node: int, request: Any) -> Any:
        return fleet_handlers.send_node_heartbeat(request, self.state)

    def _activate(self, member: Member, request: Any) -> Any:
        """A (re)started client: whatever it had been given and did not answer is given again."""
        if request.public_key != member.certificate.public_pem:
            raise Denied(401, "another site's key")
        node = self.nodes[member.name]
        with self.news:
            self.waiters.invalidate(member.name)
            self.state.deactivate_node(node)  # else it is refused until its heartbeat expires
            answer = fleet_handlers.activate_node(request, self.state)
            self.active.add(member.name)
            for number, item in self.pending.of_node(node):
                if not item.ready and not item.failure:
                    # What has arrived of its reply stays: the client goes on from there.
                    self.state.message_ins_store[number].metadata.delivered_at = ""
            self.news.notify_all()
        self.waiters.notify(member.name)
        self.log("connected", site=member.name, node=node)
        return answer

    def site_closed(self, site: str) -> None:
        """A site's last connection closed: a poll that still waits for it must take nothing."""
        with self.news:
            self.waiters.invalidate(site)
        self.liveness.closed(site)
        self.waiters.notify(site)

    def silent(self, site: str) -> float:
        """For how long a site has been away: 0 while it is there."""
        return self.liveness.silent(site) if site in self.active else 1e9

    def close(self) -> None:
        """End Flower's run."""
        for pool in (self._pool, self._polls):
            pool.shutdown(wait=False, cancel_futures=True)
        self.flower.close()

    async def _poll(self, member: Member, node: int, request: Any, whole: bool) -> bytes:
        """Flower's poll, kept waiting until something is there; `whole`: with its objects."""
        event, generation = self.waiters.event_of(member.name), self.waiters.generation(member.name)
        end = time.monotonic() + POLL_SECONDS
        loop = asyncio.get_running_loop()
        take = partial(self._take, member.name, node, generation, request)
        while True:
            event.clear()
            response = await loop.run_in_executor(self._polls, take)  # it waits for a lock
            if response is None:
                return b""
            left = end - time.monotonic()
            if response.messages_list or left <= 0:
                response = self.flower.whole(response, self.pending) if whole else response
                answer: bytes = response.SerializeToString()
                return answer
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), left)

    def _take(self, site: str, node: int, generation: int, request: Any) -> Any:
        """What waits for a site; None where the poll is of an earlier connection."""
        with self.news:
            here = site in self.active and self.nodes.get(site) == node
            if not here or generation != self.waiters.generation(site):
                return None
            response = fleet_pb2.PullMessagesResponse()
            for number, _ in self.pending.of_node(node):
                message = self.flower.delivered(number)
                if message is not None:
                    response.messages_list.append(message_to_proto(message))
                    tree = self.state.object_store.get_object_tree(number)
                    response.message_object_trees.append(tree)
                    break
            return response

    def _deactivate(self, member: Member, node: int, request: Any) -> Any:
        answer = fleet_handlers.deactivate_node(request, self.state)
        with self.news:
            self.active.discard(member.name)
            self.waiters.invalidate(member.name)
            self.news.notify_all()
        self.waiters.notify(member.name)
        self.log("disconnected", site=member.name)
        return answer

    def _pull_object(self, member: Member, node: int, request: Any) -> Any:
        with self.news:
            items = self.pending.of_node(node)
        is_pending = any(request.object_id in item.objects for _, item in items)
        if not is_pending or request.run_id != self.run_id:
            return message_pb2.PullObjectResponse(object_found=False, object_available=False)
        return fleet_handlers.pull_object(request, self.state)

    def _push(self, member: Member, node: int, request: Any) -> Any:
        """A reply's head: it must answer a message of this very node, once."""
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise Denied(400, "expected one reply")
        meta, tree = request.messages_list[0].metadata, request.message_object_trees[0]
        if meta.src_node_id != node or meta.run_id != self.run_id:
            raise Denied(401, "a reply in another node's name")
        nodes = sum(1 for _ in islice(iterate_object_tree(tree), OBJECTS_MAX + 1))
        if tree.object_id != meta.message_id or nodes > OBJECTS_MAX:
            raise Denied(400, "a reply of another form")
        with self.news:
            item = self.pending.get(meta.reply_to_message_id)
            if item is None or item.failure:
                self.log("reply_late", site=member.name)
                return fleet_pb2.PushMessagesResponse()
            if item.node != node:
                raise Denied(401, "a reply to another node's message")
            if item.ready:
                if item.reply != tree.object_id:
                    self.log("reply_duplicate", site=member.name)
                return fleet_pb2.PushMessagesResponse()
            if item.reply != tree.object_id:
                self._drop_reply(item)
            answer = fleet_handlers.push_messages(request, self.state)
            if self.state.message_ins_id_to_message_res_id.get(meta.reply_to_message_id) is None:
                raise Denied(400, "a reply that Flower's state refuses")
            item.reply, item.missing = tree.object_id, set(answer.objects_to_push)
            self._sessions[answer.session_id] = item
            item.sessions.add(answer.session_id)
            self.flower.keep_upload(answer.session_id)
            if not item.missing:
                self._complete(item)
            return answer

    def _push_whole(self, member: Member, node: int, request: Any) -> Any:
        """A reply's head with its objects; those that are missing still are named in the answer."""
        content, objects = from_whole(request.object_content)
        head = fleet_pb2.PushMessagesRequest.FromString(content)
        answer = self._push(member, node, head)
        missing, answer.objects_to_push[:] = list(answer.objects_to_push), []
        for name in missing:
            one = message_pb2.PushObjectRequest(
                node=request.node,
                run_id=self.run_id,
                session_id=answer.session_id,
                object_id=name,
                object_content=objects.get(name, b""),
            )
            if name not in objects or not self._push_object(member, node, one).stored:
                answer.objects_to_push.append(name)
        return answer

    def _push_object(self, member: Member, node: int, request: Any) -> Any:
        item = self._sessions.get(request.session_id)
        if item is None or item.node != node or request.object_id not in item.missing:
            return message_pb2.PushObjectResponse(stored=False)
        with self.news:
            item.size += len(request.object_content)
            if item.size > item.limit:
                self.fail(item, "oversized")
                raise Denied(413, f"a reply of more than {item.limit} bytes")
        answer = fleet_handlers.push_object(request, self.state)
        self.flower.keep_upload(request.session_id)  # each chunk sets Flower's time anew
        if answer.stored:
            with self.news:
                item.missing.discard(request.object_id)
                if not item.missing and item.reply is not None:
                    self._complete(item)
        return answer

    def _complete(self, item: PendingMessage) -> None:
        item.ready = True
        self.pending.settle(item.message.metadata.message_id)
        self.flower.delete(item.message.metadata.message_id)  # nobody asks for the request any more
        self.arrivals += 1
        self._end_uploads(item)
        self.news.notify_all()

    def fail(self, item: PendingMessage, why: str) -> None:
        """The item has no reply any more; whoever asks for it gets an error."""
        self._drop_reply(item)
        item.failure = why
        self.pending.settle(item.message.metadata.message_id)
        self.arrivals += 1
        self.log("reply_missing", site=item.site, why=why)
        self.news.notify_all()

    def _drop_reply(self, item: PendingMessage) -> None:
        if item.reply is not None:
            number = item.message.metadata.message_id
            self.state.message_ins_id_to_message_res_id.pop(number, None)
            self.state.message_res_store.pop(item.reply, None)
            self.flower.delete(item.reply)
        self._end_uploads(item)
        item.reply, item.missing, item.size, item.ready = None, set(), 0, False

    def _end_uploads(self, item: PendingMessage) -> None:
        for session in item.sessions:
            self._sessions.pop(session, None)
            self.flower.end_upload(session)
        item.sessions.clear()

    def overtake(self, nodes: set[int]) -> None:
        """Before new messages to these nodes: nobody waits for what they, or the absent, owe."""
        with self.news:
            for number, item in self.pending.items():
                if item.node in nodes or self.silent(item.site):
                    if not item.ready and not item.failure:
                        self.log(
                            "reply_missing", site=item.site, why="overtaken by a later request"
                        )
                    self.forget(number)

    def post_all(self, messages: list[Message], limit: int | None) -> list[str]:
        """Store messages for their nodes; what they share is hashed once, and stored once."""
        with no_object_id_recompute():
            return [self._post(message, limit) for message in messages]

    def _post(self, message: Message, limit: int | None) -> str:
        number = message.object_id
        message.metadata.__dict__["_message_id"] = number
        objects, tree = get_all_nested_objects(message), get_object_tree(message)
        bare = remove_content_from_message(message)
        node = message.metadata.dst_node_id
        site = self.sites.get(node, "")
        with self.news:
            session = self.state.start_session(self.run_id)
            stored, missing = self.state.store_message_and_object_tree(bare, tree, session)
            item = PendingMessage(bare, node, site, frozenset(objects), 0)
            self.pending.add(number, item)
            if not stored:
                self.fail(item, "not connected")
            for name in missing:
                self.state.store_object(self.run_id, session, name, objects[name].deflate())
            size = sum(len(self.state.object_store.get(name) or b"") for name in objects)
            item.limit = limit if limit is not None else 2 * size + 16 * 1024 * 1024
        self.waiters.notify(site)
        return number

    def forget(self, number: str) -> None:
        """Drop a message and its reply."""
        with self.news:
            item = self.pending.pop(number)
            if item is not None:
                self._drop_reply(item)
                self.state.delete_messages({number})
                self.flower.delete(number)


def _confirm(member: Member, node: int, request: Any) -> Any:
    return message_pb2.ConfirmMessageReceivedResponse()
