"""Which sites count as connected, over real TLS."""

import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from client.agent import connection, link
from server.fleet import superlink
from server.fleet.liveness import Liveness
from server.fleet.tls_server import TlsServer
from tests.support.federation import coordinator, linked, running
from tests.support.patience import wait_for


def test_a_client_that_was_killed_in_its_poll_is_gone_with_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The poll that outlives its connection is no sign of life: else it were here for 45 s."""
    heard, answer, polls = list[str](), TlsServer._answer, {"begun": 0, "ended": 0}

    async def answering(server: TlsServer, *words: Any) -> Any:
        polls["begun"] += (poll := words[1]["path"].endswith("pull-whole"))
        try:
            return await answer(server, *words)
        finally:
            polls["ended"] += poll

    for name in ("seen", "closed"):
        real = getattr(Liveness, name)

        def noted(liveness: Liveness, site: str, name: str = name, real: Any = real) -> None:
            heard.append(name)
            real(liveness, site)

        monkeypatch.setattr(Liveness, name, noted)
    monkeypatch.setattr(TlsServer, "_answer", answering)
    monkeypatch.setattr(superlink, "POLL_SECONDS", 1.0)
    monkeypatch.setattr(link.Link, "take_leave", lambda link: None)
    connect, ends = socket.create_connection, list[socket.socket]()

    def connected(*words: Any, **more: Any) -> socket.socket:
        end = connect(*words, **more)
        ends.append(opened.enter_context(end.dup()))
        return end

    def killed(agent: connection.Agent) -> None:
        for end in ends:  # as the kernel does for a process that is gone
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    monkeypatch.setattr(socket, "create_connection", connected)
    monkeypatch.setattr(connection.Agent, "close", killed)
    home, sites = coordinator(tmp_path, "a")
    with ExitStack() as opened, linked(home) as grid:
        with running(sites["a"], grid.address):
            assert wait_for(lambda: polls["begun"] > polls["ended"])
        assert wait_for(lambda: "closed" in heard)
        assert wait_for(lambda: polls["begun"] == polls["ended"])
        assert heard[-1] == "closed"
