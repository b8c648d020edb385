"""One activated connection: a request as it comes, a reply as it goes.

A message is a tree of objects, which travel one by one; a small one travels in one body, where the
coordinator knows how.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Final

import httpx
from flwr.app import Array, ConfigRecord, Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import fleet_pb2, message_pb2, node_pb2
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.agent.transfers import Transfers
from privacy.message_objects import (
    OBJECTS_MAX,
    RECORDS_MAX,
    WHOLE_MAX,
    MalformedMessage,
    decode_arrays,
    from_whole,
    gather,
    split,
    whole,
)

_CHUNK_HEADS: Final = 1024 * 1024
_UNKNOWN: Final = 404
_SIGNATURE_SECONDS: Final = 60.0
_SIGNED: Final = (FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, TIMESTAMP_HEADER)
Limit = Callable[[Mapping[str, Any], str], int]
"""The bytes of arrays that a request (its fields, its type) may bring; 0: it is declined."""


class Lost(Exception):
    """The connection, or our place in it, is gone: connect again."""


@dataclass(slots=True)
class Link:
    """One activated connection."""

    client: FleetHttpClient
    node: node_pb2.Node
    pool: ThreadPoolExecutor
    transfers: Transfers
    limit: Limit
    left: bool = False
    takes_whole: bool = True  # until a coordinator of an earlier version says otherwise
    objects: dict[str, bytes] = field(default_factory=dict)  # that came with a request's head

    def pull(self) -> tuple[Message, Any] | None:
        """The next request's head, or None when none came within the coordinator's patience."""
        request = fleet_pb2.PullMessagesRequest(node=self.node)
        answer, self.objects = None, {}
        if (body := self._whole("pull-whole", request, message_pb2.PullObjectResponse)) is not None:
            content, self.objects = from_whole(body.object_content or whole(b"", {}))
            answer = fleet_pb2.PullMessagesResponse.FromString(content)
        answer = answer or self.client.PullMessages(request)
        if not answer.messages_list:
            return None
        return message_from_proto(answer.messages_list[0]), answer.message_object_trees[0]

    def fetch(self, head: Message, tree: Any) -> Message:
        """The whole request."""
        run, number = head.metadata.run_id, head.metadata.message_id
        if sum(1 for _ in islice(iterate_object_tree(tree), OBJECTS_MAX + 1)) > OBJECTS_MAX:
            raise Lost("a request of too many objects")
        records, chunks = levels(tree)
        take = partial(self.transfers.receive, fetch=partial(self._object, run), pool=self.pool)
        contents = take(number, records, limit=RECORDS_MAX, last=False)
        limit = self.limit(fields(contents), head.metadata.message_type)
        if limit:  # what the site declines anyway is declined without its arrays
            contents |= take(number, chunks, limit=limit + _CHUNK_HEADS)
        message = decoded(number, contents, limit)
        message.metadata.__dict__["_message_id"] = number
        return message

    def _whole(self, name: str, request: Any, kind: Any) -> Any:
        """A call of ours that takes a message in one body; None where it is not known there."""
        try:
            if self.takes_whole:
                return self.client._unary_unary(
                    path=f"/v1/fleet/{name}", rpc_method=name, request=request, response_type=kind
                )
        except httpx.HTTPStatusError as error:
            if error.response.status_code != _UNKNOWN:
                raise
            self.takes_whole = False
        return None

    def _object(self, run: int, name: str) -> bytes:
        if name in self.objects:
            return self.objects[name]
        answer = self.client.PullObject(
            message_pb2.PullObjectRequest(node=self.node, run_id=run, object_id=name)
        )
        if not answer.object_available:
            raise Lost("an object of the request is gone")
        content: bytes = answer.object_content
        return content

    def send(self, reply: Message) -> None:
        """The whole reply; what the coordinator has already is not sent again."""
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects, tree = get_all_nested_objects(reply), get_object_tree(reply)
            bare = remove_content_from_message(reply) if reply.has_content() else reply
            head = fleet_pb2.PushMessagesRequest(
                node=self.node,
                messages_list=[message_to_proto(bare)],
                message_object_trees=[tree],
                clientapp_runtime_list=[0.0],
            )
            answer = None
            if (contents := _small(objects)) is not None:
                body = whole(head.SerializeToString(), contents)
                one = message_pb2.PushObjectRequest(node=self.node, object_content=body)
                answer = self._whole("push-whole", one, fleet_pb2.PushMessagesResponse)
            answer = answer or self.client.PushMessages(head)
            run, session = reply.metadata.run_id, answer.session_id
            missing = [(name, objects[name].deflate()) for name in answer.objects_to_push]
        self.transfers.send(missing, lambda pair: self._store(run, session, *pair), self.pool)

    def _store(self, run: int, session: str, name: str, content: bytes) -> None:
        answer = self.client.PushObject(
            message_pb2.PushObjectRequest(
                node=self.node,
                run_id=run,
                session_id=session,
                object_id=name,
                object_content=content,
            )
        )
        if not answer.stored:
            raise Lost("the coordinator dropped the reply")

    def take_leave(self) -> None:
        """Tell the coordinator not to wait, over this connection: a site may have no other."""
        if self.left:
            return
        self.left = True
        request = fleet_pb2.DeactivateNodeRequest(node_id=self.node.node_id)
        with suppress(httpx.HTTPError, ValueError, OSError, RuntimeError):
            self.client.DeactivateNode(request)


class NodeAuth:
    """Flower's node authentication, signed once a minute instead of at each request."""

    def __init__(self, key: Any) -> None:
        self._real = NodeAuthHttpInterceptor(key, key.public_key())
        self._signed: tuple[float, dict[str, str]] = (0.0, {})

    def intercept(self, context: Any, call_next: Callable[[Any], httpx.Response]) -> httpx.Response:
        """Add the three headers of a request."""
        until, headers = self._signed
        if time.monotonic() < until:
            context.request.headers.update(headers)
            return call_next(context)

        def keep(signed: Any) -> httpx.Response:
            signature_headers = {name: signed.request.headers[name] for name in _SIGNED}
            self._signed = time.monotonic() + _SIGNATURE_SECONDS, signature_headers
            return call_next(signed)

        return self._real.intercept(context, keep)


class UnboundedAnswer(Exception):
    """An answer that is compressed, or larger than any of the protocol."""


_CHUNK_LEVEL: Final = 4
"""Where chunks stand in a tree: below a message, its content, a record and an array."""


def levels(tree: Any) -> tuple[list[str], list[str]]:
    """The objects of a tree: the records, and below them the chunks of arrays."""
    level, records, chunks = [tree], dict[str, None](), dict[str, None]()
    depth = 0
    while level:
        (records if depth < _CHUNK_LEVEL else chunks).update((n.object_id, None) for n in level)
        level, depth = [child for node in level for child in node.children], depth + 1
    return list(records), [name for name in chunks if name not in records]


def _small(objects: Mapping[str, Any]) -> dict[str, bytes] | None:
    """The objects' bytes where they travel in one body; None where they are too many for it."""
    if sum(len(getattr(one, "data", b"")) for one in objects.values()) > WHOLE_MAX:
        return None  # without a copy of large arrays
    contents = {name: one.deflate() for name, one in objects.items()}
    return contents if sum(map(len, contents.values())) <= WHOLE_MAX else None


def fields(contents: Mapping[str, bytes]) -> Mapping[str, Any]:
    """The fields of a request, before its arrays are fetched: its one record of settings."""
    for content in contents.values():
        if split(content)[0] == "ConfigRecord":
            record = ConfigRecord.inflate(content)
            if "plan" in record:
                return record
    return {}


def decoded(number: str, contents: dict[str, bytes], limit: int) -> Message:
    """The message; its arrays are joined up to `limit` bytes, or left out where that is 0."""
    objects = gather(number, contents.get) if limit else dict(contents)
    arrays: Any
    if limit:
        arrays = {n: Array(*astuple(one)) for n, one in decode_arrays(objects, limit).items()}
    else:
        empty = Array("uint8", (0,), "", b"")
        arrays = {n: empty for n in objects if split(objects[n])[0] == "Array"}
    message = inflate_object_from_contents(number, objects, objects=arrays)
    if not isinstance(message, Message):
        raise MalformedMessage("a request that is no message")
    return message
