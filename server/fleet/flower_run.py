"""The one run of Flower's state in memory: what messages, nodes and objects belong to."""

import datetime
import time
from dataclasses import astuple
from typing import Any, Final

from flwr.app import Array, Error, Message, RecordDict
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID, SubStatus
from flwr.proto import message_pb2
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager

from privacy.message_objects import WHOLE_MAX, decode_arrays, gather, whole
from server.fleet.pending_message import PendingMessage, PendingMessages

_HEARTBEAT_SECONDS: Final = 10.0
_NEVER: Final = datetime.datetime.max.replace(tzinfo=datetime.UTC)


class FlowerRun:
    """Flower's state with one run that is under way until `close`."""

    def __init__(self) -> None:
        database = FLWR_IN_MEMORY_DB_NAME
        store = ObjectStoreFactory(database)
        self.state: Any = LinkStateFactory(database, NoOpFederationManager(), store).state()
        self.run_id: int = self.state.create_run(
            None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        self.run: Run = self.state.get_run_info(run_ids=[self.run_id])[0]
        self._task = self.run.primary_task_id or 0
        if self.state.claim_task(self._task) is None or not self.state.activate_task(self._task):
            raise RuntimeError("Flower's state refused a new run")
        # Flower's messages take their run and their sender from this global of the process.
        TaskIdentity.task_id, TaskIdentity.run_id = self._task, self.run_id
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        self._beat = 0.0

    def create_node(self, site: str, public_pem: bytes) -> int:
        """A node of that name and key; returns its id."""
        node: int = self.state.create_node(
            NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public_pem, 0, name=site
        )
        return node

    def sign_as_sender(self, message: Message) -> None:
        """Flower takes run and sender from a global of the process; here they are this run's."""
        message.metadata.__dict__.update(
            _run_id=self.run_id, _src_node_id=SUPERLINK_NODE_ID, _src_task_id=self._task
        )

    def delivered(self, number: str) -> Message | None:
        """A message that its node has not had yet and that still holds: it counts as delivered.

        Flower's own look for one goes through the messages of all nodes.
        """
        with self.state.lock:
            self.state._check_stored_messages({number})
            message: Message | None = self.state.message_ins_store.get(number)
            if message is None or message.metadata.delivered_at:
                return None
            message.metadata.delivered_at = datetime.datetime.now(datetime.UTC).isoformat()
            return message

    def whole(self, response: Any, pending: PendingMessages) -> Any:
        """A poll's answer and the objects of its messages in one body, where they are small.

        A client of ours asks so: for a small model, one exchange in place of one for each object.
        """
        objects: dict[str, bytes] = {}
        for message in response.messages_list:
            item = pending.get(message.metadata.message_id)
            names = () if item is None else item.objects
            contents = {name: self.state.object_store.get(name) or b"" for name in names}
            if all(contents.values()) and sum(map(len, contents.values())) <= WHOLE_MAX:
                objects |= contents
        return message_pb2.PullObjectResponse(
            object_found=True,
            object_available=True,
            object_content=whole(response.SerializeToString(), objects),
        )

    def open(self, item: PendingMessage) -> Message:
        """A complete reply, taken out of the store; raises for hostile bytes."""
        root = item.reply or ""
        objects = gather(root, self.state.object_store.get)
        self.delete(root)
        decoded = decode_arrays(objects, item.limit).items()
        arrays: Any = {name: Array(*astuple(one)) for name, one in decoded}
        reply = inflate_object_from_contents(root, objects, objects=arrays)
        if not isinstance(reply, Message):
            raise TypeError("the reply is no message")
        if reply.has_error():
            return Message(Error(reply.error.code, "the client failed"), reply_to=item.message)
        return Message(RecordDict(dict(reply.content)), reply_to=item.message)

    def delete(self, root: str) -> None:
        """Drop an object and those below it, unless another upload has them as well."""
        # Under the lock of the uploads: equal objects of another site's upload must not vanish.
        with self.state._lock_object_push_sessions:
            self.state.object_store.delete(root)

    def keep_upload(self, session: str) -> None:
        """An upload lasts as long as its message is waited for.

        Flower drops one, with all that has arrived, where no chunk was completed for 180 s: on a
        slow line a chunk takes longer, and a cut may.
        """
        with self.state._lock_object_push_sessions:
            upload = self.state._object_push_sessions.get(session)
            if upload is not None:
                upload.expires_at = _NEVER

    def end_upload(self, session: str) -> None:
        """Forget an upload; what has arrived stays in the store."""
        self.state._cleanup_push_session(session, cleanup_messages=False)

    def tick(self) -> None:
        """Keep the run alive."""
        if time.monotonic() > self._beat + _HEARTBEAT_SECONDS:
            self._beat = time.monotonic()
            self.state.acknowledge_task_heartbeat(self._task)

    def close(self) -> None:
        """End the run."""
        self.state.finish_task(self._task, SubStatus.COMPLETED, "")
