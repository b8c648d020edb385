"""An enrolled site that misbehaves: it harms nobody but itself, and it is named."""

import io
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2, message_pb2, node_pb2
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)

from client.agent.connection import Agent
from client.agent.credentials import Enrolled
from client.agent.link import Link
from client.agent.route import Route
from server.fleet.grid import LinkGrid
from tests.support.federation import (
    Events,
    answers,
    app,
    ask,
    content,
    coordinator,
    linked,
    running,
    weights_in,
)
from tests.support.patience import patience, wait_for

ZERO = np.zeros(100, np.float32)


class Setting:
    """A coordinator with an honest site and a hostile one, whose own program we are."""

    def __init__(self, grid: LinkGrid, log: Events, link: Link, sites: dict[str, Path]) -> None:
        self.grid, self.log, self.link, self.sites = grid, log, link, sites

    def asked(self) -> tuple[dict[str, str], Message]:
        """A round's messages, and the one that the hostile site was given."""
        asked = ask(self.grid, ZERO)
        found = None
        while found is None:
            found = self.link.pull()
        return asked, self.link.fetch(*found)

    def push(self, reply: Message, tree: Any = None, **change: Any) -> Any:
        """Only the head of a reply, with its metadata changed."""
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            reply.metadata.__dict__.update(change)
            return self.link.client.PushMessages(
                fleet_pb2.PushMessagesRequest(
                    node=self.link.node,
                    messages_list=[message_to_proto(remove_content_from_message(reply))],
                    message_object_trees=[tree if tree is not None else get_object_tree(reply)],
                )
            )

    def honest_round(self, asked: dict[str, str]) -> Message:
        """The honest site's answer stands; returns the hostile one's."""
        found = answers(self.grid, asked)
        assert (weights_in(found["honest"]) == 1).all()
        return found["hostile"]


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    home, sites = coordinator(tmp_path, "honest", "hostile")
    log = Events()
    with (
        linked(home, log) as grid,
        running(sites["honest"], grid.address),
        hostile(sites["hostile"], grid) as link,
    ):
        assert wait_for(lambda: len(grid.names()) == 2)
        yield Setting(grid, log, link, sites)


@contextmanager
def hostile(folder: Path, grid: LinkGrid) -> Iterator[Link]:
    import threading

    where = f"127.0.0.1:{grid.address[1]}"
    agent = Agent(
        app(), Enrolled(folder), Route([where], "none"), log=Events(), stop=threading.Event()
    )
    with agent._connected() as link:
        yield link


def node_of(setting: Setting, site: str) -> int:
    return next(node for node, name in setting.grid.names().items() if name == site)


def refused(call: Any) -> int:
    """The status with which a call is refused."""
    with pytest.raises(httpx.HTTPStatusError) as error:
        call()
    response = error.value.response
    assert response.content == b""
    assert "server" not in response.headers
    return response.status_code


def test_a_site_cannot_speak_with_another_sites_node_id(setting: Setting) -> None:
    other = node_pb2.Node(node_id=node_of(setting, "honest"))
    own, setting.link.node = setting.link.node, other
    client = setting.link.client
    assert refused(setting.link.pull) == 401
    leave = fleet_pb2.DeactivateNodeRequest(node_id=other.node_id)
    assert refused(lambda: client.DeactivateNode(leave)) == 401
    setting.link.node = own
    assert setting.log.said("request_denied", site="hostile")
    assert "honest" in setting.grid.names().values()


def test_a_site_cannot_activate_another_sites_key(setting: Setting) -> None:
    key = Enrolled(setting.sites["honest"]).read_certificate().public_pem
    request = fleet_pb2.ActivateNodeRequest(public_key=key, heartbeat_interval=30)
    assert refused(lambda: setting.link.client.ActivateNode(request)) == 401


@pytest.mark.parametrize("call", ["register", "unregister", "fab", "run"])
def test_what_a_site_does_not_need_does_not_exist(setting: Setting, call: str) -> None:
    client, node = setting.link.client, setting.link.node
    from flwr.proto import fab_pb2, run_pb2

    calls = {
        "register": lambda: client.RegisterNode(
            fleet_pb2.RegisterNodeFleetRequest(public_key=b"x")
        ),
        "unregister": lambda: client.UnregisterNode(
            fleet_pb2.UnregisterNodeFleetRequest(node_id=node.node_id)
        ),
        "fab": lambda: client.GetFab(fab_pb2.GetFabRequest(node=node, run_id=1)),
        "run": lambda: client.GetRun(run_pb2.GetRunRequest(node=node, run_id=1)),
    }
    assert refused(calls[call]) == 404


def test_a_reply_in_another_sites_name_or_to_its_message_is_refused(setting: Setting) -> None:
    asked, message = setting.asked()
    honest = node_of(setting, "honest")
    theirs = next(number for number, site in asked.items() if site == "honest")
    reply = Message(content(ZERO + 66), reply_to=message)
    assert refused(lambda: setting.push(reply, _src_node_id=honest)) == 401
    own = message.metadata.dst_node_id
    setting.grid.wait(0.2)
    status = None
    if theirs in setting.grid._fleet.pending:
        change = {"_src_node_id": own, "_reply_to_message_id": theirs}
        status = refused(lambda: setting.push(reply, **change))
    assert status in (401, None)
    setting.link.send(Message(content(ZERO + 2), reply_to=message))
    assert (weights_in(setting.honest_round(asked)) == 2).all()


def test_a_second_answer_is_not_counted(setting: Setting) -> None:
    asked, message = setting.asked()
    setting.link.send(Message(content(ZERO + 2), reply_to=message))
    setting.link.send(Message(content(ZERO + 3), reply_to=message))
    assert (weights_in(setting.honest_round(asked)) == 2).all()
    assert setting.log.said("reply_duplicate", site="hostile") or setting.log.said(
        "reply_late", site="hostile"
    )


def test_a_site_reads_no_other_sites_objects(setting: Setting) -> None:
    asked, _ = setting.asked()
    theirs = next(number for number, site in asked.items() if site == "honest")
    request = message_pb2.PullObjectRequest(
        node=setting.link.node, run_id=setting.grid._fleet.run_id, object_id=theirs
    )
    assert not setting.link.client.PullObject(request).object_found


def test_a_tree_that_would_unfold_without_end_does_nothing(setting: Setting) -> None:
    asked, message = setting.asked()
    reply = Message(content(ZERO), reply_to=message)
    tree = message_pb2.ObjectTree(object_id="0" * 64)
    for level in range(40):
        name = f"{level:064x}"
        tree = message_pb2.ObjectTree(
            object_id=name,
            children=[tree, message_pb2.ObjectTree(object_id=tree.object_id)],
        )
    with no_object_id_recompute():
        root = message_pb2.ObjectTree(object_id=reply.object_id, children=[tree])
    setting.push(reply, root)
    setting.link.send(Message(content(ZERO + 2), reply_to=message))
    assert (weights_in(setting.honest_round(asked)) == 2).all()


def test_bytes_that_are_no_reply_are_one_sites_error(setting: Setting) -> None:
    asked, message = setting.asked()
    payload = io.BytesIO()
    pickle.dump(_Bomb(), payload)
    array = Array(dtype="float32", shape=(1,), stype="numpy.ndarray", data=payload.getvalue())
    reply = RecordDict({"arrays": ArrayRecord({"w": array})})
    setting.link.send(Message(reply, reply_to=message))
    found = setting.honest_round(asked)
    with pytest.raises(ValueError, match=r"[Pp]ickle|magic"):
        weights_in(found)
    assert not _Bomb.went_off


def test_one_chunk_named_a_thousand_times_is_not_unfolded(setting: Setting) -> None:
    setting.grid.reply_limit = 20_000_000
    asked, message = setting.asked()
    array = np.zeros(100 * 1024 * 1024, np.uint8)
    setting.link.send(Message(content(array), reply_to=message))
    assert setting.honest_round(asked).error.reason == "unreadable"
    assert setting.log.said("reply_malformed", site="hostile")


class _Bomb:
    went_off = False

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (setattr, (_Bomb, "went_off", True))  # type: ignore[return-value]


def test_an_upload_that_never_ends_is_no_reply(setting: Setting) -> None:
    asked, message = setting.asked()
    reply = Message(content(ZERO + 9), reply_to=message)
    answer = setting.push(reply)
    objects = get_all_nested_objects(reply)
    assert len(answer.objects_to_push) == len(objects) == 5
    found = answers(setting.grid, asked, 1.0)
    assert list(found) == ["honest"]


def test_an_object_that_was_not_announced_is_not_kept(setting: Setting) -> None:
    _, message = setting.asked()
    answer = setting.push(Message(content(ZERO), reply_to=message))
    strange = content(ZERO + 7).deflate()
    request = message_pb2.PushObjectRequest(
        node=setting.link.node,
        run_id=setting.grid._fleet.run_id,
        session_id=answer.session_id,
        object_id="f" * 64,
        object_content=strange,
    )
    assert not setting.link.client.PushObject(request).stored


def test_millions_of_empty_objects_cost_the_others_nothing(setting: Setting) -> None:
    asked, message = setting.asked()
    reply = Message(content(ZERO), reply_to=message)
    many = message_pb2.ObjectTree(children=[message_pb2.ObjectTree()] * 200_000)
    larger = message_pb2.ObjectTree(children=[message_pb2.ObjectTree()] * 3_900_000)
    assert refused(lambda: setting.push(reply, larger)) == 413
    for _ in range(3):
        assert refused(lambda: setting.push(reply, many)) == 400
    began = time.monotonic()
    setting.link.send(Message(content(ZERO + 2), reply_to=message))
    assert (weights_in(setting.honest_round(asked)) == 2).all()
    assert time.monotonic() - began < patience(5)
