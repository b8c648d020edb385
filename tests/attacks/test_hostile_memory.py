"""What an enrolled site sends costs the coordinator no memory and the others no round.

The coordinator is a process of its own, over real mutual TLS, with one honest site beside.
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2, message_pb2
from flwr.supercore.inflatable.inflatable_object import get_object_tree, no_object_id_recompute

from client.agent.connection import Agent
from client.agent.credentials import Enrolled
from client.agent.link import Link
from client.agent.route import Route
from server.fleet.grid import LinkGrid
from tests.support.federation import (
    Events,
    answers,
    app,
    content,
    coordinator,
    linked,
    running,
    weights_in,
)
from tests.support.forks import Fork
from tests.support.patience import patience, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ZERO = np.zeros(100, np.float32)
MOST_MB, MOST_SECONDS = 300.0, 5.0


def rounds(home: Path, honest: Path, told: Path, stop: Path) -> None:
    """The coordinator: round after round, each with its seconds and the process's peak."""
    with linked(home) as grid, running(honest, grid.address):
        told.with_suffix(".port").write_text(str(grid.address[1]))
        wait_for(lambda: "honest" in grid.names().values())
        with told.open("a") as file:
            while not stop.exists():
                began = time.monotonic()
                asked = send(grid, "honest")
                if not any(item.site == "hostile" for _, item in grid._fleet.pending.items()):
                    send(grid, "hostile")
                for number, item in grid._fleet.pending.items():
                    if item.site == "hostile" and (item.ready or item.failure):
                        list(grid.pull_messages([number]))
                good = bool((weights_in(answers(grid, asked)["honest"]) == 1).all())
                facts = {"seconds": time.monotonic() - began, "good": good, "MB": peak()}
                file.write(json.dumps(facts) + "\n")
                file.flush()
                grid.wait(0.1)


def send(grid: LinkGrid, to: str) -> dict[str, str]:
    """A message to one site, if it is there; the site by the message's id."""
    nodes = [node for node, site in grid.names().items() if site == to]
    messages = [grid.create_message(content(ZERO), "train", node, "1") for node in nodes]
    return dict.fromkeys(grid.push_messages(messages), to)


def peak() -> float:
    """The most memory of this process so far, in MB."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) / 1000


@pytest.fixture
def world(tmp_path: Path) -> Iterator[tuple[Link, Path]]:
    """A hostile site's connection, and the file of the coordinator's figures."""
    home, sites = coordinator(tmp_path, "honest", "hostile")
    told, stop = tmp_path / "told", tmp_path / "stop"
    with (tmp_path / "log").open("w") as log:
        process = Fork(lambda: rounds(home, sites["honest"], told, stop), output=log, cwd=tmp_path)
    try:
        port = told.with_suffix(".port")
        assert wait_for(lambda: port.exists() and port.read_text())
        where = Route([f"127.0.0.1:{port.read_text()}"], "none")
        site = Enrolled(sites["hostile"])
        agent = Agent(app(), site, where, log=Events(), stop=threading.Event())
        with agent._connected() as link:
            assert wait_for(lambda: len(figures(told)) >= 3)
            yield link, told
        stop.touch()
    finally:
        process.kill()
        process.wait()


def figures(told: Path) -> list[dict[str, Any]]:
    lines = told.read_text().split("\n")[:-1] if told.exists() else []
    return [json.loads(line) for line in lines]


def push(link: Link, reply: Message, tree: Any) -> None:
    """A reply's head with a tree of our own; a refusal is what we expect."""
    with no_object_id_recompute(), contextlib.suppress(httpx.HTTPError):
        reply.metadata.__dict__["_message_id"] = reply.object_id
        bare = message_to_proto(remove_content_from_message(reply))
        link.client.PushMessages(
            fleet_pb2.PushMessagesRequest(
                node=link.node, messages_list=[bare], message_object_trees=[tree]
            )
        )


def reply_to_next(link: Link, contents: RecordDict) -> Message:
    """A reply to the next request; what was answered or given up before is asked anew."""
    found = None
    while found is None:
        found = link.pull()
    head, _ = found
    return Message(contents, reply_to=head)


def test_every_flood_of_a_site_stays_within_300_mb_and_5_seconds(
    world: tuple[Link, Path],
) -> None:
    link, told = world
    idle = figures(told)[-1]["MB"]
    empty = message_pb2.ObjectTree
    wide = empty(children=[empty()] * 200_000)
    deep = empty()
    for _ in range(90):
        deep = empty(children=[deep])
    reply = reply_to_next(link, content(ZERO))
    for tree in (wide, deep, empty(children=[empty()] * 3_900_000)):
        for _ in range(3):
            push(link, reply, tree)
    with contextlib.suppress(Exception):
        link.send(reply)
    for megabytes in (4, 40, 80):  # uploads of more than a reply may have
        with contextlib.suppress(Exception):
            link.send(reply_to_next(link, content(np.ones(megabytes * 250_000, np.float32))))
    many = content(np.zeros(1_000_000, np.float32))
    reply = reply_to_next(link, many)
    push(link, reply, get_object_tree(reply))  # announced, and never sent
    begun = len(figures(told))
    assert wait_for(lambda: len(figures(told)) >= begun + 3)
    after = figures(told)
    assert all(one["good"] for one in after)
    assert max(one["seconds"] for one in after) < patience(MOST_SECONDS)
    assert after[-1]["MB"] - idle < MOST_MB
    print(f"{len(after)} rounds, {after[-1]['MB'] - idle:.0f} MB above idle")
